// Harbor Cluster in a browser: live entries, mutations and presence, and `attach` for a TanStack QueryClient.
// What it does stands in docs/browser.md, its types in client.d.ts. No dependencies, no build.

export class HarborError extends Error {
  constructor(code, message, temporary = false, details) {
    super(message);
    Object.assign(this, { name: 'HarborError', code, temporary, details });
  }
}

const failure = ({ code, message, temporary, details }) => new HarborError(code, message, temporary, details);
const refusal = (re, error) => ({ code: 'UNAVAILABLE', temporary: true, ...error, type: 'error', re, message: error.message });
const passes = ({ temporary, code }) => temporary || /LIMITED|TOO_MANY/.test(code);
const pause = ({ details }) => new Promise((done) => setTimeout(done, details?.retry_after_ms ?? 1000));

// --- keys ------------------------------------------------------------------------------------------------------------

const mutationAt = (id) => `/v1/mutations/${encodeURIComponent(id)}`;

const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

export const hashKey = (key) =>
  JSON.stringify(key, (_, value) =>
    isObject(value) ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value,
  );

export function matches(prefix, key) {
  if (prefix === key) return true;
  return Object(prefix) === prefix && Object(key) === key && Object.keys(prefix).every((name) => matches(prefix[name], key[name]));
}

// --- values: they are never edited, and what stays the same keeps its identity ---------------------------------------

const put = (object, name, value) =>
  name === '__proto__'
    ? Object.defineProperty(object, name, { value, enumerable: true, writable: true, configurable: true })
    : (object[name] = value);

export function share(previous, next) {
  if (previous === next) return previous;
  const isArray = Array.isArray(next);
  if (isArray ? !Array.isArray(previous) : !isObject(previous) || !isObject(next)) return next;
  const names = Object.keys(next);
  const copy = isArray ? [] : {};
  let same = Object.keys(previous).length === names.length;
  for (const name of names) {
    const has = Object.hasOwn(previous, name);
    const value = has ? share(previous[name], next[name]) : next[name];
    put(copy, name, value);
    same &&= has && value === previous[name];
  }
  return same ? previous : copy;
}

const equal = (a, b) => a === b || share(a, b) === a;

function tokens(pointer) {
  if (pointer === '') return [];
  if (pointer[0] !== '/' || /~(?![01])/.test(pointer)) throw new TypeError(`not a JSON Pointer: ${pointer}`);
  return pointer.slice(1).split('/').map((token) => token.replace(/~1/g, '/').replace(/~0/g, '~'));
}

function index(array, token, end) {
  if (token === '-') token = `${array.length}`;
  if (!/^(0|[1-9]\d*)$/.test(token) || +token > end) throw new TypeError(`no item ${token}`);
  return +token;
}

function step(value, token) {
  if (Array.isArray(value)) return value[index(value, token, value.length - 1)];
  if (!isObject(value) || !Object.hasOwn(value, token)) throw new TypeError(`no member ${token}`);
  return value[token];
}

const resolve = (value, path) => path.reduce(step, value);

/** A copy in which `change(container, token)` was done at `path`. Containers in `own` are nobody else's, and edited. */
function edited(value, path, change, own, depth = 0) {
  if (Object(value) !== value) throw new TypeError(`${path[depth]} leads into no container`);
  const copy = own.has(value) ? value : Array.isArray(value) ? value.slice() : { ...value };
  own.add(copy);
  if (depth === path.length - 1) change(copy, path[depth]);
  else put(copy, path[depth], edited(step(value, path[depth]), path, change, own, depth + 1));
  return copy;
}

const adds = (value) => (container, token) => {
  if (Array.isArray(container)) container.splice(index(container, token, container.length), 0, value);
  else put(container, token, value);
};

const removes = (container, token) => {
  step(container, token);
  if (Array.isArray(container)) container.splice(+token, 1);
  else delete container[token];
};

const replaces = (value) => (container, token) => {
  step(container, token);
  put(container, token, value);
};

export function applyPatch(original, patch) {
  let document = original;
  let own = new Set();
  const at = (path, change, whole) => {
    document = path.length ? edited(document, path, change, own) : whole;
  };
  for (let { op, path: pointer, from, value } of patch) {
    const path = tokens(pointer);
    if (value === undefined && /^(add|replace|test)$/.test(op)) throw new TypeError(`${op} needs a value`);
    if (op === 'add') at(path, adds(value), value);
    else if (op === 'replace') at(path, replaces(value), value);
    else if (op === 'remove') at(path, removes, null);
    else if (op === 'test') {
      if (!equal(resolve(document, path), value)) throw new TypeError(`test of ${pointer} failed`);
    } else if (op === 'copy' || op === 'move') {
      if (op === 'move' && pointer.startsWith(from + '/')) throw new TypeError(`move of ${from} into itself`);
      value = resolve(document, tokens(from));
      if (op === 'move') at(tokens(from), removes, null);
      else own = new Set(); // what stands in two places is edited in neither
      at(path, adds(value), value);
    } else throw new TypeError(`unknown operation ${op}`);
  }
  // In place of a long patch the cluster sends the whole.
  return patch.some(({ path }) => path === '') ? share(original, document) : document;
}

const fits = (where) => (item) =>
  isObject(item) && Object.keys(where).every((name) => Object.hasOwn(item, name) && equal(item[name], where[name]));
const needs = (value, holds) => {
  if (!holds) throw new TypeError(); // for `applyOperation`, which catches it
  return value;
};
const array = (value) => needs(value, Array.isArray(value));
const merged = (old, value) => share(old, needs({ ...old, ...value }, isObject(old) && isObject(value)));

/** What an operation makes of the value at its `at`; undefined: nothing is there. */
const OPERATIONS = {
  set: (_, { value }) => value,
  merge: (old = {}, { value }) => merged(old, value),
  append: (old = [], { max_items: most, ...more }) => {
    const items = OPERATIONS.upsert(old, more);
    return most ? items.slice(-most) : items;
  },
  prepend: (old = [], { item, by = 'id', max_items: most = Infinity }) => {
    const known = OPERATIONS.upsert(old, { item, by });
    return (known.length === old.length ? known : [item, ...old]).slice(0, most);
  },
  upsert: (old = [], { item, by = 'id' }) => {
    const place = item?.[by] == null ? -1 : array(old).findIndex((each) => each?.[by] === item[by]);
    return place < 0 ? [...array(old), item] : old.map((each, n) => (n === place ? item : each));
  },
  merge_where: (old, { where, value }) => array(old).map((item) => (fits(where)(item) ? merged(item, value) : item)),
  remove: (old, { where }) => array(old).filter((item) => !fits(where)(item)),
  increment: (old = 0, { by = 1 }) => needs(old + by, typeof old === 'number'),
};

