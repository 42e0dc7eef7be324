// The explorer: keys as a tree, a page at a time, found by text; and one entry, live.

import { EntryView } from './entry.js';
import { foreign, h } from './elements.js';
import { clip, count, keyText } from './format.js';
import { badge } from './parts.js';

const PAGE = 100;
/** Between two looks at what is unfolded; so many places at most, one after the other, since each look goes through all keys of every shard. */
const AGAIN_MS = 10_000;
const AGAIN_MOST = 12;
/** So many times as long as the last look took: with 100,000 keys looks are minutes apart, and cost the cluster a four-hundredth of their time. */
const SPARING = 400;

export function linkTo(key) {
  return `#/keys?${new URLSearchParams({ key: JSON.stringify(key) })}`;
}

/** A key that somebody wrote or linked to; null where it is none. */
export function readKey(text) {
  try {
    const key = JSON.parse(text);
    return Array.isArray(key) ? key : null;
  } catch {
    return null;
  }
}

export class KeysPage {
  title = 'Keys';

  constructor(session, changed) {
    this.of = session;
    this.changed = changed;
    /** What follows each prefix that is unfolded, by the prefix's text. */
    this.places = new Map();
    this.root = [];
    this.found = null;
    this.entry = null;
    this.shown = null;
    this.later(0);
  }

  later(tookMs) {
    this.again = setTimeout(async () => {
      const began = performance.now();
      await this.refresh();
      if (!this.closed) this.later(performance.now() - began);
    }, Math.max(AGAIN_MS, SPARING * tookMs));
  }

  close() {
    clearTimeout(this.again);
    this.entry?.close();
    this.closed = true;
  }

  follow(query) {
    const wanted = query.toString();
    if (wanted === this.shown) return;
    this.shown = wanted;
    const [key, prefix, find] = ['key', 'prefix', 'find'].map((name) => query.get(name));
    if (key !== null) this.open(key);
    if (prefix !== null) this.go(readKey(prefix) ?? []);
    else if (find !== null) this.find(find);
    else if (key === null) this.go([]);
    if (!this.places.size) this.unfold(this.root);
  }

  open(text) {
    const key = readKey(text);
    if (this.entry && this.entry.text === JSON.stringify(key)) return;
    this.entry?.close();
    this.entry = key ? new EntryView(this.of, key, this.changed) : null;
    this.fault = key ? null : `This is no key, which would be a JSON array: ${clip(text)}`;
  }

  go(prefix) {
    this.found = null;
    if (JSON.stringify(prefix) === JSON.stringify(this.root)) return;
    this.root = prefix;
    this.places.clear();
    this.unfold(prefix);
  }

  // --- what there is ---

  async ask(path, place, take) {
    place.asked = (place.asked ?? 0) + 1;
    const { asked } = place;
    place.isLoading = true;
    try {
      const answer = await this.of.harbor.request(path);
      if (place.asked !== asked) return;
      take(answer);
      place.fault = null;
    } catch (error) {
      if (place.asked === asked) place.fault = String(error?.message ?? error);
    }
    if (place.asked === asked) place.isLoading = false;
    if (!this.closed) this.changed();
  }

  branches(prefix, place, { cursor, limit }) {
    const query = new URLSearchParams({ branches: 'true', prefix: JSON.stringify(prefix), limit: String(limit), ...(cursor ? { cursor } : {}) });
    return this.ask(`/v1/keys?${query}`, place, (answer) => {
      const rows = Array.isArray(answer.branches) ? answer.branches : [];
      place.rows = cursor ? [...place.rows, ...rows] : rows;
      place.cursor = answer.cursor ?? null;
    });
  }

  unfold(prefix) {
    const place = { rows: [], cursor: null, fault: null, prefix };
    this.places.set(JSON.stringify(prefix), place);
    this.branches(prefix, place, { limit: PAGE });
  }

  toggle(prefix) {
    const text = JSON.stringify(prefix);
    if (!this.places.has(text)) this.unfold(prefix);
    else {
      for (const held of [...this.places.keys()]) {
        if (held === text || held.startsWith(`${text.slice(0, -1)},`)) this.places.delete(held);
      }
    }
    this.changed();
  }

  async refresh(isAsked = false) {
    if (document.hidden && !isAsked) return;
    const places = [...this.places.values()];
    for (const place of isAsked ? places : places.slice(0, AGAIN_MOST)) {
      if (!place.isLoading) await this.branches(place.prefix, place, { limit: Math.min(1_000, Math.max(PAGE, place.rows.length)) });
    }
  }

  find(text) {
    this.found = { text, rows: [], cursor: null, fault: null };
    this.more();
  }

  more() {
    const place = this.found;
    const query = new URLSearchParams({ contains: place.text, prefix: JSON.stringify(this.root), limit: String(PAGE), ...(place.cursor ? { cursor: place.cursor } : {}) });
    return this.ask(`/v1/keys?${query}`, place, (answer) => {
      place.rows = [...place.rows, ...(Array.isArray(answer.keys) ? answer.keys : [])];
      place.cursor = answer.cursor ?? null;
    });
  }

