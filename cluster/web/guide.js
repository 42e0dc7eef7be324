// The names of the integration guide, over a Harbor client: what used to patch a cache by hand is a few lines, or nothing.
// What each is for stands in docs/browser.md. Free of frameworks; react.js has hooks of the same names.

import { applyOperation } from './client.js';

/** Keys of a kind of thing, as `cluster.app.keys` makes them. */
export const createQueryKeyFactory = (name) => ({
  all: () => [name],
  lists: () => [name, 'list'],
  list: (filters) => (filters === undefined ? [name, 'list'] : [name, 'list', filters]),
  details: () => [name, 'detail'],
  detail: (id) => [name, 'detail', id],
  key: (...parts) => [name, ...parts],
});

const MODES = {
  replace: (value) => ({ set: { value } }),
  merge: (value) => ({ merge: { value, when_missing: 'create' } }),
  append: (item, more) => ({ append: { item, ...more, when_missing: 'create' } }),
  prepend: (item, more) => ({ prepend: { item, ...more, when_missing: 'create' } }),
  upsert: (item, more) => ({ append: { item, ...more, when_missing: 'create' } }),
};

/** Put what an event brought into a query: for queries that the cluster does not serve. An item whose `by` is there is replaced in place. */
export function streamToQueryCache(queryClient, { queryKey, data, mode = 'replace', maxItems, by = 'id' }) {
  const make = MODES[mode];
  if (!make) throw new TypeError(`mode is one of ${Object.keys(MODES).join(', ')}, got ${mode}`);
  const operation = make(data, { by, ...(maxItems && { max_items: maxItems }) });
  queryClient.setQueryData(queryKey, (old) => applyOperation(old, operation));
}

/** Reads and writes of a declared resource. */
export function createResourceClient({ harbor, resource }) {
  const keys = createQueryKeyFactory(resource);
  const write = (name) => (variables, options) => harbor.mutate(`${resource}.${name}`, variables, options).settled;
  return {
    keys,
    list: (filters = {}, options) => harbor.fetch(keys.list(filters), options),
    get: (id, options) => harbor.fetch(keys.detail(id), options),
    create: write('create'),
    update: (id, values, options) => write('update')({ ...values, id }, options),
    delete: (id, values, options) => write('delete')({ ...values, id }, options),
  };
}

/** Whether there is a connection, as a store: `current`, `subscribe`. */
export const onlineStatus = (harbor) => ({
  get current() {
    return harbor.state === 'connected';
  },
  subscribe: (listener) => harbor.on('state', (state) => listener(state === 'connected')),
});

const PRESENCE = 'presence:';

/**
 * What happens on a channel, as callbacks.
 *
 * A channel is a query key, or a text: then the entry `["channel", TEXT]`. `events.update` gets each new value. Where the value is a list of
 * `{event, data, id}`, which rules of the cluster append to, `events[NAME]` gets the data of each item that is new. `presence:update` and
 * `presence:leave` are about the topic of the channel's name.
 */
export function realtimeStream({ harbor, channel, events = {}, enabled = true, transform = (item) => item, replay = false, ...on }) {
  const stops = [];
  const { update, removed, ...named } = events;
  const isPresence = (name) => name.startsWith(PRESENCE);
  let room;
  let isOver = false;
  const join = (listener) => {
    room = harbor.presence(channel, {}, listener);
    stops.push(() => room.leave());
  };

  if (enabled && Object.keys(events).some((name) => !isPresence(name))) {
    const key = typeof channel === 'string' ? ['channel', channel] : channel;
    let seen = replay ? new Set() : null;
    const hear = ({ type, entry, error }) => {
      if (type === 'refused') on.onError?.(error);
      else if (type === 'removed') removed?.(entry);
      else if (type === 'ready') seen ??= new Set();
      if (type !== 'data') return;
      update?.(entry.data, entry);
      if (!Array.isArray(entry.data)) return;
      const now = new Set(entry.data);
      // What was not touched is the same object still; in a new snapshot all are others, of which those that equal one before were heard.
      const gone = new Set([...(seen ?? [])].filter((item) => !now.has(item)).map((item) => JSON.stringify(item)));
      for (const item of seen ? now : []) {
        if (seen.has(item) || gone.has(JSON.stringify(item))) continue;
        const event = transform(item);
        if (Object.hasOwn(named, event?.event)) named[event.event](event.data, event);
      }
      seen = now;
    };
    const subscription = harbor.subscribe({ key }, hear);
    stops.push(() => subscription.unsubscribe());
  }

  if (enabled && Object.keys(events).some(isPresence)) {
    let known = new Map();
    join(({ members }) => {
      for (const [id, member] of members) if (known.get(id) !== member) named['presence:update']?.(member);
      for (const [id, member] of known) if (!members.has(id)) named['presence:leave']?.(member);
      known = new Map(members);
    });
  }

  let last = harbor.state;
  let wasConnected = last === 'connected';
  if (enabled) {
    if (wasConnected) on.onConnect?.();
    stops.push(
      harbor.on('state', (state, reason) => {
        if (state === 'connected') (wasConnected ? on.onReconnected : on.onConnect)?.();
        else if (last === 'connected') on.onDisconnect?.(reason);
        if (state === 'reconnecting') on.onReconnecting?.();
        if (reason) on.onError?.(reason);
        wasConnected ||= state === 'connected';
        last = state;
      }),
    );
  }
  return {
    get connectionState() {
      return harbor.state;
    },
    /** Our state in the channel's topic, or a mutation. */
    send(name, data) {
      if (!isPresence(name)) return harbor.mutate(name, data);
      if (isOver) return;
      if (!room) join();
      room.update(data);
    },
    unsubscribe() {
      isOver = true;
      stops.splice(0).forEach((stop) => stop());
    },
  };
}
