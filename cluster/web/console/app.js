// The console: which page is shown, what stands around it, and what is shown in its place where it cannot be.

import { h, show } from './elements.js';
import { duration } from './format.js';
import { Session } from './session.js';
import { KeysPage } from './keys.js';
import { MutationsPage } from './mutations.js';
import { NoticesPage } from './notices.js';
import { OverviewPage } from './overview.js';
import { PresencePage } from './presence.js';
import { StreamsPage } from './streams.js';

const PAGES = {
  overview: OverviewPage,
  keys: KeysPage,
  streams: StreamsPage,
  mutations: MutationsPage,
  presence: PresencePage,
  notices: NoticesPage,
};
const SILENT_MS = 10_000;
/** Between two drawings at least; a page that changes more often is not easier to read. */
const DRAW_MS = 150;

const main = document.getElementById('main');
const WORDS = { connecting: 'connecting', connected: 'live', reconnecting: 'reconnecting', disconnected: 'offline', 'needs-auth': 'signed out', closed: 'closed' };

let page = null;
let shownName = '';
let drawing = null;
let drawnAt = -DRAW_MS;

function later() {
  drawing ??= setTimeout(draw, Math.max(0, drawnAt + DRAW_MS - performance.now()));
}

const session = new Session(() => later());

function route() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?', 2);
  return { name: Object.hasOwn(PAGES, path) ? path : 'overview', query: new URLSearchParams(query) };
}

function draw() {
  drawing = null;
  drawnAt = performance.now();
  try {
    frame();
    body();
  } catch (error) {
    fault(error);
  }
}

function frame() {
  const state = document.getElementById('connection');
  const isSilent = session.state === 'connected' && session.isAdmin && performance.now() - session.heardAt > SILENT_MS;
  const word = isSilent ? 'no news' : WORDS[session.state] ?? session.state;
  if (state.textContent !== word) state.textContent = word;
  state.dataset.state = isSilent ? 'silent' : session.state;
  document.getElementById('cluster').textContent = session.overview?.name ?? '';
  document.getElementById('sign-out').hidden = !session.token;
  for (const link of document.querySelectorAll('#pages a')) {
    if (link.hash === `#/${route().name}`) {
      if (!link.hasAttribute('aria-current')) link.scrollIntoView({ block: 'nearest', inline: 'nearest' });
      link.setAttribute('aria-current', 'page');
    } else link.removeAttribute('aria-current');
  }
  show(document.getElementById('banner'), banner(isSilent));
}

function banner(isSilent) {
  if (session.state === 'reconnecting' || session.state === 'disconnected') {
    return h('p', { class: 'banner warning' }, 'The connection to the gateway is lost. What is shown is as it was; it is tried again by itself.');
  }
  if (session.state === 'closed') {
    return h('p', { class: 'banner error' }, `The gateway has ended this session: ${session.reason?.message ?? 'it does not say why'}. Load the page again to begin another.`);
  }
  if (isSilent) {
    const since = duration(Math.round((performance.now() - session.heardAt) / 1000) * 1000);
    return h('p', { class: 'banner warning' }, `The supervisor has said nothing for ${since}. What is shown is as it was.`);
  }
  const { overview } = session;
  if (overview && overview.ready === false) {
    return h('p', { class: 'banner error' }, `The cluster is not ready: it waits for ${[].concat(overview.waits_for ?? []).join(', ') || 'something'}.`);
  }
  const offline = [].concat(overview?.services_offline ?? []);
  return offline.length ? h('p', { class: 'banner warning' }, `Cannot be reached: ${offline.join(', ')}. Entries of it are served as they were.`) : null;
}

function body() {
  const { name, query } = route();
  if (session.state === 'needs-auth') {
    const why = `sign in: ${session.token} ${session.reason?.message}`;
    if (shownName === why) return; // what is being typed stays
    leave();
    shownName = why;
    document.title = 'Sign in · Harbor Cluster';
    main.replaceChildren();
    show(main, signIn());
    return;
  }
  if (shownName !== name || page?.session !== session.harbor) {
    leave();
    page = new PAGES[name](session, later);
    page.session = session.harbor;
    document.title = `${page.title} · Harbor Cluster`;
    show(main);
    shownName = name;
  }
  page.follow?.(query);
  show(main, h('h1', {}, page.title), page.draw());
}

function leave() {
  page?.close?.();
  page = null;
}

function signIn() {
  const field = h('input', { id: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', required: true, 'aria-describedby': 'token-help' });
  return [
    h('h1', {}, 'Sign in'),
    h(
      'form',
      {
        class: 'panel sign-in',
        onsubmit: (event) => {
          event.preventDefault();
          if (field.value.trim()) session.sign(field.value.trim());
        },
      },
      h('p', {}, session.token ? `The token does not count (any more): ${session.reason?.message ?? 'other credentials are needed'}.` : 'This cluster asks for a token or an API key.'),
      h('label', { for: 'token' }, 'Token'),
      field,
      h('p', { id: 'token-help', class: 'muted' }, 'It is kept in this tab until you sign out or close it. The overview and all actions need the admin grant.'),
      h('button', { type: 'submit' }, 'Sign in'),
    ),
  ];
}

function fault(error) {
  console.error(error);
  leave();
  shownName = '';
  show(
    main,
    h('h1', {}, 'This page failed'),
    h('div', { class: 'panel' }, h('p', {}, 'The console could not show this: ', h('code', {}, String(error?.message ?? error)), '. The cluster is not affected.'), h('button', { type: 'button', onclick: () => draw() }, 'Try again')),
  );
}

document.querySelector('.skip').onclick = (event) => {
  event.preventDefault(); // the fragment names the page
  main.focus();
};
document.getElementById('sign-out').onclick = () => session.sign(null);
addEventListener('hashchange', () => {
  const before = shownName;
  draw();
  scrollTo(0, 0);
  if (shownName !== before) main.focus({ preventScroll: true });
});
addEventListener('error', (event) => event.error && fault(event.error));
addEventListener('unhandledrejection', (event) => {
  console.error(event.reason);
});
setInterval(later, 1_000);
draw();