  search(text) {
    const key = readKey(text);
    const query = key ? { prefix: text, ...(key.length ? { key: text } : {}) } : text.trim() ? { find: text.trim() } : {};
    location.hash = `#/keys?${new URLSearchParams(query)}`;
  }

  // --- how it looks ---

  draw() {
    return h(
      'div',
      { class: 'explorer' },
      h('section', { class: 'panel', 'aria-label': 'Keys' }, this.form(), this.path(), this.found ? this.results() : this.branch(this.root)),
      h('section', { class: 'panel entry', 'aria-label': 'Entry' }, this.fault ? h('p', { class: 'fault' }, this.fault) : this.entry ? this.entry.draw() : h('p', { class: 'muted' }, 'Choose an entry to see its value, and what changes in it.')),
    );
  }

  form() {
    return h(
      'form',
      {
        class: 'search',
        role: 'search',
        onsubmit: (event) => {
          event.preventDefault();
          this.search(event.target.querySelector('input').value);
        },
      },
      h('label', { for: 'find' }, 'Find a text in keys, or go to a key or prefix such as ', h('code', {}, '["projects"]')),
      h('div', { class: 'search-row' }, h('input', { id: 'find', type: 'search', autocomplete: 'off', spellcheck: 'false', dir: 'auto' }), h('button', { type: 'submit' }, 'Find'), h('button', { type: 'button', class: 'quiet', onclick: () => this.refresh(true) }, 'Refresh')),
    );
  }

  path() {
    return h(
      'p',
      { class: 'crumbs' },
      h('a', { href: '#/keys' }, 'all keys'),
      this.root.map((element, index) => [
        ' › ',
        h('a', { href: `#/keys?${new URLSearchParams({ prefix: JSON.stringify(this.root.slice(0, index + 1)) })}` }, foreign(keyText(element, 60))),
      ]),
      this.found && [' › with “', foreign(clip(this.found.text, 60)), '”'],
    );
  }

  branch(prefix) {
    const place = this.places.get(JSON.stringify(prefix));
    if (!place) return null;
    if (place.fault) return h('p', { class: 'fault' }, place.fault);
    if (!place.rows.length) return h('p', { class: 'muted empty' }, place.isLoading ? 'Looking…' : 'There are no entries under this.');
    return [
      h('ul', { class: 'tree' }, place.rows.map((each) => this.row([...prefix, each.element], each))),
      place.cursor !== null && h('button', { type: 'button', class: 'small', key: `more ${JSON.stringify(prefix)}`, disabled: place.isLoading, onclick: () => this.branches(prefix, place, { cursor: place.cursor, limit: PAGE }) }, 'More'),
    ];
  }

  row(key, { element, keys, is_entry: isEntry }) {
    const text = JSON.stringify(key);
    const isOpen = this.places.has(text);
    const hasMore = keys > (isEntry ? 1 : 0);
    const label = foreign(keyText(element, 80));
    return h(
      'li',
      { key: text },
      h(
        'div',
        { class: 'branch' },
        hasMore
          ? h('button', { type: 'button', class: 'fold', 'aria-expanded': String(isOpen), 'aria-label': `${isOpen ? 'Fold' : 'Unfold'} ${keyText(element, 80)}`, onclick: () => this.toggle(key) }, isOpen ? '▾' : '▸')
          : h('span', { class: 'fold' }),
        isEntry ? h('a', { href: linkTo(key), 'aria-current': this.entry?.text === text && 'true' }, label) : h('button', { type: 'button', class: 'link', tabindex: '-1', 'aria-hidden': 'true', onclick: () => this.toggle(key) }, label),
        h('span', { class: 'muted count' }, hasMore ? count(keys) : ''),
      ),
      isOpen && this.branch(key),
    );
  }

  results() {
    const { rows, fault, isLoading, cursor } = this.found;
    if (fault) return h('p', { class: 'fault' }, fault);
    if (!rows.length) return h('p', { class: 'muted empty' }, isLoading ? 'Looking…' : 'No key has this text.');
    return [
      h(
        'ul',
        { class: 'tree results' },
        rows.map((each) =>
          h(
            'li',
            { key: JSON.stringify(each.key) },
            h('div', { class: 'branch' }, h('a', { href: linkTo(each.key), 'aria-current': this.entry?.text === JSON.stringify(each.key) && 'true' }, foreign(keyText(each.key, 200))), each.status !== 'success' && badge(each.status), each.is_stale && badge('stale')),
          ),
        ),
      ),
      cursor !== null && h('button', { type: 'button', class: 'small', key: 'more', disabled: isLoading, onclick: () => this.more() }, 'More'),
    ];
  }
}
