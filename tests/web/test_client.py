"""The client, run by Node.js as a gateway sends it, before a real cluster of two gateways."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest

from cluster.config import read_document
from tests.live import LiveCluster
from tests.tokens import SECRET
from tests.web.node import Node

pytestmark = pytest.mark.cluster
DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"
_titles = itertools.count()

OPEN = """
  const { url, transport, optimistic, ...more } = args;
  const OPTIMISTIC = {
    create_task: (task, id) => [{ append: { key: ['tasks', task.projectId], item: { ...task, id: task.id ?? id } } }],
    update_task: ({ projectId, ...task }) => [{ merge_where: { key: ['tasks', projectId], where: { id: task.id }, value: task } }],
    delete_task: ({ id, projectId }) => [{ remove: { key: ['tasks', projectId], where: { id } } }],
  };
  // As in a browser whose network lets no WebSocket through.
  const Blocked = class extends EventTarget { constructor() { super(); setTimeout(() => this.onclose({ code: 1006, reason: '' })); } send() {} close() {} };
  const harbor = kept.harbor = client.connect({ url, linger: 0, maxBackoff: 1000, optimistic: OPTIMISTIC, ...(transport === 'blocked' ? { WebSocket: Blocked } : { transport }), ...more });
  kept.states = []; kept.told = []; kept.faults = [];
  harbor.on('state', (state) => kept.states.push(state));
  const versions = new Map();
  harbor.on('message', (message) => {
    const { type, sub, key, from, version } = message;
    kept.told.push(message);
    if (!key || sub === undefined) return;
    const name = client.hashKey([sub, key]);
    if (type === 'snapshot') versions.set(name, version);
    // A subscription has another number on each connection.
    if (type === 'change' && versions.has(name) && versions.get(name) !== from && version > versions.get(name)) kept.faults.push(message);
    if (type === 'change') versions.set(name, version);
  });
  await kept.until(() => harbor.state === 'connected');
"""
"""Connect, and keep what the delivery contract is checked by."""


@pytest.fixture(scope="module")
def tracker(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    env = {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}
    document = read_document(DEMO)
    document["cluster"]["gateways"] = 2
    live = LiveCluster(document, env).start()
    yield live
    live.stop()


@pytest.fixture(params=["websocket", "blocked"])
def transport(request: Any) -> str:
    return request.param


async def connected(node: Node, live: LiveCluster, **options: Any) -> None:
    await node.run(OPEN, url=live.url, **options)


def retitled(upstream: Any, project: str, title: str) -> str:
    """Change the project's first task at the upstream. Returns its id."""
    return upstream.do(lambda up: _retitle(up, project, title))


def _retitle(up: Any, project: str, title: str) -> str:
    task = up.tracker.task_list(project)[0]
    _, emissions = up.tracker.update_task(task["id"], {"title": title})
    up.emit(emissions)
    return str(task["id"])


def new_title() -> str:
    return f"title {next(_titles)}"


def kill_gateways(live: LiveCluster) -> None:
    """Kill both at once: for a while nobody listens."""
    pids = live.pids()
    for name in ("gateway-0", "gateway-1"):
        with suppress(ProcessLookupError):
            os.kill(pids[name], signal.SIGKILL)


async def test_changes_come_as_patches_and_what_they_do_not_touch_keeps_its_identity(
    node: Node, tracker: LiveCluster, upstream: Any, transport: str
) -> None:
    await connected(node, tracker, transport=transport)
    title = new_title()
    await node.run(
        "kept.sub = kept.harbor.subscribe({ key: ['tasks', '1'] }); await kept.until(() => kept.sub.ready && kept.sub.get()?.data); kept.old = kept.sub.get().data;"
    )
    changed = await asyncio.to_thread(retitled, upstream, "1", title)
    same = await node.run(
        """
        await kept.until(() => kept.sub.get().data[0].title === args.title);
        const now = kept.sub.get().data;
        return [kept.harbor.transport, now !== kept.old, now[0].id, now[0] !== kept.old[0], now.slice(1).every((task, n) => task === kept.old[n + 1]), kept.faults];
        """,
        title=title,
    )
    assert same == ["sse" if transport == "blocked" else "websocket", True, changed, True, True, []]


