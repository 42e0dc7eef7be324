// Who is where: topics with the most members, and the members of one, live.

import { foreign, h } from './elements.js';
import { clip, count, duration, isNumber } from './format.js';
import { Report, panel, table } from './parts.js';

const SHOWN = 200;

export class PresencePage {
  title = 'Presence';

  constructor(session, changed) {
    this.of = session;
    this.changed = changed;
    this.report = new Report(session, 'presence', changed);
    this.topic = null;
    this.room = null;
    this.fault = null;
  }

  follow(query) {
    const topic = query.get('topic');
    if (topic === this.topic) return;
    this.leave();
    this.topic = topic;
    if (topic === null) return;
    try {
      this.room = this.of.harbor.presence(topic, { watch: 'members' }, () => this.changed());
    } catch (error) {
      this.fault = error;
    }
  }

  draw() {
    const topics = this.report.list('topics');
    const columns = [
      { name: 'topic', wide: true, cell: (each) => (each.tenant ? foreign(clip(each.topic)) : h('a', { href: `#/presence?${new URLSearchParams({ topic: String(each.topic) })}`, 'aria-current': each.topic === this.topic && 'true' }, foreign(clip(each.topic)))) },
      ...(topics.some((each) => each.tenant) ? [{ name: 'tenant', cell: (each) => foreign(clip(each.tenant || '–')) }] : []),
      { name: 'members', number: true, cell: (each) => count(each.members) },
    ];
    const listed = this.report.missing() ?? [
      h('p', { class: 'muted' }, `Topics with somebody in them: ${count(this.report.data?.count)}. Those with the most members are listed.`),
      table('Topics', columns, topics, { key: (each) => `${each.tenant}\n${each.topic}`, empty: 'Nobody is present anywhere.' }),
    ];
    return [panel('Topics', listed), this.topic !== null && this.members()];
  }

  members() {
    const now = Date.now() + (this.of.harbor.clockOffset || 0);
    const members = this.room ? [...this.room.members.values()] : [];
    const columns = [
      { name: 'subject', cell: (each) => foreign(clip(each.subject)) },
      { name: 'member', cell: (each) => foreign(clip(each.member, 16), { class: 'mono' }) },
      { name: 'last active', cell: (each) => (isNumber(each.last_active) ? `${duration(now - each.last_active)} ago` : '–') },
      { name: 'state', wide: true, cell: (each) => h('code', { class: 'rule' }, foreign(clip(JSON.stringify(each.state), 400))) },
    ];
    return h(
      'section',
      { class: 'panel', 'aria-live': 'off' },
      h('h2', {}, 'Members of ', foreign(clip(this.topic)), ` · ${count(this.room?.count)}`),
      this.fault && h('p', { class: 'fault' }, String(this.fault.message ?? this.fault)),
      members.length > SHOWN && h('p', { class: 'muted' }, `The first ${count(SHOWN)} are listed.`),
      table('Members', columns, members.slice(0, SHOWN), { key: (each) => each.member, empty: 'Nobody is there.' }),
    );
  }

  leave() {
    this.room?.leave();
    this.room = null;
    this.fault = null;
  }

  close() {
    this.leave();
    this.report.close();
  }
}
