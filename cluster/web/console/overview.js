// How the cluster is, at a glance: rates, ages, load, and every part of it.

import { bar, chart } from './chart.js';
import { foreign, h } from './elements.js';
import { NONE, bytes, clip, count, duration, isNumber, milliseconds, percent, short } from './format.js';
import { badge, figure, panel, refused, table } from './parts.js';

export class OverviewPage {
  title = 'Overview';

  constructor(session) {
    this.of = session;
  }

  draw() {
    const { overview, isAdmin, refusal } = this.of;
    if (isAdmin === false) return refused(refusal);
    if (overview === undefined) return h('p', { class: 'panel muted' }, 'Waiting for the cluster to say how it is…');
    return [charts(overview), shards(overview), sources(overview), gateways(overview), others(overview)];
  }
}

/** The newest number of the last ten points: in a quiet second there is none. */
function lately(values) {
  return Array.isArray(values) ? values.slice(-10).findLast(isNumber) : undefined;
}

function rows(overview, name) {
  const found = overview?.[name];
  return Array.isArray(found) ? found.filter((each) => each !== null && typeof each === 'object') : [];
}

function charts(overview) {
  const history = overview?.history ?? {};
  const now = overview?.now ?? {};
  const past = Array.isArray(history.time) && history.time.length > 1 ? `last ${duration(history.time.at(-1) - history.time[0])}` : 'just begun';
  const card = (name, shown, series, format, legend) =>
    h(
      'section',
      { class: 'panel chart-card', key: name },
      h('h2', {}, name),
      h('p', { class: 'big' }, shown),
      chart(series, { label: `${name}, ${past}: now ${shown}`, format }),
      h('p', { class: 'chart-foot muted' }, legend ?? past),
    );
  return h(
    'div',
    { class: 'charts' },
    card('Events per second', short(now.events), [{ values: history.events }], short),
    card('Changes delivered per second', short(now.changes), [{ values: history.changes }], short),
    card(
      'Age of changes',
      `${milliseconds(lately(history.age_p50))} · ${milliseconds(lately(history.age_p99))}`,
      [{ values: history.age_p50 }, { values: history.age_p99 }],
      milliseconds,
      h('span', {}, h('span', { class: 'key key-0' }, 'median'), h('span', { class: 'key key-1' }, '99th percentile')),
    ),
    card('CPU', isNumber(now.cores) ? `${now.cores.toFixed(2)} cores` : NONE, [{ values: history.cores }], (value) => `${value} cores`),
  );
}

function shards(overview) {
  const found = rows(overview, 'shards');
  const total = found.reduce((sum, each) => sum + (isNumber(each.keys) ? each.keys : 0), 0);
  return panel(
    `Shards · ${count(total)} entries`,
    h(
      'ul',
      { class: 'tiles' },
      found.map((each) =>
        h(
          'li',
          { class: 'tile', key: each.id },
          h('h3', {}, `shard-${each.id}`, ' ', each.role ? badge(each.role) : badge('no answer', 'bad')),
          h('p', { class: 'load' }, bar(each.load, `load of shard-${each.id}`), h('span', {}, `${percent(each.load)} of a core`)),
          h(
            'dl',
            {},
            figure('entries', count(each.keys)),
            figure('size', bytes(each.bytes)),
            figure('watches', count(each.subscribers)),
            figure('lag', milliseconds(each.lag_ms)),
            isNumber(each.mutations) && each.mutations > 0 && figure('mutations', count(each.mutations)),
            each.standby !== null && each.standby !== undefined && figure('standby', each.standby ? 'has everything' : 'is behind'),
            figure('memory', bytes(each.resident_bytes)),
          ),
        ),
      ),
    ),
  );
}

function sources(overview) {
  const found = rows(overview, 'sources');
  const columns = [
    { name: 'source', cell: (each) => foreign(clip(each.name)) },
    { name: 'state', cell: (each) => badge(each.state) },
    { name: 'events/s', number: true, cell: (each) => short(each.events_per_s) },
    { name: 'dropped/s', number: true, cell: (each) => short(each.dropped_per_s) },
    { name: 'lag', number: true, cell: (each) => milliseconds(each.lag_ms) },
    { name: 'reconnects', number: true, cell: (each) => count(each.reconnects) },
    ...(found.some((each) => each.reason) ? [{ name: 'why', cell: (each) => (each.reason ? foreign(clip(each.reason)) : '') }] : []),
  ];
  return panel('Sources', table('Sources', columns, found, { key: (each) => each.name, empty: 'No source is configured.' }));
}

function gateways(overview) {
  const columns = [
    { name: 'gateway', cell: (each) => [`gateway-${each.id} `, each.draining ? badge('draining') : null] },
    { name: 'address', cell: (each) => foreign(clip(each.address ?? NONE)) },
    { name: 'sessions', number: true, cell: (each) => count(each.sessions) },
    { name: 'slow', number: true, cell: (each) => count(each.degraded) },
    { name: 'changes/s', number: true, cell: (each) => short(each.changes_per_s) },
    { name: 'load', number: true, cell: (each) => percent(each.load) },
    { name: 'memory', number: true, cell: (each) => bytes(each.resident_bytes) },
  ];
  return panel('Gateways', table('Gateways', columns, rows(overview, 'gateways'), { key: (each) => each.id, empty: 'No gateway answers.' }));
}

function others(overview) {
  const found = [
    ...rows(overview, 'ingestors').map((each) => ({ ...each, actor: `ingestor-${each.id}` })),
    ...rows(overview, 'coordinators').map((each) => ({ ...each, actor: `coordinator-${each.id}` })),
  ];
  const columns = [
    { name: 'actor', cell: (each) => each.actor },
    { name: 'load', number: true, cell: (each) => percent(each.load) },
    { name: 'memory', number: true, cell: (each) => bytes(each.resident_bytes) },
    { name: 'node', cell: (each) => foreign(clip(String(each.node ?? NONE), 12)) },
  ];
  const settled = Object.entries(overview?.mutations?.settled ?? {}).map(([status, many]) => `${count(many)} ${status}`);
  return h(
    'div',
    { class: 'pair' },
    panel('Ingestors and coordinators', table('Ingestors and coordinators', columns, found, { key: (each) => each.actor, empty: 'None answers.' })),
    panel(
      'Writes and presence',
      h(
        'dl',
        { class: 'figures' },
        figure('mutations that wait', count(overview?.mutations?.pending)),
        figure('settled', settled.join(', ') || NONE),
        figure('present now', count(overview?.presence_members)),
        figure('version', clip(String(overview?.version ?? NONE), 40)),
      ),
    ),
  );
}