export function applyOperation(data, operation) {
  const [[kind, args]] = Object.entries(operation);
  const path = tokens(args.at ?? '');
  if (kind === 'delete' && !path.length) return undefined;
  if (data === undefined) {
    if ((args.when_missing ?? (kind === 'set' ? 'create' : 'skip')) !== 'create') return undefined;
    data = args.default;
    if (data === undefined && path.length) data = path.slice(0, -1).reduceRight((inner, name) => ({ [name]: inner }), {});
  }
  try {
    if (kind === 'delete') return edited(data, path, removes, new Set());
    if (!path.length) return share(data, OPERATIONS[kind](data, args));
    const parent = resolve(data, path.slice(0, -1));
    const token = path.at(-1);
    const place = Array.isArray(parent) ? index(parent, token, parent.length) : token;
    const old = Object.hasOwn(parent, place) ? parent[place] : undefined;
    const value = share(old, OPERATIONS[kind](old, args));
    return value === old ? data : edited(data, path, (container) => put(container, place, value), new Set());
  } catch {
    return data; // as on the cluster: an operation that does not fit does nothing
  }
}

// --- subscriptions ---------------------------------------------------------------------------------------------------

/** One subscription of the session: what it holds, and how far it has come. Those of equal keys share it. */
class Feed {
  constructor(harbor, what) {
    Object.assign(this, { harbor, what, isPaused: false });
    this.exact = what.key && hashKey(what.key);
    this.entries = new Map();
    this.handles = new Set();
    this.unseen = new Set();
  }

  /** The messages that continue from where it is, or begin anew. */
  request() {
    const { harbor, token: since } = this;
    harbor.byId.delete(this.id);
    const id = (this.id = harbor.nextId());
    harbor.byId.set(id, this);
    this.refusal = undefined;
    this.continues = since;
    if (!since) this.begin();
    const asked = { type: 'subscribe', id, ...this.what, since };
    return this.isPaused || harbor.isHidden ? [asked, { type: 'pause', id }] : [asked];
  }

  ask() {
    this.harbor.send(...this.request());
  }

  /** All is told anew. Until then what is held goes on being shown. */
  begin() {
    Object.assign(this, { token: undefined, ready: false, unseen: new Set(this.entries.keys()) });
  }

  /** Take a message about it. False: it does not fit what is held. */
  take(message) {
    const { type } = message;
    const hash = this.exact ?? (message.key && hashKey(message.key));
    const held = this.entries.get(hash);
    if (type === 'snapshot') {
      this.unseen.delete(hash);
      this.hold(hash, message, held, {
        base: share(held?.base, message.data),
        version: message.version,
        status: message.status,
        isStale: message.is_stale,
        isOffline: message.is_offline,
        dataUpdatedAt: message.data_updated_at,
        error: message.error,
        lifted: this.harbor.acknowledged(),
      });
    } else if (type === 'change') {
      const version = held?.version ?? 0;
      if (message.from !== version) return message.version <= version;
      let base;
      try {
        base = message.patch ? applyPatch(held.base, message.patch) : share(held?.base, message.data);
      } catch {
        return false;
      }
      const lifted = held?.lifted ?? new Set();
      for (const id of message.mutations ?? []) if (this.harbor.unsettled.has(id)) lifted.add(id);
      const dataUpdatedAt = Date.now() + this.harbor.clockOffset;
      this.hold(hash, message, held, { status: 'success', isStale: false, isOffline: false, error: undefined, base, version: message.version, dataUpdatedAt, lifted });
    } else if (type === 'invalidated') {
      if (held) this.entries.set(hash, { ...held, isStale: true });
      this.emit('invalidated', this.entries.get(hash), message);
      if (held && this.exact) setTimeout(() => this.freshen(hash), 500 + Math.random() * 500);
    } else if (type === 'removed') this.drop(hash, message);
    else if (type === 'reset') {
      if (!message.key) this.begin();
    } else if (type === 'snapshot_end') {
      this.token = message.position;
      for (const gone of this.unseen) this.drop(gone);
      this.unseen.clear();
      this.ready = true;
      this.emit('ready');
    } else if (type === 'position') this.token = message.token;
    return true;
  }

  hold(hash, message, held, news) {
    const entry = { key: message?.key ?? held.key, ...held, ...news };
    entry.data = this.harbor.view(hash, entry.base, entry.lifted);
    this.entries.set(hash, entry);
    this.emit(entry.data === undefined ? 'status' : 'data', entry, message);
  }

  /** What was fetched anew and found unchanged the cluster does not tell: ask. */
  async freshen(hash) {
    if (!this.entries.get(hash)?.isStale || !this.handles.size || this.harbor.isHidden) return;
    const { version, is_stale: isStale } = await this.harbor.get(this.what.key).catch(() => ({}));
    const held = this.entries.get(hash);
    if (held?.isStale && held.version === version && isStale === false) this.hold(hash, null, held, { isStale });
  }

  drop(hash, message) {
    const entry = this.entries.get(hash);
    this.entries.delete(hash);
    if (entry) this.emit('removed', { ...entry, data: undefined }, message);
  }

  /** A mutation begins or ends to lie over an entry. */
  redraw(hash, key) {
    let held = this.entries.get(hash);
    if (!held && hash === this.exact) held = { key, version: 0, status: 'pending', lifted: new Set() };
    if (!held) return;
    const data = this.harbor.view(hash, held.base, held.lifted);
    if (data === held.data) return;
    if (data === undefined && !held.version) this.drop(hash);
    else this.hold(hash, null, held, {});
  }

  emit(type, entry, message) {
    for (const { listener } of [...this.handles]) guarded(listener, { type, entry, message, error: this.refusal });
  }

  refused(error) {
    if (this.continues && error.code === 'BAD_REQUEST') {
      this.token = undefined; // the cluster may have lost what tokens are signed with
      return this.ask();
    }
    if (error.code === 'NOT_FOUND') return; // it was paused, and still waits for a place
    this.refusal = failure(error);
    if (error.code === 'TOO_MANY') return this.handles.forEach((handle) => handle.waits?.()); // until another ends
    if (!passes(error)) return this.emit('refused');
    const { id } = this;
    pause(error).then(() => this.harbor.byId.has(id) && this.ask());
  }
}

