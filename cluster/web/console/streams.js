// What comes in: sources, the rules that events meet, and the events that came to nothing.

import { foreign, h } from './elements.js';
import { clip, clock, count, milliseconds, short } from './format.js';
import { Report, badge, figure, panel, table } from './parts.js';

export class StreamsPage {
  title = 'Streams';

  constructor(session, changed) {
    this.report = new Report(session, 'streams', changed);
  }

  draw() {
    return this.report.missing() ?? [this.sources(), this.rules(), this.letters()];
  }

  sources() {
    const totals = this.report.data?.totals ?? {};
    const columns = [
      { name: 'source', cell: (each) => foreign(clip(each.name)) },
      { name: 'state', cell: (each) => badge(each.state) },
      { name: 'connections', number: true, cell: (each) => count(each.connections) },
      { name: 'events', number: true, cell: (each) => count(each.events) },
      { name: 'events/s', number: true, cell: (each) => short(each.events_per_s) },
      { name: 'dropped/s', number: true, cell: (each) => short(each.dropped_per_s) },
      { name: 'lag', number: true, cell: (each) => milliseconds(each.lag_ms) },
    ];
    const named = (members) => Object.entries(members ?? {}).map(([name, many]) => `${count(many)} ${name}`).join(', ');
    return panel(
      'Rates',
      table('Sources', columns, this.report.list('sources'), { key: (each) => each.name, empty: 'No source is configured.' }),
      h(
        'dl',
        { class: 'figures' },
        figure('operations/s', short(totals.operations_per_s)),
        figure('saved by folding/s', short(totals.coalesced_per_s)),
        figure('operations', named(totals.operations) || 'none yet'),
        figure('dropped', named(totals.dropped) || 'none'),
        figure('not decodable', count(totals.undecodable)),
      ),
    );
  }

  rules() {
    const columns = [
      { name: 'event', cell: (each) => foreign(clip(each.event)) },
      { name: 'does', wide: true, cell: (each) => (Array.isArray(each.rules) ? each.rules : []).map((rule) => h('code', { class: 'rule' }, foreign(clip(JSON.stringify(rule), 600)))) },
    ];
    const groups = new Map();
    for (const each of this.report.list('rules')) {
      const place = JSON.stringify([each.source, each.channel]);
      groups.set(place, [...(groups.get(place) ?? []), each]);
    }
    return panel(
      'Rules',
      [...groups].map(([place, [first, ...rest]]) =>
        h(
          'section',
          { class: 'group', key: place },
          h('h3', {}, foreign(clip(first.source)), h('span', { class: 'muted' }, first.channel === null ? ' · any channel' : ' · channel '), first.channel !== null && foreign(clip(first.channel), { class: 'mono' })),
          table(`Rules of ${clip(first.source, 60)} ${clip(first.channel ?? 'any channel', 60)}`, columns, [first, ...rest], { key: (each) => each.event, empty: '' }),
        ),
      ),
      !groups.size && h('p', { class: 'muted empty' }, 'No stream is configured.'),
    );
  }

  letters() {
    const found = this.report.list('dead_letters');
    const columns = [
      { name: 'time', cell: (each) => clock(each.time) },
      { name: 'source', cell: (each) => foreign(clip(each.source)) },
      { name: 'event', cell: (each) => foreign(clip(each.event ?? '–')) },
      { name: 'reason', cell: (each) => badge(each.reason, 'warning') },
      { name: 'detail', wide: true, cell: (each) => [foreign(clip(each.detail ?? '', 200)), each.sample && h('code', { class: 'rule' }, foreign(clip(each.sample, 256)))] },
    ];
    return panel(
      'Dead letters',
      h('p', { class: 'muted' }, `Events that came to nothing, a sample of each kind; the newest ${count(found.length)} of ${count(this.report.data?.dead_letters_kept)} that are kept.`),
      table('Dead letters', columns, found, { key: (each) => `${each.time} ${each.source} ${each.reason} ${each.sample}`, empty: 'Every event came to something.' }),
    );
  }

  close() {
    this.report.close();
  }
}