async def test_a_prefix_brings_what_begins_to_match_and_tells_what_goes(
    node: Node, tracker: LiveCluster, transport: str
) -> None:
    await connected(node, tracker, transport=transport)
    told = await node.run(
        """
        const { harbor } = kept, told = [];
        const prefix = ['notes', args.name];
        await harbor.set([...prefix, 'a'], 1);
        const sub = harbor.subscribe({ prefix }, ({ type, entry }) => told.push([type, entry?.key.at(-1), entry?.data]));
        await kept.until(() => sub.ready);
        await harbor.set([...prefix, 'b'], { n: 2 });
        await kept.until(() => sub.get([...prefix, 'b']));
        await harbor.request(`/v1/entries?key=${encodeURIComponent(JSON.stringify([...prefix, 'a']))}`, { method: 'DELETE' });
        await kept.until(() => !sub.get([...prefix, 'a']));
        return told;
        """,
        name=transport,
    )
    assert told == [["data", "a", 1], ["ready", None, None], ["data", "b", {"n": 2}], ["removed", "a", None]]


async def test_a_killed_gateway_leaves_no_gap(node: Node, tracker: LiveCluster, upstream: Any, transport: str) -> None:
    await connected(node, tracker, transport=transport)
    await node.run(
        """
        kept.titles = [];
        kept.sub = kept.harbor.subscribe({ key: ['tasks', '2'] }, ({ type, entry }) => { if (type === 'data') kept.titles.push(entry.data[0].title); });
        kept.prefix = kept.harbor.subscribe({ prefix: ['tasks'] });
        await kept.until(() => kept.sub.get()?.data && kept.prefix.ready);
        kept.told.length = 0;
        """
    )
    for number in range(30):
        if number == 10:
            await asyncio.to_thread(kill_gateways, tracker)
        title = new_title()
        await asyncio.to_thread(retitled, upstream, "2", title)
        await asyncio.sleep(
            0.05
        )  # the pace of the events, so that they come before, while and after the gateways are gone
    found = await node.run(
        """
        const { harbor, sub, prefix } = kept;
        await kept.until(() => sub.get().data[0].title === args.title && prefix.get(['tasks', '2'])?.data[0].title === args.title);
        const { data, version } = await harbor.get(['tasks', '2']);
        const equal = (held) => held.version === version && client.hashKey([held.data]) === client.hashKey([data]);
        return {
          ready: sub.ready && prefix.ready,
          equal: equal(sub.get()) && equal(prefix.get(['tasks', '2'])), faults: kept.faults, states: kept.states,
          resets: kept.told.filter(({ type, key }) => type === 'reset' && !key).length,
          snapshots: kept.told.filter(({ type }) => type === 'snapshot').length, titles: kept.titles,
        };
        """,
        title=title,
    )
    assert found["equal"]
    assert found["ready"]
    assert found["faults"] == []
    assert (found["resets"], found["snapshots"]) == (0, 0), "it went on from its tokens"
    assert found["states"][-2:] == ["reconnecting", "connected"]
    numbers = [int(each.split()[1]) for each in found["titles"] if each.startswith("title")]
    assert numbers == sorted(numbers), "nothing was shown twice or out of order"


async def test_an_optimistic_edit_is_seen_at_once_and_until_the_end(
    node: Node, tracker: LiveCluster, transport: str
) -> None:
    await connected(node, tracker, transport=transport)
    title = new_title()
    seen = await node.run(
        """
        const { harbor } = kept, seen = [];
        const title = () => sub.get()?.data?.[1].title;
        const sub = harbor.subscribe({ key: ['tasks', '3'] }, () => { if (title() !== seen.at(-1)) seen.push(title()); });
        await kept.until(() => title());
        const { id } = sub.get().data[1];
        const mutation = harbor.mutate('update_task', { id, projectId: '3', title: args.title });
        const atOnce = title();
        const result = await mutation.settled;
        await kept.until(() => kept.told.some(({ type, mutations }) => type === 'change' && mutations?.includes(mutation.id)));
        await kept.until(() => !harbor.unsettled.size);
        return [atOnce, result.title, seen.slice(1), title(), harbor.mutations.length, mutation.status];
        """,
        title=title,
    )
    assert seen == [title, title, [title], title, 0, "success"], "it did not flicker"


