// One entry, live: its value with what changed marked, where it came from, how fresh it is, who watches.

import { invalidate, refetch } from './actions.js';
import { foreign, h } from './elements.js';
import { NONE, bytes, clip, clock, count, duration, isNumber, keyText } from './format.js';
import { badge, figure } from './parts.js';
import { measure, shown, touchedBy } from './value.js';

const MARKED_MS = 1_600;
const KEPT = 12;
/** Between two questions for what changes do not say (origin, watchers); of a large entry, which comes along, rarely. */
const ASK_MS = 3_000;
const ASK_LARGE_MS = 60_000;
const LARGE_BYTES = 256 * 1024;

export class EntryView {
  constructor(session, key, changed) {
    this.of = session;
    this.key = key;
    this.text = JSON.stringify(key);
    this.changed = changed;
    this.status = 'looking';
    this.marks = new Map();
    this.changes = [];
    this.isPaused = false;
    this.size = { size: 0, isExact: true };
    this.askedAt = -Infinity;
    this.subscription = session.harbor.subscribe({ key }, (update) => this.take(update));
  }

  close() {
    this.isClosed = true;
    this.subscription.unsubscribe();
  }

  take(update) {
    if (update.type === 'refused') {
      this.fault = String(update.error?.message ?? 'the subscription was refused');
    } else if (update.type === 'removed') {
      this.entry = undefined;
      this.status = 'removed';
      this.note(update.message ?? {}, 'removed');
    } else if (update.type === 'ready' && !this.entry) {
      this.status = 'absent';
    } else if (update.entry) {
      const had = this.entry !== undefined && this.entry.data !== undefined;
      this.entry = update.entry;
      this.status = 'there';
      this.size = measure(update.entry.data);
      const { message } = update;
      if (update.type === 'data' && had && message?.from !== undefined) {
        const until = performance.now() + MARKED_MS;
        for (const path of Array.isArray(message.patch) ? touchedBy(message.patch, update.entry.data) : ['']) this.marks.set(path, until);
        this.note(message, 'changed');
        setTimeout(() => this.isClosed || this.changed(), MARKED_MS + 50);
      }
    }
    this.changed();
  }

  note(message, kind) {
    const patch = Array.isArray(message.patch) ? message.patch : [];
    const places = patch.slice(0, 3).map((each) => clip(`${each?.op} ${each?.path || 'the whole'}`, 80));
    if (patch.length > 3) places.push(`and ${count(patch.length - 3)} more`);
    this.changes.unshift({ time: Date.now(), from: message.from, version: message.version, kind, places: places.length ? places.join(', ') : kind === 'changed' ? 'the whole value' : '', folded: message.coalesced });
    this.changes.length = Math.min(this.changes.length, KEPT);
  }

