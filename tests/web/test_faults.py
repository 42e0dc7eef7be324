"""What the client makes of what goes wrong, before a gateway that is made up: in Node.js stands what it is told and what it says."""

from typing import Any

import pytest

from tests.web.node import Node

MADE_UP = """
  kept.sent = []; kept.streams = []; kept.asked = [];
  const welcome = { type: 'welcome', session: 's', server_time: Date.now(), ping_interval_ms: 25000, resume_token: '' };
  /** A socket that is open at once, welcomes, and answers with what `kept.answer` makes of a message. */
  kept.Socket = class {
    readyState = 1;
    constructor() { kept.socket = this; setTimeout(() => { this.onopen(); if (!kept.isSilent) this.say(welcome); }); }
    send(frame) {
      for (const message of JSON.parse(frame)) {
        kept.sent.push(message);
        const answer = kept.answer?.(message);
        if (answer) setTimeout(() => this.say({ re: message.id, ...answer }));
      }
    }
    say(...messages) { this.onmessage?.({ data: JSON.stringify(messages) }); }
    close() {}
  };
  /** Answers requests with what `kept.respond` makes of them; event streams are open, and kept. */
  kept.fetch = async (url, init = {}) => {
    const path = url.replace('http://made.up', '');
    kept.asked.push(path);
    const found = await kept.respond?.(path, init);
    if (found) return found instanceof Response ? found : kept.json(found);
    if (!path.startsWith('/v1/stream')) return kept.json({});
    const stream = { path, since: init.headers['Last-Event-ID'] };
    const body = new ReadableStream({ start: (controller) => { stream.say = (text) => controller.enqueue(new TextEncoder().encode(text)); } });
    kept.streams.push(stream);
    return new Response(body);
  };
  kept.json = (body, status = 200) => new Response(JSON.stringify(body), { status, headers: { 'Content-Type': 'application/json' } });
  kept.refusal = (code, status, details) => kept.json({ error: { code, message: code, temporary: false, details } }, status);
  /** Whatever follows without waiting for the time to pass has happened by then. */
  kept.turns = async () => { for (let n = 0; n < 50; n++) await new Promise((done) => setTimeout(done)); };
  kept.connect = (more) => (kept.harbor = client.connect({ url: 'http://made.up', WebSocket: kept.Socket, fetch: kept.fetch, linger: 0, ...more }));
"""


async def played(node: Node, code: str, **args: Any) -> Any:
    return await node.run(MADE_UP + code, **args)


# --- what cannot be sent -------------------------------------------------------------------------------------------


async def test_what_no_gateway_could_read_is_refused_and_costs_nothing_else(node: Node) -> None:
    found = await played(
        node,
        r"""
        const items = new Map([['old', { id: 'old', name: 'say', variables: { text: '\ud83d' }, at: 1 }]]);
        const storage = { all: async () => [...items.values()], put: async (item) => items.set(item.id, item), delete: async (id) => items.delete(id) };
        kept.answer = ({ type }) => ({ type: 'result', ...(type === 'get' && { entry: 1 }) });
        const harbor = kept.connect({ storage });
        const said = [];
        harbor.on('mutation', ({ id, status }) => said.push([id, status]));
        await kept.until(() => harbor.state === 'connected');
        const code = (promise) => promise.then(() => 'fine', (error) => error.code);
        const codes = [
          code(harbor.get(['\ud83d'])), code(harbor.set(['a'], { b: ['c\\', '\udc00'] })),
          code(harbor.set(['a'], '\u{1f600} \\ud83d')), code(harbor.set(['a'], 'ü'.repeat(2 ** 19))), code(harbor.set(['a'], 'a'.repeat(2 ** 19))),
        ];
        const told = [];
        harbor.subscribe({ key: ['\ud83d'] }, ({ type, error }) => told.push([type, error.code]));
        const after = harbor.mutate('say', { text: 'fine' });
        await kept.turns();
        return [harbor.state, await Promise.all(codes.map((each) => Promise.race([each, 'open']))), told, said.filter(([id]) => id === 'old'), items.has('old'),
          kept.sent.filter(({ type }) => type === 'mutate').map(({ variables }) => variables.text)];
        """,
    )
    assert found == [
        "connected",
        ["BAD_REQUEST", "BAD_REQUEST", "fine", "TOO_LARGE", "fine"],
        [["refused", "BAD_REQUEST"]],
        [["old", "waiting"], ["old", "error"]],
        False,
        ["fine"],
    ]


