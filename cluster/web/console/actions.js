// What changes something: each is confirmed, names what it is about, and says what came of it.

import { clip, keyText } from './format.js';

const dialog = document.getElementById('confirm');
let going = null;
document.getElementById('confirm-no').onclick = () => dialog.close('no');
document.getElementById('confirm-yes').onclick = () => dialog.close('yes');

function ask(title, text, what, yes) {
  document.getElementById('confirm-title').textContent = title;
  document.getElementById('confirm-text').textContent = text;
  document.getElementById('confirm-what').textContent = clip(what, 600);
  document.getElementById('confirm-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

/** Says for a while, to screen readers too, what came of something. */
export function say(text, isFault = false) {
  const place = document.getElementById('outcome');
  place.textContent = clip(text, 300);
  place.classList.toggle('fault', isFault);
  clearTimeout(going);
  going = setTimeout(() => {
    place.textContent = '';
  }, 8_000);
}

async function act(session, title, text, what, yes, work) {
  if (!session.isAdmin || dialog.open) return;
  if (!(await ask(title, text, what, yes))) return;
  try {
    say(await work());
  } catch (error) {
    say(`${title} failed: ${error?.message ?? error}`, true);
  }
}

export function invalidate(session, key) {
  const text = 'The entry counts as out of date from now on. Where somebody watches it, it is fetched again.';
  return act(session, 'Invalidate', text, keyText(key), 'Invalidate', async () => {
    const { matched } = await session.harbor.request('/v1/invalidate', { method: 'POST', body: { key, exact: true } });
    return matched ? 'The entry was invalidated.' : 'There is no such entry any more.';
  });
}

export function refetch(session, key) {
  return act(session, 'Refetch', 'The service is asked for this entry now, fresh or not.', keyText(key), 'Refetch', async () => {
    const { matched } = await session.harbor.request('/v1/refetch', { method: 'POST', body: { key, exact: true } });
    return matched ? 'The entry is being fetched.' : 'Nothing is fetched for this key: there is no such entry.';
  });
}

export function undo(session, mutation) {
  const text = 'It is cancelled before it is sent, and what it showed in advance is taken back for everybody.';
  return act(session, 'Undo', text, `${mutation.name} · ${mutation.id}`, 'Undo the mutation', async () => {
    await session.harbor.request(`/v1/mutations/${encodeURIComponent(mutation.id)}`, { method: 'DELETE' });
    return 'The mutation was undone.';
  });
}