async def test_a_refused_edit_is_taken_back(node: Node, tracker: LiveCluster) -> None:
    await connected(node, tracker)
    assert await node.run(
        """
        const sub = kept.harbor.subscribe({ key: ['tasks', '3'] });
        await kept.until(() => sub.get()?.data);
        const before = sub.get().data;
        const mutation = kept.harbor.mutate('create_task', { projectId: '3', title: '' });
        const shown = sub.get().data.length;
        const code = await mutation.settled.catch((error) => error.code);
        return [shown - before.length, code, sub.get().data.length - before.length, mutation.status];
        """
    ) == [1, "INVALID_VARIABLES", 0, "error"]


async def test_what_is_undone_was_never_sent(node: Node, tracker: LiveCluster, upstream: Any, transport: str) -> None:
    await connected(node, tracker, transport=transport)
    found = await node.run(
        """
        const sub = kept.harbor.subscribe({ key: ['tasks', '4'] });
        await kept.until(() => sub.get()?.data);
        const before = sub.get().data.map(({ id }) => id);
        const notice = new Promise((done) => kept.harbor.on('notice', (each) => each.code === 'undo_available' && done(each)));
        const mutation = kept.harbor.mutate('delete_task', { id: before[0], projectId: '4' });
        const shown = sub.get().data.map(({ id }) => id);
        const { until_ms: until } = await notice;
        await kept.until(() => mutation.status === 'scheduled');
        await mutation.undo();
        await kept.until(() => sub.get().data.length === before.length);
        const code = await mutation.settled.catch((error) => error.code);
        return { shown, before, code, back: sub.get().data.map(({ id }) => id), known: mutation.undoUntil === until };
        """
    )
    assert found["shown"] == found["before"][1:]
    assert found["back"] == found["before"]
    assert (found["code"], found["known"]) == ("CANCELLED", True)
    assert found["before"][0] in [task["id"] for task in upstream.do(lambda up: up.tracker.task_list("4"))]


async def test_what_was_done_offline_is_applied_once(node: Node, tracker: LiveCluster, upstream: Any) -> None:
    name = new_title()
    await connected(node, tracker)
    before = await node.run(
        """
        const { harbor } = kept;
        kept.sub = harbor.subscribe({ key: ['tasks', '5'] });
        await kept.until(() => kept.sub.get()?.data);
        harbor.disconnect();
        for (const n of [1, 2, 3]) harbor.mutate('create_task', { id: `temp-${args.name}-${n}`, projectId: '5', title: `${args.name} ${n}` });
        const update = harbor.mutate('update_task', { id: `temp-${args.name}-1`, projectId: '5', title: `${args.name} 1, edited` });
        const undone = harbor.mutate('create_task', { projectId: '5', title: `${args.name} never` });
        const shown = kept.sub.get().data.slice(-4).map(({ title }) => title);
        await undone.undo();
        const stored = await harbor.storage.all();
        // The page is loaded anew with what its storage holds, while the old one is still there.
        const again = kept.again = client.connect({ url: harbor.url, storage: harbor.storage, optimistic: harbor.options.optimistic, linger: 0 });
        const sub = again.subscribe({ key: ['tasks', '5'] });
        await kept.until(() => sub.get()?.data.some(({ title, id }) => title === `${args.name} 3` && !id.startsWith('temp')) && !again.mutations.length);
        harbor.reconnect();
        await kept.until(() => harbor.state === 'connected' && !harbor.mutations.length && !harbor.unsettled.size);
        await kept.until(() => client.hashKey([kept.sub.get().data]) === client.hashKey([sub.get().data]));
        return { shown, stored: stored.length, left: await harbor.storage.all(), states: kept.states, status: update.status };
        """,
        name=name,
    )
    tasks = upstream.do(lambda up: [task["title"] for task in up.tracker.task_list("5")])
    assert [title for title in tasks if title.startswith(name + " ")] == [f"{name} 1, edited", f"{name} 2", f"{name} 3"]
    assert before["shown"] == [f"{name} 1, edited", f"{name} 2", f"{name} 3", f"{name} never"]
    assert (before["stored"], before["left"], before["status"]) == (4, [], "success")
    assert before["states"] == ["connected", "disconnected", "connecting", "connected"]