# --- mutations -----------------------------------------------------------------------------------------------------


async def test_what_is_undone_before_it_was_sent_is_not_sent(node: Node) -> None:
    assert await played(
        node,
        """
        kept.answer = () => ({ type: 'result' });
        const harbor = kept.connect();
        await kept.until(() => harbor.state === 'connected');
        harbor.mutate('one').undo();
        harbor.mutate('two');
        await kept.turns();
        return kept.sent.filter(({ type }) => type === 'mutate').map(({ name }) => name);
        """,
    ) == ["two"]


async def test_a_mutation_is_forgotten_only_where_the_cluster_says_so(node: Node) -> None:
    assert await played(
        node,
        """
        kept.answer = () => ({ type: 'result' });
        const harbor = kept.connect();
        await kept.until(() => harbor.state === 'connected');
        const mutations = ['gone', 'fails'].map((id) => harbor.mutate(id, {}, { id }));
        await kept.until(() => mutations.every(({ isTaken }) => isTaken));
        let failures = 0;
        kept.respond = (path) => {
          if (path.endsWith('/gone')) return kept.refusal('NOT_FOUND', 404);
          if (path.endsWith('/fails')) return failures++ ? { status: 'error', error: { code: 'UPSTREAM_ERROR', message: '' } } : kept.refusal('LIMITED', 429, { retry_after_ms: 1 });
        };
        harbor.disconnect();
        harbor.since -= 10 * 60e3;
        harbor.reconnect();
        await kept.until(() => mutations.every(({ status }) => status === 'success' || status === 'error'));
        return [mutations.map(({ status }) => status), kept.sent.filter(({ type }) => type === 'mutate').length];
        """,
    ) == [["success", "error"], 2]


async def test_a_mutation_is_followed_over_failures_of_the_way(node: Node) -> None:
    assert await played(
        node,
        """
        const ways = [() => { throw new TypeError('no network'); }, () => kept.json('<html>', 504), () => ({ id: 'm', status: 'success', result: 7 })];
        kept.respond = (path) => (path === '/v1/mutations' ? { id: 'm', status: 'pending' } : path.endsWith('wait=true') && ways.shift()());
        const harbor = kept.connect({ transport: 'sse' });
        const pauses = globalThis.setTimeout;
        globalThis.setTimeout = (act, ms, ...more) => pauses(act, ms === 1000 ? 1 : ms, ...more);
        const mutation = harbor.mutate('say', {}, { id: 'm' });
        await kept.turns();
        return [ways.length, mutation.status];
        """,
    ) == [0, "success"]


async def test_what_was_left_waiting_goes_before_what_is_new(node: Node) -> None:
    assert await played(
        node,
        """
        kept.answer = () => ({ type: 'result' });
        let read;
        const items = new Promise((done) => { read = () => done([{ id: 'b', name: 'second', variables: {}, at: 2 }, { id: 'a', name: 'first', variables: {}, at: 1 }]); });
        const harbor = kept.connect({ storage: { all: () => items, put: async () => {}, delete: async () => {} } });
        await kept.until(() => harbor.state === 'connected');
        harbor.mutate('new');
        await kept.turns();
        read();
        await kept.turns();
        return [[...harbor.unsettled.values()].map(({ name }) => name), kept.sent.filter(({ type }) => type === 'mutate').map(({ name }) => name)];
        """,
    ) == [["first", "second", "new"], ["first", "second", "new"]]


async def test_a_queue_that_cannot_be_read_costs_no_mutation(node: Node) -> None:
    assert await played(
        node,
        """
        kept.answer = () => ({ type: 'result' });
        const items = [{ id: 'old', name: 'old', variables: {}, at: 1 }], deleted = [];
        let reads = 0;
        const all = async () => { if (reads++) throw new Error('connection lost'); return items; };
        const harbor = kept.connect({ storage: { all, put: async () => {}, delete: async (id) => deleted.push(id) } });
        await kept.until(() => deleted.length);
        return [harbor.mutations.map(({ status, isTaken }) => [status, isTaken]), kept.sent.filter(({ type }) => type === 'mutate').length];
        """,
    ) == [[["waiting", True]], 1]