const guarded = (listener, ...given) => {
  try {
    listener?.(...given);
  } catch (error) {
    (globalThis.reportError ?? console.error)(error);
  }
};

// --- ways to the gateway: `send(messages)`, `close()`; they tell `opened`, `messages` and `closed` ----------------------

const FRAME = 256 * 1024;

class Socket {
  constructor(harbor, token, on) {
    this.on = on;
    const socket = (this.socket = new harbor.options.WebSocket(harbor.url.replace(/^http/, 'ws') + '/v1/socket', 'harbor.v1'));
    socket.onopen = () => on.opened();
    socket.onmessage = ({ data }) => {
      try {
        on.messages(JSON.parse(data));
      } catch {
        on.closed(1006); // what it said is lost: continue on another
      }
    };
    socket.onclose = ({ code, reason }) => on.closed(code, reason);
    socket.onerror = () => on.closed(1006); // after which Node.js says no more where nobody listens
  }

  send(messages) {
    let frame = [];
    let size = 0;
    const write = () => frame.length && this.socket.readyState === 1 && this.socket.send(`[${frame}]`);
    for (const message of messages) {
      const text = JSON.stringify(message);
      // Half a character, or too much: the gateway's answer would not say which message it is about.
      const code = /[^\\](\\\\)*\\ud/.test(text) ? 'BAD_REQUEST' : text.length > FRAME && new Blob([text]).size > 4 * FRAME - 2 && 'TOO_LARGE';
      if (code) {
        setTimeout(() => this.on.messages([refusal(message.id, new HarborError(code, 'it cannot be sent'))]));
        continue;
      }
      if (frame.length === 500 || size + text.length > FRAME) {
        write();
        frame = [];
        size = 0;
      }
      frame.push(text);
      size += text.length;
    }
    write();
  }

  close() {
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close(1000);
  }
}

const streamOf = (subs) => {
  const query = new URLSearchParams([['mode', 'patch']]);
  for (const { key, prefix } of subs) query.append(key ? 'key' : 'prefix', JSON.stringify(key ?? prefix));
  return `/v1/stream?${query}`;
};

/** Server-sent events for what comes, HTTP for what is asked. The stream is opened anew when what it is about changes. */
class Stream {
  constructor(harbor, token, on) {
    Object.assign(this, { harbor, token, on, subs: new Map() });
    harbor.check(token).then((code) => {
      if (!code || code === 'FORBIDDEN') on.opened();
      else this.end(code === 'UNAUTHORIZED' ? 3500 : 1006);
    });
  }

  fetch(path, init) {
    return this.harbor.request(path, init, this.token);
  }

  end(code, reason) {
    if (this.isClosed) return;
    this.close();
    this.on.closed(code, reason);
  }

  close() {
    this.isClosed = true;
    this.stop?.abort();
    this.stop = undefined;
  }

  send(messages) {
    const tell = (...said) => this.isClosed || this.on.messages(said);
    for (const message of messages) {
      const { type, id } = message;
      if (type === 'subscribe') this.subs.set(id, message);
      else if (type === 'unsubscribe') this.subs.delete(id);
      else if (type === 'pause' || type === 'resume') (this.subs.get(id) ?? {}).isPaused = type === 'pause';
      else {
        this.ask(message, tell).then(
          (result) => tell({ type: 'result', re: id, ...result }),
          (error) => (error.code === 'UNAUTHORIZED' ? this.end(3500, error.message) : tell(refusal(id, error))),
        );
        continue;
      }
      if (!this.opening) this.opening = setTimeout(() => this.open());
    }
  }

  async ask({ type, key, topic, ...more }, tell) {
    const at = `/v1/entries?key=${encodeURIComponent(JSON.stringify(key))}`;
    switch (type) {
      case 'hello':
        return tell({ type: 'welcome', session: '', server_time: Date.now() + this.harbor.clockOffset, ping_interval_ms: 25e3 });
      case 'ping':
        await this.fetch('/healthz');
        return tell({ type: 'pong' });
      case 'auth':
        this.token = more.token;
        return void this.open();
      case 'get':
        return { entry: await this.fetch(at) };
      case 'set': {
        const { data: body, id, ...query } = more;
        return this.fetch(`${at}&${new URLSearchParams(without(query))}`, { method: 'PUT', body });
      }
      case 'invalidate':
        return this.fetch('/v1/invalidate', { method: 'POST', body: { key, exact: more.exact } });
      case 'undo':
        tell({ type: 'mutation', mutation_id: more.mutation_id, ...(await this.fetch(mutationAt(more.mutation_id), { method: 'DELETE' })) });
        return {};
      case 'mutate': {
        const body = { ...more, id: more.mutation_id, mutation_id: undefined };
        const begun = await this.fetch('/v1/mutations', { method: 'POST', body });
        this.follow(begun, body, tell);
        return { mutation_id: begun.id };
      }
      case 'leave':
        return {};
      default:
        throw new HarborError('UNSUPPORTED', `${type} needs a WebSocket`);
    }
  }

  /** Tell how a mutation goes: the same id asked for again acts once. */
  async follow(now, body, tell) {
    while (!this.isClosed) {
      const { id: mutation_id, ...rest } = now;
      tell({ type: 'mutation', mutation_id, ...rest });
      if (SETTLED.has(now.status)) return;
      try {
        if (now.status === 'scheduled') {
          const { due_at: until_ms } = await this.fetch(mutationAt(mutation_id));
          const message = 'the mutation can be undone';
          tell({ type: 'notice', level: 'info', code: 'undo_available', message, mutation_id, until_ms });
        }
        now = await this.fetch('/v1/mutations?wait=true', { method: 'POST', body });
      } catch (error) {
        if (error.code && !passes(error)) return; // the next connection asks again
        await pause(error);
      }
    }
  }