async def test_who_is_there_is_known_and_a_killed_gateway_makes_nobody_blink(node: Node, tracker: LiveCluster) -> None:
    await connected(node, tracker)
    found = await node.run(
        """
        kept.other = client.connect({ url: kept.harbor.url, maxBackoff: 1000 });
        kept.others = [];
        kept.other.on('state', (state) => kept.others.push(state));
        kept.seen = [];
        kept.room = kept.harbor.presence('project:6', {}, ({ members }) => kept.seen.push([...members.values()].map(({ state }) => state.x)));
        const theirs = kept.other.presence('project:6', { state: { x: 0 } });
        for (let x = 1; x <= 50; x++) theirs.update({ x });
        await kept.until(() => kept.seen.at(-1)?.[0] === 50);
        kept.seen.length = 0;
        return [kept.room.count, [...kept.room.members.keys()][0] === kept.other.session];
        """
    )
    assert found == [1, True]
    await asyncio.to_thread(kill_gateways, tracker)
    assert await node.run(
        """
        await kept.until(() => [kept.states, kept.others].every((states) => states.includes('reconnecting')));
        await kept.until(() => [kept.harbor, kept.other].every(({ state }) => state === 'connected'));
        await kept.until(() => kept.seen.length);
        const stayed = kept.seen.every(([x]) => x === 50);
        kept.other.close();
        await kept.until(() => kept.room.count === 0);
        kept.room.leave();
        return stayed;
        """
    )


async def test_who_has_left_does_not_come_back_by_an_update(node: Node) -> None:
    assert await node.run(
        """
        const harbor = client.connect({ url: 'http://127.0.0.1:1' });
        const sent = [];
        harbor.send = ({ type, state }) => sent.push(state ?? type);
        harbor.isOpen = true;
        const [one, other] = [harbor.presence('project:5'), harbor.presence('project:5')];
        one.leave();
        one.update('one, left');
        other.update('other');
        other.leave();
        other.update('other, left');
        const again = harbor.presence('project:5');
        other.update('other, left');
        again.leave();
        harbor.close();
        return [sent, harbor.rooms.size];
        """
    ) == [["presence", "other", "leave", "presence", "leave"], 0]


async def test_a_hidden_page_is_told_nothing_and_catches_up(
    node: Node, tracker: LiveCluster, upstream: Any, transport: str
) -> None:
    await node.run("globalThis.document = Object.assign(new EventTarget(), { visibilityState: 'visible' });")
    await connected(node, tracker, transport=transport, pauseHiddenAfter=0)
    show = "document.visibilityState = args.to; document.dispatchEvent(new Event('visibilitychange'));"
    await node.run(
        "kept.sub = kept.harbor.subscribe({ key: ['tasks', '7'] }); await kept.until(() => kept.sub.ready && kept.sub.get()?.data);"
        + show + "await kept.until(() => kept.harbor.isHidden); await kept.harbor.get(['tasks', '7']); await new Promise((done) => setTimeout(done, 100)); kept.told.length = 0;",
        to="hidden",
    )  # fmt: skip
    first, last = new_title(), new_title()
    await asyncio.to_thread(retitled, upstream, "7", first)
    reached = f"await kept.until(async () => (await kept.harbor.get(['tasks', '7'])).data[0].title === '{first}');"
    told = await node.run(reached + "return kept.told.filter(({ sub }) => sub !== undefined).length")
    assert told == 0
    await asyncio.to_thread(retitled, upstream, "7", last)
    titles = await node.run(
        show + "await kept.until(() => kept.sub.get().data[0].title === args.last); return kept.told.filter(({ type }) => type === 'snapshot' || type === 'reset').length",
        to="visible", last=last,
    )  # fmt: skip
    assert titles == 0, "it went on where it was"
    assert await node.run("return kept.faults") == []