# --- event streams -------------------------------------------------------------------------------------------------


async def test_a_key_that_is_watched_again_over_a_stream_is_told_anew(node: Node) -> None:
    assert await played(
        node,
        """
        const harbor = kept.connect({ transport: 'sse' });
        const end = (stream, token) => stream.say(`event: snapshot_end\\ndata: {"position":"p"}\\nid: ${token}\\n\\n`);
        const first = harbor.subscribe({ key: ['a'] });
        await kept.until(() => kept.streams.length === 1);
        end(kept.streams[0], 'one');
        await kept.until(() => first.ready);
        first.pause();
        await kept.turns();
        first.resume();
        await kept.until(() => kept.streams.length === 2);
        first.unsubscribe();
        await kept.until(() => !harbor.feeds.size);
        const again = harbor.subscribe({ key: ['a'] });
        await kept.until(() => kept.streams.length === 3);
        return kept.streams.map(({ since }) => since ?? '');
        """,
    ) == ["", "one", ""]


async def test_a_stream_that_is_reset_is_whole_again_when_all_was_told(node: Node) -> None:
    assert await played(
        node,
        r"""
        const harbor = kept.connect({ transport: 'sse' });
        const subs = [['a'], ['b']].map((key) => harbor.subscribe({ key }));
        const ready = () => subs.map(({ ready }) => ready), shown = () => subs.map(({ entries }) => entries.size), seen = [];
        await kept.until(() => kept.streams.length);
        const { say } = kept.streams.at(-1);
        const snapshot = (key) => `event: snapshot\ndata: {"key":["${key}"],"version":1,"data":1,"status":"success"}\n\n`;
        const end = 'event: snapshot_end\ndata: {"position":"p"}\n';
        const tell = async (text) => { say(text); await kept.turns(); seen.push([ready(), shown()]); };
        await tell(`${snapshot('a')}${end}\n${snapshot('b')}${end}id: 1\n\n`);
        await tell('event: reset\ndata: {}\nid: 2\n\n');
        await tell(`${snapshot('a')}${end}\n`);
        await tell(`: alive\n\n${end}id: 3\n\n`);
        return seen;
        """,
    ) == [
        [[True, True], [1, 1]],
        [[False, False], [1, 1]],
        [[False, False], [1, 1]],
        [[True, True], [1, 0]],
    ]


@pytest.mark.parametrize("limit", [None, 3])
async def test_over_a_stream_only_what_is_refused_is_refused(node: Node, limit: int | None) -> None:
    found = await played(
        node,
        """
        const harbor = kept.connect({ transport: 'sse' });
        await kept.until(() => harbor.state === 'connected');
        const { limit } = args;
        kept.respond = (path) => {
          const keys = new URLSearchParams(path.split('?')[1]).getAll('key');
          if (limit && keys.length > limit) return kept.refusal('TOO_MANY', 429, { limit: 'subscriptions', value: limit });
          if (!limit && keys.some((key) => key.includes('not'))) return kept.refusal('FORBIDDEN', 403);
        };
        const told = {};
        for (const key of ['a', 'not b', 'c', 'd', 'not e', 'f']) harbor.subscribe({ key: [key] }, ({ type, error }) => { told[key] = [type, error?.code]; });
        await kept.turns();
        const { path } = kept.streams.at(-1);
        return [told, new URLSearchParams(path.split('?')[1]).getAll('key').map((key) => JSON.parse(key)[0]), [...harbor.feeds.values()].map(({ refusal }) => refusal?.code ?? ''), harbor.state];
        """,
        limit=limit,
    )
    if limit:
        assert found == [{}, ["a", "not b", "c"], ["", "", "", "TOO_MANY", "TOO_MANY", "TOO_MANY"], "connected"]
    else:
        refused = ["refused", "FORBIDDEN"]
        refusals = ["", "FORBIDDEN", "", "", "FORBIDDEN", ""]
        assert found == [{"not b": refused, "not e": refused}, ["a", "c", "d", "f"], refusals, "connected"]