  async open() {
    this.opening = 0;
    this.stop?.abort();
    const stop = (this.stop = new AbortController());
    const subs = [...this.subs.values()].filter((sub) => !sub.isPaused);
    if (!subs.length || this.isClosed) return;
    const { harbor } = this;
    const ask = (some, headers) => harbor.request(streamOf(some), { headers, signal: stop.signal, raw: true }, this.token);
    const goesOn = harbor.streamed?.path === streamOf(subs) && subs.every(({ id }) => harbor.byId.get(id)?.token);
    const since = goesOn && harbor.streamed.token;
    try {
      const headers = { Accept: 'text/event-stream', ...(since && { 'Last-Event-ID': since }) };
      const response = await ask(subs, headers);
      if (!since) {
        harbor.streamed = { path: streamOf(subs) };
        this.on.messages(subs.map(({ id }) => ({ type: 'reset', sub: id })));
      }
      await this.read(response.body.pipeThrough(new TextDecoderStream()).getReader(), subs, since);
      if (this.stop === stop) this.end(1006);
    } catch (error) {
      if (this.stop !== stop) return;
      if (error.code === 'UNAUTHORIZED') return this.end(3500, error.message);
      if (!error.code || error.temporary) return this.end(1006);
      // It is refused for its token, or for some of them: how many of the first are not?
      let good = 0;
      for (let bad = subs.length + 1; bad - good > 1; ) {
        const half = (good + bad) >> 1;
        const fault = await ask(subs.slice(0, half)).then(({ body }) => body.cancel(), (each) => each);
        if (fault) [bad, error] = [half, fault];
        else good = half;
      }
      if (this.stop !== stop) return;
      harbor.streamed = undefined;
      for (const { id } of subs.slice(good, passes(error) ? undefined : good + 1)) {
        this.subs.delete(id);
        this.on.messages([refusal(id, error)]);
      }
      this.open(); // without them
    }
  }

  async read(reader, subs, isWhole) {
    let ends = 0;
    for (let text = ''; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (text + value).split('\n\n');
      text = events.pop();
      const said = [];
      for (const event of events) {
        const fields = Object.fromEntries(event.split('\n').map((line) => line.split(/: ?(.*)/s)));
        if (fields.data) {
          const message = { type: fields.event, ...JSON.parse(fields.data) };
          if (message.type === 'snapshot_end') ends++;
          else if (message.type === 'reset' && !message.key) isWhole = ends = 0;
          said.push(...this.about(message, subs));
        }
        if (!fields.id) continue;
        const { streamed } = this.harbor;
        streamed.token = fields.id;
        // After a reset there are tokens, which begin again, before all was told.
        if (isWhole || ends < (streamed.ends || 1)) continue;
        // The token is of the whole stream; a socket refuses this one, and the subscription begins anew.
        said.push(...subs.map(({ id }) => ({ type: 'snapshot_end', sub: id, position: 'stream' })));
        isWhole = streamed.ends = ends;
      }
      this.on.messages(said); // and by an empty one that it lives
    }
  }

  about(message, subs) {
    if (message.code === 'unauthorized') this.end(3500, message.message);
    if (message.type === 'notice') return [message];
    if (message.type === 'snapshot_end') return []; // of one of them: which is not said
    return subs
      .filter(({ key, prefix }) => !message.key || (key ? hashKey(key) === hashKey(message.key) : matches(prefix, message.key)))
      .map(({ id }) => ({ ...message, sub: id }));
  }
}

// --- the queue of what was not taken by the cluster yet -----------------------------------------------------------------

const memory = () => {
  const items = new Map();
  return { all: async () => [...items.values()], put: async (item) => items.set(item.id, item), delete: async (id) => items.delete(id) };
};

