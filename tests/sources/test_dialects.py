"""Dialects against the servers whose they are: Socket.IO and GraphQL from npm, run by Node.js; and what faulty upstreams say."""

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from websockets.asyncio.server import serve

from cluster.core.dialect import GraphQl, SocketIo, _Members, dialect
from cluster.sources.http_lines import HttpLinesSource, LineSplitter
from cluster.sources.websocket import WebSocketSource
from tests.live import free_port
from tests.npm import installed
from tests.sources.conftest import QUICK

SERVERS = Path(__file__).parent / "servers"


@pytest.fixture(scope="session")
def packages():
    """A directory with the servers and what npm says they need: installed once, outside the project."""
    return installed(SERVERS / "package.json", "servers", "graphql-ws", "the servers")


class Server:
    """A server as a process of its own: what it says is in `said`."""

    port: int

    def __init__(self, process):
        self._process = process

    async def hear(self, *names):
        """Wait for a line with one of these members."""
        async with asyncio.timeout(60):
            while True:
                line = json.loads(await self._process.stdout.readline())
                if not names or set(names) & set(line):
                    return line

    def tell(self, **command):
        self._process.stdin.write(json.dumps(command).encode() + b"\n")


@asynccontextmanager
async def serving(packages, name, port=None):
    shutil.copy(SERVERS / name, packages)
    process = await asyncio.create_subprocess_exec(
        "node", name, str(port or free_port()), cwd=packages, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server = Server(process)
    server.port = (await server.hear("port"))["port"]
    try:
        yield server
    finally:
        process.kill()
        await process.wait()


def filled(channel, last=None):
    return json.dumps(["join", channel] if last is None else ["join", channel, last])


def operation(channel, last=None):
    query = "subscription ($c: ID!, $after: ID) { postAdded(channel: $c, after: $after) { id title } }"
    return json.dumps({"query": query, "variables": {"c": channel, **({} if last is None else {"after": last})}})


@pytest.fixture
def socket_io(recorder, transport):
    def make(port, *, token="secret", namespace="/chat", **options):
        url = f"ws://127.0.0.1:{port}"
        spoken = dialect(
            "socket.io", url, envelope={"channel": "room", "id": "n"}, namespace=namespace, auth={"token": token}
        )
        return WebSocketSource(
            "events",
            url,
            recorder,
            subscribe_message=filled,
            unsubscribe_message=lambda channel: json.dumps(["leave", channel]),
            backoff=QUICK,
            transport=transport,
            dialect=spoken,
            **options,
        )

    return make


@pytest.fixture
def graphql(recorder, transport):
    def make(port, *, token="secret", **options):
        url = f"ws://127.0.0.1:{port}/graphql"
        spoken = dialect("graphql-transport-ws", url, envelope={"id": "id"}, namespace="/", auth={"token": token})
        return WebSocketSource(
            "events",
            url,
            recorder,
            subscribe_message=operation,
            backoff=QUICK,
            transport=transport,
            dialect=spoken,
            **options,
        )

    return make


class TestSocketIo:
    async def test_rooms_are_joined_and_left_and_their_events_come(self, packages, socket_io, recorder, running):
        async with serving(packages, "socket_io.mjs") as server:
            source = socket_io(server.port)
            source.join("a")
            running(source)
            await recorder.until(lambda: recorder.opens == 1)
            assert await server.hear("join") == {"join": "a", "after": None}
            server.tell(emit=["a", "message", {"room": "a", "n": 1, "text": "é"}, "more"])
            await recorder.until(lambda: recorder.events)
            assert recorder.events == [("message", '{"room":"a","n":1,"text":"é"}'.encode(), 1, "a")]
            source.join("b")
            assert (await server.hear("join"))["join"] == "b"
            source.leave("a")
            assert (await server.hear("leave"))["leave"] == "a"
            server.tell(emit=["b", "bare"])
            await recorder.until(lambda: len(recorder.events) == 2)
            assert recorder.events[1] == ("bare", b"null", None)

    async def test_what_wants_an_acknowledgement_gets_one_and_pings_are_answered(
        self, packages, socket_io, recorder, running
    ):
        async with serving(packages, "socket_io.mjs") as server:
            running(socket_io(server.port))
            await recorder.until(lambda: recorder.opens == 1)
            server.tell(ack=["question", 7])
            assert (await server.hear("acknowledged"))["acknowledged"]
            await server.hear("pong")
            assert recorder.events == [("question", b"7", None)]

    async def test_binary_events_are_refused_and_the_rest_goes_on(self, packages, socket_io, recorder, running):
        async with serving(packages, "socket_io.mjs") as server:
            source = socket_io(server.port)
            source.join("a")
            running(source)
            await server.hear("join")
            server.tell(binary=True)
            server.tell(emit=["a", "text", 1])
            await recorder.until(lambda: recorder.events)
            assert [reason for reason, _ in recorder.refusals] == ["binary"]

    async def test_after_a_restart_it_joins_again_where_it_was(self, packages, socket_io, recorder, running):
        async with serving(packages, "socket_io.mjs") as server:
            source = socket_io(server.port)
            source.join("a")
            running(source)
            await server.hear("join")
            port = server.port
        await recorder.until(lambda: recorder.reasons)
        recorder.positions["a"] = 41
        async with serving(packages, "socket_io.mjs", port) as server:
            assert await server.hear("join") == {"join": "a", "after": 41}
            server.tell(kick=True)
            await recorder.until(lambda: "the server disconnected the namespace" in recorder.reasons)
            await server.hear("join")

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"token": "wrong"}, "the namespace was refused: who are you?"),
            ({"namespace": "/none"}, "Invalid namespace"),
        ],
    )
    async def test_who_is_not_let_in_hears_why(self, packages, socket_io, recorder, running, options, reason):
        async with serving(packages, "socket_io.mjs") as server:
            running(socket_io(server.port, **options))
            await recorder.until(lambda: recorder.reasons)
            assert reason in recorder.reasons[0]
            await recorder.until(lambda: "failed" in recorder.states)
            assert recorder.opens == 0