# --- presence and places -------------------------------------------------------------------------------------------


async def test_a_state_that_came_too_soon_is_said_again_as_it_is_then(node: Node) -> None:
    assert await played(
        node,
        """
        let limited = 2;
        kept.answer = ({ type }) => (limited-- > 0 ? { type: 'error', code: 'LIMITED', message: '', temporary: false, details: { retry_after_ms: 1 } } : { type: 'result' });
        const harbor = kept.connect();
        await kept.until(() => harbor.state === 'connected');
        const left = harbor.presence('left', { state: 0 });
        const room = harbor.presence('topic', { state: 1 });
        left.leave();
        harbor.rooms.get('topic').state = 2;
        await kept.turns();
        return kept.sent.map(({ type, topic, state }) => [type, topic, state ?? null]);
        """,
    ) == [
        ["presence", "left", 0],
        ["presence", "topic", 1],
        ["leave", "left", None],
        ["presence", "topic", 2],
    ]


async def test_what_waits_for_a_place_goes_on_waiting_when_the_page_is_hidden(node: Node) -> None:
    assert await played(
        node,
        """
        const refuse = (code) => ({ type: 'error', code, message: '', temporary: false });
        kept.answer = ({ type, key }) => ({
          subscribe: key?.[0] === 'more' && !kept.isFree && refuse('TOO_MANY'),
          pause: key?.[0] !== 'more' && refuse('NOT_FOUND'), unsubscribe: undefined, get: { type: 'result', entry: { data: 7, version: 1 } },
        })[type];
        const harbor = kept.connect();
        await kept.until(() => harbor.state === 'connected');
        const one = harbor.subscribe({ key: ['one'] });
        const told = [];
        const more = harbor.subscribe({ key: ['more'] }, ({ type }) => told.push(type));
        const fetched = harbor.fetch(['more']);
        await kept.turns();
        more.pause();
        await kept.turns();
        const waits = harbor.byId.get([...harbor.byId.keys()].at(-1)).refusal?.code;
        more.resume();
        kept.isFree = true;
        kept.sent.length = 0;
        one.unsubscribe();
        await kept.turns();
        return [await Promise.race([fetched, 'open']), waits, told, kept.sent.map(({ type }) => type)];
        """,
    ) == [7, "TOO_MANY", [], ["unsubscribe", "subscribe"]]


# --- coming back ---------------------------------------------------------------------------------------------------

WAITS = """
  const later = globalThis.setTimeout, waits = [];
  Math.random = () => 1;
  globalThis.setTimeout = (act, ms, ...more) => { if (ms >= 50) waits.push(ms); return later(act, Math.min(ms ?? 0, 1), ...more); };
"""


@pytest.mark.parametrize("options", ["{ token: () => { throw new Error('no login'); } }", "{}"])
async def test_attempts_become_rarer_whatever_they_fail_by(node: Node, options: str) -> None:
    waits = await played(
        node,
        f"""
        {WAITS}
        kept.isSilent = true;
        const Closing = class extends kept.Socket {{ constructor() {{ super(); later(() => later(() => this.onclose({{ code: 3002, reason: '' }}), 5), 5); }} }};
        const harbor = kept.connect({{ WebSocket: Closing, ...{options} }});
        await kept.until(() => waits.length >= 4);
        harbor.close();
        return waits.slice(0, 4);
        """,
    )
    assert waits == [1050, 2050, 4050, 8050]


async def test_a_gateway_that_has_never_said_anything_is_given_up(node: Node) -> None:
    assert (
        await played(
            node,
            """
        kept.isSilent = true;
        const looks = [];
        const { setInterval } = globalThis;
        globalThis.setInterval = (act) => looks.push(act);
        const harbor = kept.connect({ token: 'x' });
        await kept.until(() => looks.length);
        const now = Date.now();
        Date.now = () => now + 36e3;
        looks[0]();
        globalThis.setInterval = setInterval;
        return harbor.state;
        """,
        )
        == "reconnecting"
    )
