"""The hooks, by React's own renderer for tests, before a real cluster."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import read_document
from tests.live import LiveCluster
from tests.web.node import Node

pytestmark = pytest.mark.cluster
DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"


@pytest.fixture(scope="module")
def tracker(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    live = LiveCluster(read_document(DEMO), {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}).start()
    yield live
    live.stop()


async def test_hooks_show_what_the_client_knows(node: Node, tracker: LiveCluster) -> None:
    found = await node.run(
        """
        globalThis.IS_REACT_ACT_ENVIRONMENT = true;
        const { default: React, act } = await import('react');
        const { default: renderer } = await import('react-test-renderer');
        const hooks = await import('harbor-cluster/react');
        const harbor = client.connect({ url: args.url, linger: 0 });
        const other = client.connect({ url: args.url });
        const shown = {};
        const heard = [];
        function Page({ title }) {
          shown.online = hooks.useOnlineStatus();
          shown.state = hooks.useConnectionState();
          shown.waiting = hooks.useMutations().length;
          shown.members = hooks.usePresence('project:1', { title }).members.map(({ state }) => state.title);
          shown.stream = hooks.useRealtimeStream({ channel: ['memo', 'react'], events: { update: (value) => heard.push([title, value]) } });
          return null;
        }
        const page = (title) => React.createElement(hooks.HarborProvider, { harbor }, React.createElement(Page, { title }));
        let root;
        await act(() => { root = renderer.create(page('a')); });
        const until = (holds) => kept.until(async () => { await act(async () => {}); return holds(); });
        await until(() => shown.online && shown.members[0] === 'a');
        await other.set(['memo', 'react'], 1);
        await until(() => heard.length === 1);
        await act(() => root.update(page('b')));
        await until(() => shown.members[0] === 'b');
        await other.set(['memo', 'react'], 2);
        await until(() => heard.length === 2);
        await act(() => harbor.disconnect());
        await act(() => { shown.stream.send('create_task', { projectId: '1', title: 'by a hook' }); });
        await until(() => shown.waiting === 1 && shown.state === 'disconnected' && !shown.online);
        await act(() => harbor.reconnect());
        await until(() => shown.waiting === 0);
        await act(() => root.unmount());
        await kept.until(() => !harbor.feeds.size && !harbor.rooms.size);
        const lonely = await import('react-test-renderer').then(async () => {
          const { error } = console;
          console.error = () => {};
          try { await act(() => { renderer.create(React.createElement(() => hooks.useHarbor())); }); } catch ({ message }) { return message; } finally { console.error = error; }
        });
        return [heard, lonely];
        """,
        url=tracker.url,
    )
    assert found == [[["a", 1], ["b", 2]], "useHarbor needs a HarborProvider above it"]


async def test_hooks_need_no_events_and_show_nobody_of_another_topic(node: Node) -> None:
    assert await node.run(
        """
        globalThis.IS_REACT_ACT_ENVIRONMENT = true;
        const { default: React, act } = await import('react');
        const { default: renderer } = await import('react-test-renderer');
        const hooks = await import('harbor-cluster/react');
        const members = new Map([['m', { member: 'm' }]]);
        const harbor = {
          state: 'connected', on: () => () => {},
          presence: (topic, _, listener) => { if (topic === 'full') listener({ members }); return { leave() {}, update() {} }; },
        };
        let shown;
        function Page({ topic }) {
          shown = hooks.usePresence(topic).members.length;
          hooks.useRealtimeStream({ channel: ['memo'] });
          return null;
        }
        const page = (topic) => React.createElement(hooks.HarborProvider, { harbor }, React.createElement(Page, { topic }));
        let root;
        const seen = [];
        for (const topic of ['full', 'refused']) {
          await act(() => { if (root) root.update(page(topic)); else root = renderer.create(page(topic)); });
          seen.push(shown);
        }
        return seen;
        """
    ) == [1, 0]