class TestGraphQl:
    async def test_each_channel_is_a_subscription(self, packages, graphql, recorder, running):
        async with serving(packages, "graphql_ws.mjs") as server:
            source = graphql(server.port)
            source.join("a")
            running(source)
            assert await server.hear("subscribe") == {"subscribe": "a", "after": None}
            source.join("b")
            assert (await server.hear("subscribe"))["subscribe"] == "b"
            server.tell(publish=["b", {"id": 5, "title": "t"}])
            await recorder.until(lambda: recorder.events)
            ((name, data, event_id, channel),) = recorder.events
            assert (name, json.loads(data), event_id, channel) == ("postAdded", {"id": 5, "title": "t"}, 5, "b")
            source.leave("a")
            assert (await server.hear("complete"))["complete"] == "a"

    async def test_an_operation_that_is_refused_is_told_and_others_go_on(self, packages, graphql, recorder, running):
        async with serving(packages, "graphql_ws.mjs") as server:
            source = graphql(server.port)
            source.join("secret")
            source.join("a")
            running(source)
            await recorder.until(lambda: recorder.refusals)
            assert recorder.refusals[0][0] == "subscribe_refused"
            assert "secret" in recorder.details[0]
            assert "not for you" in recorder.details[0]
            await server.hear("subscribe")
            server.tell(publish=["a", {"id": 1}])
            await recorder.until(lambda: recorder.events)
            assert recorder.reasons == []

    async def test_a_subscription_that_ends_and_a_connection_that_is_lost_begin_again_where_they_were(
        self, packages, graphql, recorder, running
    ):
        async with serving(packages, "graphql_ws.mjs") as server:
            source = graphql(server.port)
            source.join("a")
            running(source)
            await server.hear("subscribe")
            recorder.positions["a"] = 3
            server.tell(end="a")
            await recorder.until(lambda: recorder.reasons == ["the upstream ended the subscription of a"])
            assert await server.hear("subscribe") == {"subscribe": "a", "after": "3"}
            server.tell(drop=True)
            await server.hear("subscribe")

    async def test_who_is_not_let_in_hears_why(self, packages, graphql, recorder, running):
        async with serving(packages, "graphql_ws.mjs") as server:
            running(graphql(server.port, token="wrong"))
            await recorder.until(lambda: recorder.reasons)
            assert recorder.reasons[0] == "closed by the upstream: 4403 Forbidden"

    async def test_a_server_that_says_nothing_is_given_up(self, graphql, recorder, running):
        async with serve(lambda connection: connection.wait_closed(), "127.0.0.1", 0) as server:
            running(graphql(server.sockets[0].getsockname()[1], open_timeout_s=0.3))
            await recorder.until(lambda: recorder.reasons)
        assert recorder.reasons[0] == "the upstream did not let us in in time"
        assert recorder.opens == 0


@pytest.mark.parametrize(
    ("frame", "heard"),
    [
        (b"", "not_a_packet"),
        (b"9x", "not_a_packet"),
        (b"42/chat,{}", "not_json"),
        (b'42/chat,["a"', "not_json"),
        (b"42/chat,[]", "not_json"),
        (b"42/chat,[7]", "not_json"),
        (b'42/chat,["\xff"]', "not_json"),
        (b"42/chat," + b"[" * 5000, "not_json"),
        (b'451-/chat,["b",{"_placeholder":true,"num":0}]', "binary"),
    ],
)
def test_what_is_no_socket_io_is_refused(frame, heard):
    found = SocketIo("/chat", "", _Members({})).hear(frame)
    assert found.refused is not None
    assert found.refused[0] == heard


MEMBERS = _Members({"channel": "room", "id": "n"})


@pytest.mark.parametrize("data", [b'{"room":"a","n":1.5}', b'{"room":7,"n":1}', b'{"room":"a","n":true}'])
def test_an_event_with_members_of_the_wrong_type_is_none_and_is_acknowledged(data):
    found = SocketIo("/", "", MEMBERS).hear(b'4212["m",%b]' % data)
    assert (found.replies, found.events) == (("4312[]",), ())
    assert found.refused is not None
    assert found.refused[0] == "no_event"


