// What has happened: to the cluster, as the supervisor saw it, and to this session, as any client is told.

import { foreign, h } from './elements.js';
import { clip, clock, isNumber } from './format.js';
import { Report, badge, panel, table } from './parts.js';

const LEVELS = ['all', 'error', 'warning', 'success', 'info'];

export class NoticesPage {
  title = 'Notices';

  constructor(session, changed) {
    this.of = session;
    this.changed = changed;
    this.level = 'all';
    this.report = new Report(session, 'notices', changed);
  }

  draw() {
    const own = this.of.notices.map((each, index) => ({ ...each, number: `own ${this.of.notices.length - index}` }));
    const found = [...this.report.list('notices'), ...own].sort((one, other) => (isNumber(other.time) ? other.time : 0) - (isNumber(one.time) ? one.time : 0));
    const rows = found.filter((each) => this.level === 'all' || each.level === this.level);
    const columns = [
      { name: 'time', cell: (each) => h('time', { datetime: isNumber(each.time) ? new Date(each.time).toISOString() : null }, clock(each.time)) },
      { name: 'level', cell: (each) => badge(each.level) },
      { name: 'code', cell: (each) => h('code', {}, clip(each.code, 60)) },
      { name: 'message', wide: true, cell: (each) => foreign(clip(each.message, 300)) },
      { name: 'told to', cell: (each) => (each.own ? 'this session' : 'the cluster') },
    ];
    return [
      this.report.missing(),
      panel(
        'Log',
        h(
          'p',
          { class: 'filter' },
          h('label', { for: 'level' }, 'Show '),
          h('select', { id: 'level', onchange: (event) => this.choose(event.target.value) }, LEVELS.map((level) => h('option', { value: level, selected: level === this.level }, level))),
        ),
        table('Notices', columns, rows, { key: (each) => each.number, empty: 'Nothing has happened since the supervisor began.' }),
      ),
    ];
  }

  choose(level) {
    this.level = level;
    this.changed();
  }

  close() {
    this.report.close();
  }
}