async def test_equal_subscriptions_share_one_and_the_last_one_ends_it(node: Node, tracker: LiveCluster) -> None:
    await connected(node, tracker)
    assert await node.run(
        """
        const { harbor } = kept, calls = [];
        const one = harbor.subscribe({ key: ['tasks', '8'] }, ({ type }) => calls.push(`one ${type}`));
        await kept.until(() => one.get()?.data);
        const two = harbor.subscribe({ key: ['tasks', '8'] }, ({ type }) => calls.push(`two ${type}`));
        const sent = [];
        const { send } = harbor.link;
        harbor.link.send = (messages) => { sent.push(...messages.map(({ type }) => type)); send.call(harbor.link, messages); };
        one.unsubscribe();
        await kept.until(() => calls.includes('two ready'));
        two.pause();
        two.resume();
        two.unsubscribe();
        await kept.until(() => !harbor.feeds.size);
        return [sent, two.get()?.data.length > 0];
        """
    ) == [["pause", "resume", "unsubscribe"], True]


async def test_fetches_are_answered_by_what_is_held_or_by_the_cluster(node: Node, tracker: LiveCluster) -> None:
    await connected(node, tracker)
    found = await node.run(
        """
        const { harbor } = kept;
        const sub = harbor.subscribe({ key: ['projects', 'detail', '1'] });
        const first = await harbor.fetch(['projects', 'detail', '1']);
        kept.told.length = 0;
        const second = await harbor.fetch(['projects', 'detail', '1']);
        const asked = kept.told.length;
        const other = await harbor.fetch(['projects', 'detail', '2']);
        const codes = [];
        for (const key of [['nothing', 'here'], ['projects', 'detail', 'no such']]) codes.push(await harbor.fetch(key).catch((error) => error.code));
        harbor.subscribe({ key: ['nothing', 'there'] });
        codes.push(await harbor.fetch(['nothing', 'there']).catch((error) => error.code));
        const stop = new AbortController();
        harbor.disconnect();
        const waits = harbor.fetch(['projects', 'detail', '3'], { signal: stop.signal }).catch((error) => error.name);
        stop.abort();
        return [first === second && first === sub.get().data, asked, other.id, codes, await waits];
        """
    )
    assert found == [True, 0, "2", ["NOT_FOUND", "UPSTREAM_ERROR", "NOT_FOUND"], "AbortError"]


async def test_a_write_that_lost_is_told_who_won(node: Node, tracker: LiveCluster, transport: str) -> None:
    await connected(node, tracker, transport=transport)
    assert await node.run(
        """
        const { harbor } = kept, key = ['plans', args.name];
        const { version } = await harbor.set(key, { a: 1, b: 1 });
        await harbor.set(key, { a: 2, b: 1 }, { baseVersion: version });
        const error = await harbor.set(key, { a: 3, b: 1 }, { baseVersion: version }).catch((error) => error);
        const { merged } = await harbor.set(key, { a: 1, b: 2 }, { baseVersion: version, merge: 'three_way' });
        return [error instanceof client.HarborError, error.code, error.details.current.data, merged, await harbor.fetch(key), await harbor.invalidate(key, { exact: true })];
        """,
        name=transport,
    ) == [True, "VERSION_CONFLICT", {"a": 2, "b": 1}, True, {"a": 2, "b": 2}, 1]