@pytest.mark.parametrize("data", [b"null", b"7", b'["a"]', b'{"text":"a"}', b'{"room":"\xff"}', b'{"room":null}'])
def test_an_event_without_such_members_is_of_no_channel(data):
    (event,) = SocketIo("/", "", MEMBERS).hear(b'42["m",%b]' % data).events
    assert (event.channel, event.id) == (None, None)


def test_of_several_fields_those_are_events_whose_ids_are_some():
    conversation = GraphQl("", MEMBERS)
    conversation.join("a", "{}")
    found = conversation.hear(b'{"type":"next","id":"1","payload":{"data":{"x":{"n":true},"y":{"n":2}}}}')
    assert [(event.event, event.channel, event.id) for event in found.events] == [("y", "a", 2)]
    assert found.refused is not None
    assert found.refused[0] == "no_event"
    assert conversation.hear(b'{"type":"next","id":"1","payload":{"data":{"x":{"n":1.5}}}}').events == ()


def test_other_namespaces_are_not_ours():
    conversation = SocketIo("/chat", "", _Members({}))
    for frame in (b'42["root"]', b'42/chatter,["x"]', b'42/c,["x"]', b"40", b"41", b"6", b"3"):
        assert conversation.hear(frame) == ((), (), False, None, None)
    root = SocketIo("/", "", _Members({}))
    assert root.hear(b'42/chat,["x"]').events == ()
    assert root.hear(b"40").is_ready
    assert root.hear(b'4212["x",1]').replies == ("4312[]",)
    assert root.hear(b"1").failure


@pytest.mark.parametrize(
    ("frame", "heard"),
    [
        (b"{", "not_json"),
        (b"[]", "not_json"),
        (b'{"type":"what"}', "not_a_packet"),
        (b'{"type":"next","id":"1","payload":7}', "not_json"),
        (b'{"type":"next","id":"1","payload":{"errors":[{"message":"no"}]}}', "subscribe_refused"),
    ],
)
def test_what_is_no_graphql_is_refused(frame, heard):
    conversation = GraphQl("", _Members({}))
    conversation.join("a", "{}")
    found = conversation.hear(frame)
    assert found.refused is not None
    assert found.refused[0] == heard


class TestLines:
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_lines_come_whole_however_they_are_cut(self, size):
        stream = b'{"a":1}\r\n\n  \n{"b":2}\n' + b"x" * 50 + b'\n{"c":3}\npart'
        lines = LineSplitter(40)
        found = [line for at in range(0, len(stream), size) for line in lines.feed(stream[at : at + size])]
        assert [line.strip() for line in found] == [b'{"a":1}', b'{"b":2}', b'{"c":3}']
        assert lines.refused == [50]

    @staticmethod
    @asynccontextmanager
    async def serving(write, content_type="application/x-ndjson"):
        asked = []

        async def handle(request):
            asked.append(request.query_string)
            response = web.StreamResponse(headers={"content-type": content_type})
            await response.prepare(request)
            await write(response)
            return response

        app = web.Application()
        app.router.add_get("/lines", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/lines", asked
        await runner.cleanup()

    async def test_each_line_is_a_frame_and_it_goes_on_after_the_last_id(self, recorder, running):
        async def write(response):
            await response.write(b'{"event":"a"}\n\n[{"event":"b"},{"event"')
            await response.write(b':"c"}]\n')

        async with self.serving(write) as (url, asked):
            running(HttpLinesSource("s", url + "?after={last_event_id}", recorder, backoff=QUICK))
            await recorder.until(lambda: len(recorder.frames) >= 2)
            recorder.positions[None] = "7&8"
            assert recorder.frames[:2] == [b'{"event":"a"}', b'[{"event":"b"},{"event":"c"}]']
            await recorder.until(lambda: "after=7%268" in asked)
            assert asked[0] == "after="

    async def test_a_line_without_end_is_given_up(self, recorder, running):
        async def write(response):
            while True:
                await response.write(b"x" * 10_000)

        async with self.serving(write) as (url, _):
            running(HttpLinesSource("s", url, recorder, backoff=QUICK, max_event_bytes=20_000))
            await recorder.until(lambda: "line_too_long" in recorder.reasons)

    async def test_what_is_no_stream_is_not_read(self, recorder, running):
        async def write(response):
            await response.write(b"<html>\n")

        async with self.serving(write, "text/html") as (url, _):
            running(HttpLinesSource("s", url, recorder, backoff=QUICK))
            await recorder.until(lambda: recorder.reasons)
            assert "content type is text/html" in recorder.reasons[0]
            assert recorder.frames == []

    async def test_a_websocket_message_may_hold_several(self, recorder, running, transport):
        async def write(connection):
            await connection.send('{"event":"a"}\n{"event":"b"}\n')
            await connection.wait_closed()

        async with serve(write, "127.0.0.1", 0) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            running(WebSocketSource("s", url, recorder, backoff=QUICK, transport=transport, is_lines=True))
            await recorder.until(lambda: len(recorder.frames) >= 2)
        assert recorder.frames == [b'{"event":"a"}', b'{"event":"b"}']