  async ask() {
    const isLarge = this.size.size > LARGE_BYTES;
    if (performance.now() - this.askedAt < (isLarge && this.details ? ASK_LARGE_MS : ASK_MS) || this.status === 'absent') return;
    this.askedAt = performance.now();
    const { harbor } = this.of;
    // Of the keys under this one the exact one is the last, as "]" sorts after ",": what comes after this text begins with it.
    const listing = new URLSearchParams({ prefix: this.text, limit: '1', cursor: `${this.text.slice(0, -1)}\\` });
    const [entry, listed] = await Promise.allSettled([
      harbor.request(`/v1/entries?${new URLSearchParams({ key: this.text, fetch: 'never' })}`),
      harbor.request(`/v1/keys?${listing}`),
    ]);
    if (this.isClosed) return;
    if (entry.status === 'fulfilled') {
      const { data: _, ...details } = entry.value;
      this.details = details;
    }
    if (listed.status === 'fulfilled') this.row = listed.value.keys?.[0];
    this.changed();
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.text);
      this.copied = 'Copied';
    } catch {
      this.copied = 'Not allowed';
    }
    setTimeout(() => {
      this.copied = null;
      this.changed();
    }, 2_000);
    this.changed();
  }

  pause() {
    this.isPaused = !this.isPaused;
    if (this.isPaused) this.subscription.pause();
    else this.subscription.resume();
    this.changed();
  }

  draw() {
    const head = h('h2', { class: 'key-head' }, foreign(keyText(this.key), { class: 'mono' }));
    if (this.fault) return [head, h('p', { class: 'fault' }, this.fault)];
    if (this.status === 'looking') return [head, h('p', { class: 'muted' }, 'Looking…')];
    this.ask();
    return [head, this.buttons(), this.figures(), this.value(), this.log()];
  }

  buttons() {
    const isBarred = !this.of.isAdmin;
    return h(
      'div',
      { class: 'buttons' },
      h('button', { type: 'button', disabled: isBarred, onclick: () => invalidate(this.of, this.key) }, 'Invalidate…'),
      h('button', { type: 'button', disabled: isBarred, onclick: () => refetch(this.of, this.key) }, 'Refetch…'),
      h('button', { type: 'button', class: 'quiet', 'aria-pressed': String(this.isPaused), onclick: () => this.pause() }, this.isPaused ? 'Go on' : 'Pause'),
      h('button', { type: 'button', class: 'quiet', onclick: () => this.copy() }, this.copied ?? 'Copy key'),
      isBarred && h('span', { class: 'muted' }, 'Actions need the admin grant.'),
    );
  }

  figures() {
    const { entry, details = {}, size } = this;
    const now = Date.now() + (this.of.harbor.clockOffset || 0);
    const isStale = entry?.isStale || details.is_stale;
    const freshness = [
      isStale ? badge('stale') : badge('fresh'),
      details.is_invalidated && badge('invalidated'),
      (entry?.isOffline || details.is_offline) && badge('offline'),
      details.fetch_status === 'fetching' && badge('fetching', 'info'),
    ];
    const updated = entry?.dataUpdatedAt;
    return h(
      'dl',
      { class: 'figures' },
      figure('status', badge(entry?.status ?? (this.status === 'removed' ? 'removed' : 'absent'), this.status === 'there' ? undefined : 'plain')),
      figure('version', isNumber(entry?.version) ? String(entry.version) : NONE),
      figure('freshness', h('span', {}, freshness)),
      figure('updated', isNumber(updated) && updated > 0 ? `${duration(now - updated)} ago` : NONE, isNumber(updated) && updated > 0 ? clock(updated) : ''),
      figure('origin', origin(details.origin, now)),
      figure('watched by', isNumber(this.row?.subscribers) && JSON.stringify(this.row.key) === this.text ? `${count(this.row.subscribers)} ${this.row.subscribers === 1 ? 'subscription' : 'subscriptions'}` : NONE),
      figure('size', `${size.isExact ? '' : 'about '}${bytes(size.size)}`),
      entry?.error && figure('last fetch', foreign(clip(entry.error.message, 300))),
    );
  }

  value() {
    if (!this.entry || this.entry.data === undefined) {
      return h('p', { class: 'muted' }, this.status === 'removed' ? 'The entry was removed.' : this.entry ? 'It has no data yet.' : 'There is no such entry. Should one come, it is shown here.');
    }
    const now = performance.now();
    for (const [path, until] of this.marks) {
      if (until < now) this.marks.delete(path);
    }
    return h('div', { class: 'json', role: 'region', 'aria-label': 'Value', tabindex: '0', dir: 'ltr' }, shown(this.entry.data, new Set(this.marks.keys())));
  }

  log() {
    if (!this.changes.length) return h('p', { class: 'muted' }, 'It has not changed since you opened it.');
    return h(
      'section',
      { class: 'changes' },
      h('h3', {}, 'Changes since you opened it'),
      h('ol', {}, this.changes.map((each) => h('li', { key: `${each.version} ${each.time}` }, h('time', {}, clock(each.time)), ' ', h('span', { class: 'mono' }, each.kind === 'removed' ? 'removed' : `+${count(each.version - each.from)}`), ' ', foreign(each.places), each.folded > 1 ? ` (${count(each.folded)} operations)` : ''))),
    );
  }
}

function origin(of, now) {
  if (of === null || typeof of !== 'object') return NONE;
  const parts = [String(of.kind ?? 'unknown')];
  if (of.from) parts.push(String(of.from));
  if (isNumber(of.fetched_at)) parts.push(`fetched ${duration(now - of.fetched_at)} ago`);
  if (of.uncertain) parts.push('uncertain');
  if (of.invalidated) parts.push(`invalidated by ${of.invalidated.by}`);
  return foreign(clip(parts.join(' · '), 200));
}
