// What several pages show: a report of the cluster, tables, states, and what stands where nothing is.

import { h } from './elements.js';

/** What one of the reserved entries says, as long as a page shows it. */
export class Report {
  constructor(session, name, changed) {
    this.data = undefined;
    this.refusal = null;
    this.subscription = session.harbor.subscribe({ key: ['$harbor', name] }, (update) => {
      if (update.type === 'refused') this.refusal = update.error;
      else if (update.type === 'data') this.data = update.entry.data;
      changed();
    });
  }

  /** A list in it; whatever else is there is none. */
  list(name) {
    const found = this.data?.[name];
    return Array.isArray(found) ? found.filter((each) => each !== null && typeof each === 'object') : [];
  }

  /** What to show in place of it, null where it is there. */
  missing() {
    if (this.refusal) return refused(this.refusal);
    return this.data === undefined ? h('p', { class: 'panel muted' }, 'Waiting for the cluster to say how it is…') : null;
  }

  close() {
    this.subscription.unsubscribe();
  }
}

export function refused(error) {
  if (error?.code !== 'FORBIDDEN') return h('p', { class: 'panel fault' }, String(error?.message ?? 'The cluster does not say.'));
  return h(
    'div',
    { class: 'panel' },
    h('p', {}, h('strong', {}, 'This token has no admin grant.'), ' What the cluster says of itself is for operators. Keys that the token may read are under ', h('a', { href: '#/keys' }, 'Keys'), '.'),
    h('p', { class: 'muted' }, String(error?.message ?? '')),
  );
}

const TONES = {
  connected: 'good', success: 'good', primary: 'good', fresh: 'good',
  connecting: 'info', scheduled: 'info', queued: 'info', pending: 'info', info: 'info', idle: 'info',
  reconnecting: 'warning', paused: 'warning', warning: 'warning', stale: 'warning', invalidated: 'warning', draining: 'warning', cancelled: 'warning',
  failed: 'bad', disconnected: 'bad', error: 'bad', offline: 'bad',
};

/** A state as a word with a colour; the word alone says everything. */
export function badge(word, tone = TONES[word] ?? 'plain') {
  return h('span', { class: `badge ${tone}` }, String(word ?? '–'));
}

/** A table: `columns` are {name, cell(row), number?, wide?}. On narrow screens each row is a card, whose cells bear their column's name. */
export function table(label, columns, rows, { key, empty }) {
  if (!rows.length) return h('p', { class: 'muted empty' }, empty);
  return h(
    'table',
    { 'aria-label': label },
    h('thead', {}, h('tr', {}, columns.map((column) => h('th', { scope: 'col', class: column.number && 'number' }, column.name)))),
    h(
      'tbody',
      {},
      rows.map((row) =>
        h('tr', { key: key(row) }, columns.map((column) => h('td', { 'data-name': column.name, class: [column.number && 'number', column.wide && 'wide'].filter(Boolean).join(' ') || null }, h('span', {}, column.cell(row))))),
      ),
    ),
  );
}

export function panel(title, ...children) {
  return h('section', { class: 'panel' }, h('h2', {}, title), ...children);
}

/** A number with what it is. */
export function figure(name, value, note) {
  return h('div', { class: 'figure' }, h('dt', {}, name), h('dd', {}, value, note && h('span', { class: 'muted' }, ` ${note}`)));
}