const database = (name) => {
  const wait = (request) =>
    new Promise((done, fail) => {
      request.onsuccess = () => done(request.result);
      request.onerror = () => fail(request.error);
    });
  const open = () => {
    const opening = indexedDB.open(name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore('mutations', { keyPath: 'id' });
    return wait(opening);
  };
  let opened;
  const on = async (act, ...given) => wait((await (opened ??= open())).transaction('mutations', 'readwrite').objectStore('mutations')[act](...given));
  return { all: () => on('getAll'), put: (item) => on('put', item), delete: (id) => on('delete', id) };
};

// --- the client -----------------------------------------------------------------------------------------------------------

const SETTLED = new Set(['success', 'error', 'cancelled']);
const REMEMBERED = 8 * 60e3; // the cluster knows a settled mutation's id for ten minutes

class Harbor {
  constructor(options) {
    const { url = globalThis.location?.origin, token, account = token ? null : '' } = options;
    this.url = `${url}`.replace(/^ws/, 'http').replace(/\/+$/, '');
    const fetched = globalThis.fetch?.bind(globalThis);
    this.options = { transport: 'auto', pauseHiddenAfter: 10e3, linger: 1000, maxBackoff: 30e3, optimistic: {}, fetch: fetched, WebSocket: globalThis.WebSocket, ...options };
    const isKept = account !== null && globalThis.indexedDB;
    this.storage = options.storage ?? (isKept ? database(`harbor ${this.url} ${account}`) : memory());
    Object.assign(this, { state: 'connecting', session: '', clockOffset: 0, lastId: 0, lastAt: 0, failures: 0, interval: 25e3, wanted: true });
    this.listeners = { state: new Set(), notice: new Set(), mutation: new Set(), message: new Set() };
    this.feeds = new Map();
    this.byId = new Map();
    this.requests = new Map();
    this.unsettled = new Map();
    this.rooms = new Map();
    this.queryFn = ({ queryKey, signal }) => this.fetch(queryKey, { signal });
    this.transport = this.options.transport === 'sse' || !this.options.WebSocket ? 'sse' : 'websocket';
    this.over = new AbortController();
    const listen = (target, type, act) => target?.addEventListener?.(type, act, this.over);
    listen(globalThis, 'online', () => this.hurry());
    listen(globalThis, 'offline', () => this.link || this.become('disconnected'));
    listen(globalThis.document, 'visibilitychange', () => this.seen(document.visibilityState !== 'hidden'));
    this.restored = this.restore();
    this.open();
  }

  nextId() {
    return ++this.lastId;
  }

  on(event, listener) {
    this.listeners[event].add(listener);
    return () => this.listeners[event].delete(listener);
  }

  tell(event, ...given) {
    for (const listener of [...this.listeners[event]]) guarded(listener, ...given);
  }

  // --- the connection -------------------------------------------------------------------------------------------------

  become(state, reason) {
    if (state === this.state) return;
    this.state = state;
    this.tell('state', state, reason);
  }

  async open() {
    clearTimeout(this.timer);
    const attempt = (this.attempt = {});
    this.welcomed = false;
    let token;
    try {
      const { token: source } = this.options;
      token = this.given ?? (typeof source === 'function' ? await source() : source);
    } catch {
      this.failures++;
      return attempt === this.attempt && this.again();
    }
    if (attempt !== this.attempt || !this.wanted) return;
    this.token = token ?? undefined;
    let isOpen;
    const on = {
      opened: () => {
        if (attempt !== this.attempt) return;
        isOpen = this.isOpen = true;
        this.worked ||= this.transport === 'websocket';
        this.hello();
      },
      messages: (messages) => attempt === this.attempt && this.take(messages),
      closed: (code, reason) => attempt === this.attempt && this.closed(code, reason, isOpen),
    };
    try {
      this.link = new (this.transport === 'sse' ? Stream : Socket)(this, this.token, on);
    } catch {
      on.closed(1006); // a policy of the page forbids it
    }
  }

  /** Say everything that a new connection has to know. */
  hello() {
    const { token, resume } = this;
    this.doubted = false;
    this.heard = Date.now();
    this.watch = setInterval(() => this.look(), 1000);
    const said = token || resume || this.transport === 'sse' ? [{ type: 'hello', token, resume }] : [];
    for (const feed of this.feeds.values()) said.push(...feed.request());
    for (const { message } of this.requests.values()) said.push(message);
    for (const room of this.rooms.values()) said.push(room.request());
    this.link.send(said);
  }

  /** Whether the gateway is still there, and has said who we are. */
  look() {
    const silent = Date.now() - this.heard;
    if (!this.welcomed && !this.token && !this.doubted && silent > 1000) {
      const { attempt } = this;
      this.doubted = this.check().then((code) => code === 'UNAUTHORIZED' && attempt === this.attempt && this.closed(3504, '', true));
    } else if (silent > this.interval + 10e3) this.closed(3012, '', true);
    else if (silent > this.interval && !this.pinged) {
      this.pinged = true;
      this.link.send([{ type: 'ping' }]);
    }
  }

  /** Part from a connection, without saying so. */
  part() {
    clearInterval(this.watch);
    const { link, isOpen } = this;
    this.attempt = this.link = this.isOpen = undefined;
    this.session = '';
    this.since ??= Date.now();
    for (const room of this.rooms.values()) room.rest();
    link?.close();
    for (const [id, { message, fail }] of this.requests) {
      if (!isOpen || /^(get|invalidate|undo|leave)$/.test(message.type)) continue; // it is asked again on the next
      this.requests.delete(id);
      fail(new HarborError('UNAVAILABLE', 'the connection was lost', true));
    }
    this.sending = null;
    for (const mutation of this.unsettled.values()) mutation.isHeard = false;
  }

  closed(code, reason, isOpen) {
    this.part();
    if (code === 3500 || code === 3504) {
      const isFresh = typeof this.options.token === 'function' && !this.refused;
      this.refused = true;
      this.given = undefined;
      if (isFresh) return this.again(0);
      return this.end('needs-auth', new HarborError('UNAUTHORIZED', reason || 'other credentials are needed'));
    }
    if (code >= 3500 && code < 4000) {
      this.wanted = false;
      return this.end('closed', new HarborError(code === 3503 ? 'FORBIDDEN' : 'UNAVAILABLE', reason || `closed with ${code}`));
    }
    if (!this.welcomed) this.failures++;
    // Two failures of a socket that has never been open: something on the way may let no WebSocket through.
    if (this.options.transport === 'auto' && this.options.WebSocket && (isOpen || (!this.worked && this.failures % 2 === 0))) {
      this.transport = isOpen || this.transport === 'sse' ? 'websocket' : 'sse';
    }
    this.again(this.drained);
    this.drained = undefined;
  }

  /** Come back: after `ms` where the gateway said so, else at random within a time that doubles. */
  again(ms) {
    if (!this.wanted) return;
    this.become(globalThis.navigator?.onLine === false ? 'disconnected' : 'reconnecting');
    const longest = Math.min(this.options.maxBackoff, 500 * 2 ** Math.min(this.failures, 10));
    this.timer = setTimeout(() => this.open(), ms ?? 50 + Math.random() * longest);
  }

  /** There is no connection until something is done about it: nobody is left waiting. */
  end(state, error) {
    this.reason = error;
    this.become(state, error);
    for (const { fail } of this.requests.values()) fail(error);
    this.requests.clear();
    for (const feed of this.feeds.values()) {
      feed.refusal = error;
      feed.emit('refused');
    }
  }

  /** The network is back, or the page: do not wait any longer. */
  hurry() {
    if (!this.wanted || this.state === 'needs-auth') return;
    if (!this.link) return this.open();
    if (this.welcomed) this.heard = Math.min(this.heard, Date.now() - this.interval);
  }

  seen(isSeen) {
    clearTimeout(this.hiding);
    const turn = (isHidden) => {
      if (this.isHidden === isHidden) return;
      this.isHidden = isHidden;
      for (const feed of this.feeds.values()) if (!feed.isPaused) this.send({ type: isHidden ? 'pause' : 'resume', id: feed.id });
    };
    if (isSeen) {
      turn(false);
      this.hurry();
    } else if (this.options.pauseHiddenAfter < Infinity) {
      this.hiding = setTimeout(() => turn(true), this.options.pauseHiddenAfter);
    }
  }

  disconnect() {
    this.wanted = false;
    clearTimeout(this.timer);
    this.part();
    this.become('disconnected');
  }

  reconnect() {
    if (this.state === 'closed' || this.link) return;
    this.wanted = true;
    this.become('connecting');
    this.open();
  }

  close() {
    this.wanted = false;
    clearTimeout(this.timer);
    clearTimeout(this.hiding);
    this.part();
    this.over.abort();
    this.end('closed', new HarborError('UNAVAILABLE', 'the client was closed'));
  }

  async auth(token) {
    this.given = this.token = token;
    this.refused = false;
    if (!this.link) return this.reconnect();
    await this.ask({ type: 'auth', token });
    for (const feed of this.feeds.values()) if (feed.refusal) feed.ask();
  }

  // --- messages -------------------------------------------------------------------------------------------------------

  send(...messages) {
    if (this.isOpen) this.link.send(messages.map((message) => ({ id: this.nextId(), ...message })));
  }

  /** Ask something; where there is no connection it is asked on the next. */
  ask(message) {
    if (this.state === 'closed' || this.state === 'needs-auth') return Promise.reject(this.reason);
    const id = this.nextId();
    const asked = { ...message, id };
    return new Promise((done, fail) => {
      this.requests.set(id, { message: asked, done, fail });
      this.send(asked);
    });
  }

  take(messages) {
    this.heard = Date.now();
    this.pinged = false;
    for (const message of messages) guarded(() => this.hear(message)); // one that is wrong costs no other
  }

  hear(message) {
    this.tell('message', message);
    const { type, re, sub } = message;
    if (sub !== undefined && re === undefined) {
      const feed = this.byId.get(sub);
      if (feed && !feed.take(message)) {
        feed.token = this.streamed = undefined;
        this.send({ type: 'unsubscribe', id: feed.id });
        feed.ask();
      }
    } else if (type === 'welcome') this.welcome(message);
    else if (type === 'result' || type === 'error') {
      const asked = this.requests.get(re);
      this.requests.delete(re);
      if (type === 'result') asked?.done(message);
      else if (asked) asked.fail(failure(message));
      else this.byId.get(re)?.refused(message);
    } else if (type === 'mutation') this.settle(message);
    else if (type === 'presence') this.rooms.get(message.topic)?.take(message);
    else if (type === 'drain') this.drained = message.reconnect_after_ms;
    else if (type === 'notice') {
      if (message.code === 'token_expires') this.renew();
      const mutation = message.code === 'undo_available' && this.unsettled.get(message.mutation_id);
      if (mutation) mutation.undoUntil = message.until_ms;
      this.tell('notice', message);
    }
  }

  welcome({ session, server_time: time, ping_interval_ms: interval, resume_token: resume }) {
    Object.assign(this, { session, interval, resume, welcomed: true, refused: false, failures: 0, clockOffset: time - Date.now() });
    this.become('connected');
    this.catchUp();
  }

  async renew() {
    const { token } = this.options;
    if (typeof token !== 'function') return;
    try {
      const fresh = await token();
      if (fresh) await this.auth(fresh);
      this.given = undefined;
    } catch {
      // the connection ends when the token does, and the next asks again
    }
  }

  // --- entries --------------------------------------------------------------------------------------------------------

  subscribe({ key, prefix, mode = 'patch' }, listener) {
    const name = hashKey([key, prefix, mode]);
    let feed = this.feeds.get(name);
    if (!feed) {
      feed = new Feed(this, { key, prefix, mode });
      this.feeds.set(name, feed);
      feed.ask();
    }
    clearTimeout(feed.leaving);
    const handle = {
      listener,
      isPaused: false,
      entries: feed.entries,
      get ready() {
        return feed.ready;
      },
      get: (of = key) => feed.entries.get(hashKey(of)),
      pause: () => this.pace(feed, handle, true),
      resume: () => this.pace(feed, handle, false),
      unsubscribe: () => this.leave(feed, handle, name),
    };
    feed.handles.add(handle);
    this.pace(feed, handle, false);
    for (const entry of feed.entries.values()) guarded(listener, { type: entry.data === undefined ? 'status' : 'data', entry });
    if (feed.ready) guarded(listener, { type: 'ready' });
    return handle;
  }

  pace(feed, handle, isPaused) {
    handle.isPaused = isPaused;
    const wanted = [...feed.handles].every((each) => each.isPaused);
    if (wanted === feed.isPaused) return;
    feed.isPaused = wanted;
    if (!this.isHidden) this.send({ type: wanted ? 'pause' : 'resume', id: feed.id });
  }

  leave(feed, handle, name) {
    if (!feed.handles.delete(handle) || feed.handles.size) return;
    feed.leaving = setTimeout(() => {
      this.feeds.delete(name);
      this.byId.delete(feed.id);
      this.send({ type: 'unsubscribe', id: feed.id });
      for (const other of this.feeds.values()) if (other.refusal?.code === 'TOO_MANY') return other.ask();
    }, this.options.linger);
    feed.leaving?.unref?.();
  }

  async fetch(key, { signal, force, page } = {}) {
    signal?.throwIfAborted();
    if (force || page) {
      const query = new URLSearchParams({ key: JSON.stringify(key), ...(force && { fetch: 'force' }), ...(page && { page }) });
      return this.newest(key, await this.request(`/v1/entries?${query}`, { signal }));
    }
    const feed = this.feeds.get(hashKey([key, undefined, 'patch']));
    const held = feed?.entries.get(feed.exact);
    if (held?.data !== undefined && !held.isStale) return held.data;
    const ask = async () => this.newest(key, await raced(this.get(key), signal));
    if (!feed || feed.ready || feed.refusal || held?.status === 'error') return ask();
    let handle;
    try {
      return await raced(
        new Promise((done, fail) => {
          handle = this.subscribe({ key }, ({ type, entry, error }) => {
            if (type === 'data') done(entry.data);
            else if (type === 'refused') fail(error);
            else if (type === 'status' && entry.status === 'error') fail(failure(entry.error));
            else if (type === 'removed' || (type === 'ready' && !feed.entries.size)) fail(new HarborError('NOT_FOUND', 'there is no data'));
          });
          handle.waits = () => done(ask());
        }),
        signal,
      );
    } finally {
      handle?.unsubscribe();
    }
  }

  /** The data of an answer, or what is held where that is newer, with mutations over it. */
  newest(key, { data, version, error, is_stale: isStale }) {
    const feed = this.feeds.get(hashKey([key, undefined, 'patch']));
    const held = feed?.entries.get(feed.exact);
    if (held && held.version >= version) {
      if (held.isStale && isStale === false) feed.entries.set(feed.exact, { ...held, isStale });
      if (held.data !== undefined) return held.data;
    }
    if (data === undefined) throw error ? failure(error) : new HarborError('NOT_FOUND', 'there is no data');
    return this.view(hashKey(key), data, this.acknowledged());
  }

  async get(key) {
    return (await this.ask({ type: 'get', key })).entry;
  }

  async set(key, data, { baseVersion: base_version, merge, ack } = {}) {
    const { version, merged } = await this.ask({ type: 'set', key, data, base_version, merge, ack });
    return { version, merged };
  }

  async invalidate(key, { exact } = {}) {
    return (await this.ask({ type: 'invalidate', key, exact })).matched;
  }

  async request(path, { method, body, headers, signal, raw } = {}, token = this.token) {
    const response = await this.options.fetch(this.url + path, {
      method,
      signal,
      headers: { ...headers, ...(body !== undefined && { 'Content-Type': 'application/json' }), ...(token && { Authorization: `Bearer ${token}` }) },
      body: JSON.stringify(body),
    });
    if (raw && response.ok) return response;
    const text = await response.text();
    const answer = /json/.test(response.headers.get('content-type')) ? JSON.parse(text) : text;
    if (!response.ok) throw failure(answer.error ?? { code: 'UNAVAILABLE', message: `HTTP ${response.status}`, temporary: response.status >= 500 });
    return answer;
  }

  /** The code of the error with which the gateway refuses a token. */
  check(token) {
    return this.request('/v1/keys?limit=1', {}, token).then(
      () => '',
      ({ code = 'UNAVAILABLE' }) => code,
    );
  }

  // --- mutations ------------------------------------------------------------------------------------------------------

  get mutations() {
    return [...this.unsettled.values()].filter(({ status }) => !SETTLED.has(status));
  }

  /** Ids that the cluster has taken: snapshots from now on hold what they do. */
  acknowledged() {
    return new Set([...this.unsettled.values()].filter(({ isTaken }) => isTaken).map(({ id }) => id));
  }

  view(hash, base, lifted) {
    let data = base;
    for (const { id, parts } of this.unsettled.values()) {
      if (!lifted?.has(id)) for (const operation of parts.get(hash)?.operations ?? []) data = applyOperation(data, operation);
    }
    return data;
  }

  redraw({ parts }) {
    for (const [hash, { key }] of parts) for (const feed of this.feeds.values()) feed.redraw(hash, key);
  }

  mutate(name, variables = {}, { id = crypto.randomUUID(), delayMs, optimistic } = {}) {
    const known = this.unsettled.get(id);
    if (known) return known;
    this.lastAt = Math.max(this.lastAt + 0.01, Date.now());
    const item = { id, name, variables, delayMs, at: this.lastAt };
    const mutation = this.begin(item, optimistic);
    mutation.kept = this.storage.put(item).then(
      () => true,
      () => false, // but it is sent
    );
    this.flush();
    return mutation;
  }

  begin(item, optimistic = this.options.optimistic[item.name]) {
    const mutation = { ...item, status: 'waiting', parts: new Map(), kept: true };
    mutation.settled = new Promise((done, fail) => Object.assign(mutation, { done, fail }));
    mutation.settled.catch(() => {}); // whoever wants to know asks
    mutation.undo = () => this.undo(item.id);
    for (const operation of (typeof optimistic === 'function' ? optimistic(item.variables, item.id) : optimistic) ?? []) {
      const { key } = Object.values(operation)[0];
      const hash = hashKey(key);
      if (!mutation.parts.has(hash)) mutation.parts.set(hash, { key, operations: [] });
      mutation.parts.get(hash).operations.push(operation);
    }
    this.unsettled.set(item.id, mutation);
    this.redraw(mutation);
    this.tell('mutation', mutation);
    return mutation;
  }

  /** What was left waiting when the page was closed. */
  async restore() {
    for (const item of await this.storage.all().catch(() => [])) if (!this.unsettled.has(item.id)) this.begin(item);
    this.unsettled = new Map([...this.unsettled].sort(([, a], [, b]) => a.at - b.at)); // what was begun meanwhile goes last
    for (const mutation of this.unsettled.values()) this.redraw(mutation);
    this.flush();
  }

  /** Hear again of what the cluster has taken, as its news went to a connection that is lost; then send what waits. */
  async catchUp() {
    const { attempt } = this;
    const asked = this.mutations.filter((each) => each.isTaken && Date.now() - this.since > REMEMBERED);
    for (const mutation of asked) mutation.isHeard = true;
    for (const mutation of asked) {
      const now = await this.request(mutationAt(mutation.id)).catch((error) => error);
      if (attempt !== this.attempt) return;
      if (now.code === 'NOT_FOUND') now.status = 'success'; // settled and forgotten
      if (!now.status) return pause(now).then(() => attempt === this.attempt && this.catchUp());
      this.settle({ ...now, mutation_id: mutation.id });
      mutation.isHeard = false;
    }
    this.since = undefined;
    this.flush();
  }

  /** Send the next: one at a time, since a mutation may name by a temporary id what the one before it makes. */
  async flush() {
    await this.restored;
    const next = this.mutations.find((each) => !each.isHeard);
    if (this.sending || !next || this.state !== 'connected') return;
    const sending = (this.sending = {});
    const { id: mutation_id, name, variables, delayMs: delay_ms } = next;
    try {
      const isGone = (await next.kept) && !next.isSent && Date.now() - next.at > REMEMBERED && !(await this.storage.all().catch(() => [next])).some(({ id }) => id === mutation_id);
      if (this.sending !== sending || SETTLED.has(next.status)) return;
      if (isGone) return this.settle({ mutation_id, status: 'success' }); // by another tab, long ago
      next.isSent = true;
      await this.ask({ type: 'mutate', name, variables, mutation_id, delay_ms });
      next.isTaken = next.isHeard = true;
      await this.storage.delete(mutation_id).catch(() => {});
    } catch (error) {
      if (passes(error)) await pause(error);
      else if (error !== this.reason) this.settle({ mutation_id, status: 'error', error });
    } finally {
      if (this.sending === sending) {
        this.sending = null;
        this.flush();
      }
    }
  }

  settle({ mutation_id: id, status, result, error }) {
    const mutation = this.unsettled.get(id);
    if (!mutation || SETTLED.has(mutation.status)) return;
    Object.assign(mutation, { status, result, isSent: true, isHeard: true });
    if (SETTLED.has(status)) {
      this.storage.delete(id).catch(() => {});
      if (status === 'success') mutation.done(result);
      else mutation.fail(error ? failure(error) : new HarborError('CANCELLED', 'the mutation was undone'));
      const lift = () => {
        this.unsettled.delete(id);
        this.redraw(mutation);
      };
      // What it did is in what the cluster sends next, if it is not yet in what it has sent: so long a change that names it may take.
      if (status === 'success' && mutation.parts.size) setTimeout(lift, 2000)?.unref?.();
      else lift();
    }
    this.tell('mutation', mutation);
  }

  async undo(id) {
    const mutation = this.unsettled.get(id);
    if (mutation && !mutation.isSent) return this.settle({ mutation_id: id, status: 'cancelled' });
    await this.ask({ type: 'undo', mutation_id: id });
    this.settle({ mutation_id: id, status: 'cancelled' });
  }

  // --- presence -------------------------------------------------------------------------------------------------------

  presence(topic, { state, watch } = {}, listener) {
    let room = this.rooms.get(topic);
    if (!room) this.rooms.set(topic, (room = new Room(this, topic, watch)));
    const handle = {
      topic,
      listener,
      members: room.members,
      get count() {
        return room.count;
      },
      update: (next) => room.handles.has(handle) && room.update(next),
      leave: () => room.leave(handle),
    };
    room.handles.add(handle);
    if (state !== undefined) room.update(state);
    else if (!room.isAsked) room.ask();
    if (room.isListed) guarded(listener, handle);
    return handle;
  }
}

const without = (members) => Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));

