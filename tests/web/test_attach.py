"""`attach` and the guide's names, with the real TanStack Query in Node.js, before a real cluster on the sample upstream."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import compile_config, load_mapping, read_document
from tests.live import LiveCluster
from tests.web.node import Node

pytestmark = pytest.mark.cluster
DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"
_titles = itertools.count()

OPEN = """
  const { url, options = {}, attached = {}, ...more } = args;
  const optimistic = {
    update_task: ({ projectId, ...task }) => [{ merge_where: { key: ['tasks', projectId], where: { id: task.id }, value: task } }],
  };
  const harbor = kept.harbor = client.connect({ url, linger: 0, optimistic, ...more });
  const queryClient = kept.queryClient = new query.QueryClient(options);
  kept.detach = client.attach(queryClient, harbor, attached);
  kept.asked = [];
  kept.own = (name) => async () => { kept.asked.push(name); return name; };
  kept.observe = (options, Observer = query.QueryObserver) => {
    const observer = new Observer(queryClient, options);
    observer.stop = observer.subscribe(() => {});
    return observer;
  };
  kept.subscribed = () => [...harbor.feeds.values()].map(({ what }) => what.key);
"""


@pytest.fixture(scope="module")
def tracker(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    document = read_document(DEMO)
    document["queries"].append(
        {"key": ["quick", "{id}"], "service": "api", "path": "/projects/{id}", "stale_time": "200ms"}
    )
    document["streams"][0]["on"]["task:created"].append(
        {
            "append": {
                "key": ["channel", "project:{id}"],
                "item": {"event": "{event}", "id": "{event_id}", "data": "{data}"},
                "max_items": 3,
                "when_missing": "create",
            }
        }
    )
    live = LiveCluster(document, {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}).start()
    yield live
    live.stop()


@pytest.fixture
async def page(node: Node, tracker: LiveCluster) -> Node:
    await node.run(OPEN, url=tracker.url)
    return node


def retitled(upstream: Any, project: str, title: str) -> None:
    def act(up: Any) -> None:
        task = up.tracker.task_list(project)[0]
        up.emit(up.tracker.update_task(task["id"], {"title": title})[1])

    upstream.do(act)


def created(upstream: Any, project: str, title: str) -> None:
    upstream.do(lambda up: up.emit(up.tracker.create_task({"projectId": project, "title": title})[1]))


def new_title() -> str:
    return f"title {next(_titles)}"


async def test_a_mounted_query_is_live_until_its_last_observer_leaves(page: Node, upstream: Any) -> None:
    await page.run(
        """
        kept.first = kept.observe({ queryKey: ['tasks', '1'] });
        kept.second = kept.observe({ queryKey: ['tasks', '1'], select: (tasks) => tasks.length });
        await kept.until(() => kept.first.getCurrentResult().isSuccess);
        kept.old = kept.first.getCurrentResult().data;
        """
    )
    title = new_title()
    await asyncio.to_thread(retitled, upstream, "1", title)
    found = await page.run(
        """
        const data = () => kept.first.getCurrentResult().data;
        await kept.until(() => data()[0].title === args.title);
        const shared = data().slice(1).every((task, n) => task === kept.old[n + 1]);
        kept.first.stop();
        const still = kept.subscribed();
        kept.second.stop();
        await kept.until(() => !kept.subscribed().length);
        return [shared, kept.second.getCurrentResult().data === data().length, still];
        """,
        title=title,
    )
    assert found == [True, True, [["tasks", "1"]]]


async def test_a_disabled_query_is_not_watched_until_it_is_enabled(page: Node) -> None:
    assert await page.run(
        """
        const observer = kept.observe({ queryKey: ['tasks', '2'], enabled: false });
        const before = kept.subscribed();
        observer.setOptions({ queryKey: ['tasks', '2'], enabled: true });
        await kept.until(() => observer.getCurrentResult().isSuccess);
        const between = kept.subscribed();
        observer.setOptions({ queryKey: ['tasks', '3'], enabled: true });
        await kept.until(() => observer.getCurrentResult().isSuccess && kept.subscribed().length === 1);
        return [before, between, kept.subscribed()];
        """
    ) == [[], [["tasks", "2"]], [["tasks", "3"]]]


async def test_which_queries_the_cluster_serves(node: Node, tracker: LiveCluster) -> None:
    await node.run(OPEN, url=tracker.url, attached={"keys": [["tasks"], ["nothing"]]})
    found = await node.run(
        """
        const queries = {
          served: { queryKey: ['tasks', '1'], queryFn: kept.own('served') },
          other: { queryKey: ['users'], queryFn: kept.own('other') },
          meant: { queryKey: ['users', 'meant'], queryFn: kept.own('meant'), meta: { harbor: true } },
          excepted: { queryKey: ['tasks', '2'], queryFn: kept.own('excepted'), meta: { harbor: false } },
          unknown: { queryKey: ['nothing', 'known'], queryFn: kept.own('unknown') },
        };
        const results = {};
        for (const [name, options] of Object.entries(queries)) {
          const observer = kept.observe(options);
          await kept.until(() => !observer.getCurrentResult().isPending);
          results[name] = typeof observer.getCurrentResult().data;
        }
        return [kept.asked, results, kept.subscribed().map(([first]) => first)];
        """
    )
    assert found[0] == ["other", "meant", "excepted", "unknown"], "what the cluster does not have is fetched as before"
    assert found[1] == {
        "served": "object",
        "other": "string",
        "meant": "string",
        "excepted": "string",
        "unknown": "string",
    }
    assert found[2] == ["tasks", "users", "nothing"]


async def test_fetches_without_an_observer_are_answered_by_the_cluster(page: Node) -> None:
    assert await page.run(
        """
        const { queryClient } = kept;
        const data = await queryClient.fetchQuery({ queryKey: ['projects', 'detail', '1'] });
        const failed = await queryClient.fetchQuery({ queryKey: ['nothing'], retry: false }).catch(({ code }) => code);
        return [data.id, failed, kept.subscribed()];
        """
    ) == ["1", "NOT_FOUND", []]


async def test_what_is_live_is_not_stale_and_what_is_invalidated_is(page: Node, upstream: Any) -> None:
    found = await page.run(
        """
        const { harbor, queryClient } = kept, key = ['projects', 'detail', '2'];
        const first = kept.observe({ queryKey: key });
        await kept.until(() => first.getCurrentResult().isSuccess);
        const fresh = first.getCurrentResult().isStale;
        let asked = 0;
        const { fetch } = harbor;
        harbor.fetch = (...given) => (asked++, fetch.apply(harbor, given));
        kept.observe({ queryKey: key });
        const mounted = asked;
        // Somebody invalidates it at the cluster, which fetches it anew and finds the same: that comes by itself.
        const stale = [];
        first.subscribe(({ isStale }) => stale.push(isStale));
        await harbor.invalidate(key);
        await kept.until(() => stale.includes(true));
        await kept.until(() => !first.getCurrentResult().isStale);
        const byCluster = asked;
        // The page invalidates it: the cluster is asked to fetch it.
        const before = (await harbor.get(key)).origin.fetched_at;
        await queryClient.invalidateQueries({ queryKey: key });
        const after = (await harbor.get(key)).origin.fetched_at;
        return [fresh, mounted, byCluster, asked, after > before, first.getCurrentResult().isStale];
        """
    )
    assert found == [False, 0, 0, 1, True, False]


async def test_a_query_with_a_stale_time_of_its_own_is_refetched_from_what_is_held(page: Node) -> None:
    assert await page.run(
        """
        const key = ['projects', 'detail', '4'];
        const first = kept.observe({ queryKey: key, staleTime: 0 });
        await kept.until(() => first.getCurrentResult().isSuccess);
        const sent = [];
        const { send } = kept.harbor.link;
        kept.harbor.link.send = (messages) => { sent.push(...messages); send.call(kept.harbor.link, messages); };
        const { data } = await first.refetch();
        const second = kept.observe({ queryKey: key, staleTime: 0 });
        await kept.until(() => second.getCurrentResult().fetchStatus === 'idle');
        return [data === first.getCurrentResult().data, sent];
        """
    ) == [True, []]


async def test_an_entry_that_is_removed_is_gone_from_the_cache(page: Node) -> None:
    assert await page.run(
        """
        const { harbor } = kept, key = ['memo', '1'], path = `/v1/entries?key=${encodeURIComponent(JSON.stringify(key))}`;
        await harbor.set(key, 'there');
        const observer = kept.observe({ queryKey: key });
        await kept.until(() => observer.getCurrentResult().data === 'there');
        await harbor.request(path, { method: 'DELETE' });
        await kept.until(() => observer.getCurrentResult().isPending);
        const gone = observer.getCurrentResult().data;
        await harbor.set(key, null);
        await kept.until(() => observer.getCurrentResult().isSuccess);
        return [gone === undefined, observer.getCurrentResult().data];
        """
    ) == [True, None]


async def test_mutations_are_routed_by_their_keys_and_seen_at_once(page: Node, upstream: Any) -> None:
    title = new_title()
    found = await page.run(
        """
        const { queryClient } = kept;
        const tasks = kept.observe({ queryKey: ['tasks', '4'] });
        await kept.until(() => tasks.getCurrentResult().isSuccess);
        const { id } = tasks.getCurrentResult().data[0];
        const seen = [];
        tasks.subscribe(({ data }) => data[0].title !== seen.at(-1) && seen.push(data[0].title));
        const update = new query.MutationObserver(queryClient, { mutationKey: ['update_task'] });
        const own = new query.MutationObserver(queryClient, { mutationKey: ['update_task'], mutationFn: kept.own('own') });
        const result = await update.mutate({ id, projectId: '4', title: args.title });
        await own.mutate({});
        const create = new query.MutationObserver(queryClient, { mutationKey: ['messages', 'create'] });
        const message = await create.mutate({ channelId: '1', content: args.title });
        const bad = await new query.MutationObserver(queryClient, { mutationKey: ['no', 'such'] }).mutate({}).catch(({ code }) => code);
        return [result.title, seen, kept.asked, message.content, bad];
        """,
        title=title,
    )
    assert found == [title, [title], ["own"], title, "UNKNOWN_MUTATION"]


async def test_a_mutation_of_an_offline_page_waits_and_is_sent_once(page: Node, upstream: Any) -> None:
    title = new_title()
    found = await page.run(
        """
        const { harbor, queryClient } = kept;
        await kept.until(() => harbor.state === 'connected');
        query.onlineManager.setOnline(false);
        harbor.disconnect();
        const create = new query.MutationObserver(queryClient, { mutationKey: ['create_task'] });
        const made = create.mutate({ projectId: '5', title: args.title });
        await kept.until(() => harbor.mutations.length === 1);
        const paused = create.getCurrentResult().isPaused;
        harbor.reconnect();
        query.onlineManager.setOnline(true);
        return [paused, (await made).title];
        """,
        title=title,
    )
    assert found == [False, title]
    tasks = upstream.do(lambda up: [task["title"] for task in up.tracker.task_list("5")])
    assert tasks.count(title) == 1


async def test_an_infinite_query_is_live_and_fetches_its_pages_from_the_cluster(page: Node, upstream: Any) -> None:
    await page.run(
        """
        kept.posts = kept.observe({
          queryKey: ['posts', '1'], initialPageParam: 0,
          getNextPageParam: (last, pages) => (last.length ? pages.length * 20 : undefined),
        }, query.InfiniteQueryObserver);
        await kept.until(() => kept.posts.getCurrentResult().isSuccess);
        await kept.posts.fetchNextPage();
        kept.old = kept.posts.getCurrentResult().data;
        """
    )
    upstream.do(lambda up: up.emit(up.tracker.create_post({"feedId": "1", "content": "new"})[1]))
    found = await page.run(
        """
        const data = () => kept.posts.getCurrentResult().data;
        await kept.until(() => data().pages[0][0].content === 'new');
        await kept.posts.fetchNextPage();
        const ids = data().pages.flat().map(({ id }) => id);
        return [Object.keys(data()), kept.old.pages.length, kept.old.pageParams, data().pages.length, new Set(ids).size === ids.length, data().pages[1] === kept.old.pages[1], kept.posts.getCurrentResult().hasNextPage];
        """
    )
    assert found == [["pages", "pageParams"], 2, [0, 20], 3, True, True, True]


async def test_detached_it_is_as_it_was(page: Node) -> None:
    assert await page.run(
        """
        const observer = kept.observe({ queryKey: ['tasks', '6'] });
        await kept.until(() => observer.getCurrentResult().isSuccess);
        kept.detach();
        await kept.until(() => !kept.subscribed().length);
        const own = kept.observe({ queryKey: ['tasks', '7'], queryFn: kept.own('own') });
        await kept.until(() => own.getCurrentResult().isSuccess);
        return [kept.asked, kept.subscribed(), kept.queryClient.getDefaultOptions()];
        """
    ) == [["own"], [], {}]


# --- the guide's names ---------------------------------------------------------------------------------------------


async def test_keys_are_those_of_the_python_factory(node: Node) -> None:
    from cluster.app import keys

    projects = keys("projects")
    expected = [projects.all(), projects.lists(), projects.list(), projects.list({"a": 1}), projects.details(), projects.detail("7"), projects.key("x", 1)]  # fmt: skip
    assert (
        await node.run(
            "const keys = guide.createQueryKeyFactory('projects'); return [keys.all(), keys.lists(), keys.list(), keys.list({ a: 1 }), keys.details(), keys.detail('7'), keys.key('x', 1)]"
        )
        == expected
    )


async def test_events_of_elsewhere_are_put_into_a_query(node: Node) -> None:
    assert await node.run(
        """
        const cache = new query.QueryClient();
        const data = {};
        const put = (mode, data, more) => guide.streamToQueryCache(cache, { queryKey: [mode], data, mode, ...more });
        for (const mode of ['append', 'prepend', 'upsert']) {
          for (const id of [1, 2, 3, 2]) put(mode, { id, n: cache.getQueryData([mode])?.length ?? 0 }, { maxItems: 2 });
          data[mode] = cache.getQueryData([mode]).map(({ id }) => id);
        }
        for (const mode of ['merge', 'replace']) { put(mode, { a: 1, b: 1 }); put(mode, { b: 2 }); data[mode] = cache.getQueryData([mode]); }
        try { put('other', 1); } catch (error) { data.error = error.message; }
        cache.clear();
        return data;
        """
    ) == {
        "append": [2, 3],
        "prepend": [3, 2],
        "upsert": [2, 3],
        "merge": {"a": 1, "b": 2},
        "replace": {"b": 2},
        "error": "mode is one of replace, merge, append, prepend, upsert, got other",
    }


async def test_a_resource_has_a_client(page: Node) -> None:
    assert await page.run(
        """
        const messages = guide.createResourceClient({ harbor: kept.harbor, resource: 'messages' });
        const filters = { channelId: '2' };
        const before = await messages.list(filters);
        const made = await messages.create({ channelId: '2', content: 'first' });
        await messages.update(made.id, { content: 'second', channelId: '2' });
        const one = await messages.get(made.id);
        await messages.delete(made.id, filters);
        await kept.until(async () => (await messages.list(filters)).length === before.length);
        return [one.content, messages.keys.detail(made.id)[1]];
        """
    ) == ["second", "detail"]


async def test_a_resource_is_listed_without_filters(node: Node) -> None:
    key = await node.run(
        "return guide.createResourceClient({ harbor: { fetch: (key) => key }, resource: 'notes' }).list()"
    )
    document = {"services": {"api": {"base_url": "http://x"}}, "resources": {"notes": {"service": "api", "path": "/n"}}}
    assert compile_config(load_mapping(document, {})).queries.find(key) is not None, key


async def test_a_channel_is_listened_to(page: Node, upstream: Any) -> None:
    await page.run(
        """
        kept.heard = []; kept.life = [];
        const life = Object.fromEntries(['onConnect', 'onDisconnect', 'onReconnected'].map((name) => [name, () => kept.life.push(name)]));
        kept.stream = guide.realtimeStream({
          harbor: kept.harbor, channel: 'project:7', ...life,
          events: { 'task:created': (task, { event }) => kept.heard.push([event, task.title]), 'presence:update': ({ state }) => kept.heard.push(['here', state]), 'presence:leave': ({ state }) => kept.heard.push(['left', state]) },
        });
        kept.watch = kept.harbor.subscribe({ key: ['tasks', '7'] });
        await kept.until(() => kept.watch.get()?.data);
        """
    )
    for number in range(5):
        await asyncio.to_thread(created, upstream, "7", f"task {number}")
        await page.run("await kept.until(() => kept.heard.length === args.count)", count=number + 1)
    found = await page.run(
        """
        const { harbor, stream, heard, life } = kept;
        const other = client.connect({ url: harbor.url });
        other.presence('project:7', { state: 1 });
        await kept.until(() => heard.length === 6);
        other.close();
        await kept.until(() => heard.length === 7);
        const status = guide.onlineStatus(harbor), online = [];
        status.subscribe((isOnline) => online.push(isOnline));
        harbor.disconnect();
        harbor.reconnect();
        await kept.until(() => harbor.state === 'connected');
        const sent = stream.send('update_task', {}).name;
        stream.unsubscribe();
        await kept.until(() => !kept.subscribed().some(([first]) => first === 'channel'));
        return { heard, life, sent, online, current: status.current, state: stream.connectionState };
        """
    )
    assert found["heard"] == [*(["task:created", f"task {n}"] for n in range(5)), ["here", 1], ["left", 1]]
    assert found["life"] == ["onConnect", "onDisconnect", "onReconnected"]
    assert (found["sent"], found["online"], found["current"], found["state"]) == (
        "update_task",
        [False, False, True],
        True,
        "connected",
    )


async def test_a_channel_that_only_our_state_was_told_on_is_left(node: Node) -> None:
    assert await node.run(
        """
        const harbor = client.connect({ url: 'http://127.0.0.1:1' });
        const sent = [];
        harbor.send = ({ type, state }) => sent.push(state ?? type);
        harbor.isOpen = true;
        const stream = guide.realtimeStream({ harbor, channel: 'document:1' });
        stream.send('presence:update', 'first');
        stream.unsubscribe();
        stream.send('presence:update', 'late');
        const silent = guide.realtimeStream({ harbor, channel: 'document:1' });
        silent.unsubscribe();
        silent.send('presence:update', 'late');
        harbor.close();
        return [sent, harbor.rooms.size];
        """
    ) == [["presence", "first", "leave"], 0]


async def test_each_event_of_a_channel_is_heard_once_whatever_it_is_about(node: Node) -> None:
    heard = await node.run(
        """
        let listener;
        const harbor = { state: 'connected', on: () => () => {}, subscribe: (what, hear) => ((listener = hear), { unsubscribe() {} }) };
        const heard = [];
        const stream = guide.realtimeStream({ harbor, channel: 'project:1', events: { updated: (data) => heard.push(data) } });
        const has = (...data) => listener({ type: 'data', entry: { data } });
        const again = (items) => JSON.parse(JSON.stringify(items));
        const item = (data, id) => ({ event: 'updated', id, data });
        const before = item('before', 7);
        listener({ type: 'data', entry: { data: [before] } });
        listener({ type: 'ready' });
        has(before);
        has(item('second', 7));
        has(item('third', 7));
        const third = item('third', 7);
        has(third);
        const same = [item('same'), item('same')];
        has(third, same[0]);
        has(third, ...same);
        has(...again([third, ...same, item('while away', 8)]));
        stream.unsubscribe();
        return heard;
        """
    )
    assert heard == ["second", "third", "same", "same", "while away"]
