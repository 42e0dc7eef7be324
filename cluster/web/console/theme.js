// Light, dark, or as the system says: set before anything is drawn, so that nothing flashes.

(() => {
  const THEMES = ['system', 'light', 'dark'];
  const NAME = 'harbor.theme';
  const read = () => {
    try {
      const held = localStorage.getItem(NAME);
      return THEMES.includes(held) ? held : 'system';
    } catch {
      return 'system';
    }
  };
  let theme = read();
  const apply = () => {
    if (theme === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById('theme');
    if (button) button.textContent = `Theme: ${theme}`;
  };
  apply();
  document.addEventListener('DOMContentLoaded', () => {
    apply();
    document.getElementById('theme').addEventListener('click', () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try {
        localStorage.setItem(NAME, theme);
      } catch {
        // It holds for this page.
      }
      apply();
    });
  });
})();