const raced = (promise, signal) =>
  signal
    ? Promise.race([promise, new Promise((_, fail) => signal.addEventListener('abort', () => fail(signal.reason)))])
    : promise;

/** Who is in a topic of presence, and our own state there. */
class Room {
  constructor(harbor, topic, watch) {
    Object.assign(this, { harbor, topic, watch, count: 0, members: new Map(), handles: new Set() });
  }

  request() {
    this.isAsked = true;
    const { topic, state, watch } = this;
    const asked = { type: 'presence', topic, state, watch, id: this.harbor.nextId() };
    this.harbor.requests.set(asked.id, {
      message: asked,
      done: (result) => this.beat(result.heartbeat_ms),
      fail: (error) => error.code === 'LIMITED' && pause(error).then(() => this.handles.size && this.ask()),
    });
    return asked;
  }

  ask() {
    if (this.harbor.isOpen) this.harbor.send(this.request()); // else the next connection asks by itself
  }

  beat(every) {
    clearInterval(this.beating);
    if (every && this.state !== undefined) this.beating = setInterval(() => this.harbor.send({ type: 'presence', topic: this.topic }), every);
  }

  rest() {
    clearInterval(this.beating);
    for (const [id, { message }] of this.harbor.requests) if (message.topic === this.topic) this.harbor.requests.delete(id);
  }

