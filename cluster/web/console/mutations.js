// Upstream writes that wait or have failed, and the way to take back what was not sent yet.

import { undo } from './actions.js';
import { foreign, h } from './elements.js';
import { clip, clock, count, duration, isNumber } from './format.js';
import { Report, badge, figure, panel, table } from './parts.js';

const UNSENT = ['scheduled', 'queued', 'paused'];

export class MutationsPage {
  title = 'Mutations';

  constructor(session, changed) {
    this.of = session;
    this.report = new Report(session, 'mutations', changed);
  }

  draw() {
    const missing = this.report.missing();
    if (missing) return missing;
    const found = this.report.list('mutations');
    const failed = found.filter((each) => each.status === 'error');
    const waiting = found.filter((each) => each.status !== 'error');
    const { overview } = this.of;
    return [
      panel(
        'Now',
        h(
          'dl',
          { class: 'figures' },
          figure('wait', count(overview?.mutations?.pending)),
          ...Object.entries(overview?.mutations?.settled ?? {}).map(([status, many]) => figure(status, count(many))),
        ),
        this.report.data?.has_more && h('p', { class: 'muted' }, 'There are more; the newest 100 are listed.'),
      ),
      panel('Waiting', this.table('Mutations that wait', waiting, 'Nothing waits.')),
      panel('Failed', this.table('Mutations that failed', failed, 'Nothing has failed lately.')),
    ];
  }

  table(label, rows, empty) {
    const now = Date.now() + (this.of.harbor.clockOffset || 0);
    const columns = [
      { name: 'name', cell: (each) => foreign(clip(each.name)) },
      { name: 'id', cell: (each) => foreign(clip(each.id, 60), { class: 'mono' }) },
      { name: 'status', cell: (each) => badge(each.status) },
      { name: 'begun', cell: (each) => (isNumber(each.created_at) ? `${clock(each.created_at)}, ${duration(now - each.created_at)} ago` : '') },
      { name: 'detail', wide: true, cell: (each) => this.detail(each, now) },
      { name: 'action', cell: (each) => this.action(each) },
    ];
    return table(label, columns, rows, { key: (each) => each.id, empty });
  }

  detail(each, now) {
    if (each.error) return [h('code', {}, clip(String(each.error.code ?? ''), 40)), ' ', foreign(clip(each.error.message, 300))];
    if (each.status === 'scheduled' && isNumber(each.due_at)) return `is sent in ${duration(each.due_at - now)}`;
    return { queued: 'waits for those before it', paused: 'its service cannot be reached', pending: 'was sent, and waits for the answer' }[each.status] ?? '';
  }

  action(each) {
    if (!UNSENT.includes(each.status)) return '';
    return h('button', { type: 'button', class: 'small', disabled: !this.of.isAdmin, 'aria-label': `Undo ${clip(each.name, 40)} ${clip(each.id, 40)}`, onclick: () => undo(this.of, each) }, 'Undo');
  }

  close() {
    this.report.close();
  }
}