# --- credentials ---------------------------------------------------------------------------------------------------


def token(seconds: float, **grants: Any) -> str:
    claims = {"sub": "ann", "exp": time.time() + seconds, "harbor": {"read": [[]], "write": [[]], **grants}}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@pytest.fixture(scope="module")
def guarded(local_ray: None) -> Iterator[LiveCluster]:
    auth = {"mode": "jwt", "algorithms": ["HS256"], "secret": SECRET}
    live = LiveCluster({"gateway": {"auth": auth}}).start()
    yield live
    live.stop()


async def test_an_expired_token_needs_another(node: Node, guarded: LiveCluster, transport: str) -> None:
    await connected(node, guarded, transport=transport, token=token(10), maxBackoff=50)
    await node.run("kept.sub = kept.harbor.subscribe({ key: ['a'] }); await kept.until(() => kept.sub.ready)")
    found = await node.run(
        """
        const { harbor } = kept, reasons = [];
        harbor.on('state', (state, reason) => reasons.push([state, reason?.code]));
        await kept.until(() => harbor.state === 'needs-auth');
        const asked = await harbor.get(['a']).catch(({ code }) => code);
        await harbor.auth(args.token);
        await kept.until(() => harbor.state === 'connected');
        await harbor.set(['a'], 'back');
        await kept.until(() => kept.sub.get()?.data === 'back');
        return [reasons, asked];
        """,
        token=token(60),
    )
    assert found == [[["needs-auth", "UNAUTHORIZED"], ["connecting", None], ["connected", None]], "UNAUTHORIZED"]


async def test_a_function_is_asked_for_the_next_token_in_time(node: Node, guarded: LiveCluster) -> None:
    tokens = [token(10), token(60)]
    found = await node.run(
        """
        const asked = [...args.tokens];
        const harbor = client.connect({ url: args.url, token: async () => asked.shift() });
        const states = [];
        harbor.on('state', (state) => states.push(state));
        const sub = harbor.subscribe({ key: ['b'] });
        await kept.until(() => sub.ready);
        await kept.until(() => !asked.length);
        await new Promise((done) => setTimeout(done, args.until - Date.now()));
        await harbor.set(['b'], 1);
        return states;
        """,
        url=guarded.url,
        tokens=tokens,
        until=(time.time() + 10.5) * 1000,
    )
    assert found == ["connected"], "the session outlived its first token"


async def test_without_credentials_it_says_so_and_a_bad_token_too(node: Node, guarded: LiveCluster) -> None:
    for options in ({}, {"token": "no token"}, {"transport": "sse"}):
        assert (
            await node.run(
                "const harbor = client.connect(args); await kept.until(() => harbor.state === 'needs-auth'); harbor.close(); return harbor.state",
                url=guarded.url,
                **options,
            )
            == "closed"
        )


async def test_what_is_not_granted_is_refused_and_granted_later(node: Node, guarded: LiveCluster) -> None:
    await connected(node, guarded, token=token(60, read=[["mine"]]))
    assert await node.run(
        """
        const told = [];
        const sub = kept.harbor.subscribe({ key: ['theirs'] }, ({ type, error }) => told.push([type, error?.code]));
        await kept.until(() => told.length);
        await kept.harbor.auth(args.token);
        await kept.until(() => sub.ready);
        return told;
        """,
        token=token(60),
    ) == [["refused", "FORBIDDEN"], ["ready", None]]


async def test_the_queue_of_somebody_with_a_token_is_kept_only_where_it_is_said_whose_it_is(node: Node) -> None:
    assert await node.run(
        """
        globalThis.indexedDB = { open: (name) => { opened.push(name); return {}; } };
        const opened = [];
        for (const more of [{}, { token: 'x' }, { token: 'x', account: 'ann' }]) client.connect({ url: 'http://127.0.0.1:1/', ...more }).close();
        delete globalThis.indexedDB;
        return opened;
        """
    ) == ["harbor http://127.0.0.1:1 ", "harbor http://127.0.0.1:1 ann"]