  update(state) {
    this.state = state;
    if (this.pacing) return void (this.isLate = true);
    this.ask();
    this.pacing = setTimeout(() => {
      this.pacing = null;
      if (this.isLate) this.update(this.state);
      this.isLate = false;
    }, 100);
  }

  take({ joined, updated, left, count, snapshot, more }) {
    if (snapshot && !this.isPaging) this.members.clear();
    this.isPaging = more;
    this.isListed = true;
    for (const member of [...joined, ...updated]) this.members.set(member.member, member);
    for (const member of left) this.members.delete(member);
    this.count = count;
    for (const handle of [...this.handles]) guarded(handle.listener, handle);
  }

  leave(handle) {
    if (!this.handles.delete(handle) || this.handles.size) return;
    clearTimeout(this.pacing);
    this.rest();
    this.harbor.rooms.delete(this.topic);
    this.harbor.send({ type: 'leave', topic: this.topic });
  }
}

export const connect = (options = {}) => new Harbor(options);

// --- TanStack Query -------------------------------------------------------------------------------------------------------

/** An infinite query has `pageParams` where the cluster's entry has `page_params`. */
const shaped = (query, data) =>
  isObject(data) && Array.isArray(data.page_params) && 'initialPageParam' in query.options ? { pages: data.pages, pageParams: data.page_params } : data;

export function attach(queryClient, harbor, { keys, match, mutationName = (key) => key.join('.') } = {}) {
  const queries = queryClient.getQueryCache();
  const before = queryClient.getDefaultOptions();
  const live = new Map();
  const isOwn = (fn) => fn === undefined || fn === harbor.queryFn;
  const serves = (query) => {
    if (query.options.meta?.harbor !== undefined) return query.options.meta.harbor;
    if (match) return match(query.queryKey, query);
    return keys ? keys.some((prefix) => matches(prefix, query.queryKey)) : isOwn(query.options.queryFn);
  };
  const entryOf = (query) => live.get(query)?.get();

  const show = (query, entry) => {
    queryClient.setQueryData(query.queryKey, shaped(query, entry.data), { updatedAt: entry.dataUpdatedAt - harbor.clockOffset || undefined });
    if (entry.isStale) query.invalidate();
  };
  const hear = (query) => (update) => {
    if (queries.get(query.queryHash) !== query) return;
    if (update.type === 'data') show(query, update.entry);
    else if (update.type === 'invalidated') query.invalidate(); // what is watched the cluster fetches anew by itself
    else if (update.type === 'removed') query.setState({ data: undefined, status: 'pending', dataUpdatedAt: 0 });
  };
  const tend = (query) => {
    const wanted = query.isActive() && serves(query);
    if (wanted && !live.has(query)) {
      live.set(query, null);
      live.set(query, harbor.subscribe({ key: query.queryKey }, hear(query)));
    } else if (!wanted && live.has(query)) {
      live.get(query)?.unsubscribe();
      live.delete(query);
    }
  };

  /** Stands between a query and its `queryFn`: what the cluster serves is not fetched elsewhere. */
  const persister = async (queryFn, context, query) => {
    const own = before.queries?.persister;
    if (!serves(query)) return own ? own(queryFn, context, query) : queryFn(context);
    const direction = query.state.fetchMeta?.fetchMore?.direction;
    const page = direction && (direction === 'forward' ? 'next' : 'previous');
    // Invalidated here and not by the cluster: somebody wants it fetched.
    const force = query.state.isInvalidated && entryOf(query)?.isStale === false;
    try {
      return shaped(query, await harbor.fetch(query.queryKey, { signal: context.signal, page, force }));
    } catch (error) {
      if (error.code !== 'NOT_FOUND' || isOwn(query.options.queryFn)) throw error;
      return queryFn(context);
    }
  };
  const mutate = (variables, key) => harbor.mutate(mutationName(key ?? []), variables).settled;
  const staleTime = (query) => (entryOf(query)?.isStale === false ? Infinity : 0);
  queryClient.setDefaultOptions({
    ...before,
    queries: { queryFn: harbor.queryFn, staleTime, ...before.queries, persister },
    mutations: { mutationFn: (variables, context) => mutate(variables, context.mutationKey), ...before.mutations },
  });
  const { mutationFn: routed } = queryClient.getDefaultOptions().mutations;

  const stops = [
    queries.subscribe(({ type, query }) => {
      if (type === 'removed') live.get(query)?.unsubscribe(), live.delete(query);
      else if (/^observer(A|Rem|O)/.test(type)) tend(query);
    }),
    queryClient.getMutationCache().subscribe(({ type, mutation }) => {
      const { mutationKey, mutationFn } = mutation?.options ?? {};
      if (type !== 'added' || !mutationKey || (mutationFn && mutationFn !== routed)) return;
      // It waits in the client's own queue while there is no connection.
      mutation.options = { ...mutation.options, networkMode: 'always', mutationFn: (variables) => mutate(variables, mutationKey) };
    }),
  ];
  queries.getAll().forEach(tend);
  return () => {
    stops.forEach((stop) => stop());
    for (const subscription of live.values()) subscription?.unsubscribe();
    live.clear();
    queryClient.setDefaultOptions(before);
  };
}
