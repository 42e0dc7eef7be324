"""What becomes of a connection that is given up before it is open. No gateway is needed for that."""

import json
from typing import Any

from websockets import Subprotocol
from websockets.asyncio.server import ServerConnection, serve

from tests.web.node import Node


async def test_a_stream_that_is_given_up_is_not_begun_by_an_answer_that_comes_late(node: Node) -> None:
    found = await node.run(
        """
        let answer;
        const asked = new Promise((done) => { answer = done; });
        const harbor = client.connect({ url: 'http://127.0.0.1:1', transport: 'sse', fetch: () => asked });
        await kept.until(() => harbor.link);
        harbor.disconnect();
        answer(new Response('{}', { headers: { 'Content-Type': 'application/json' } }));
        await new Promise((done) => setTimeout(done)); // all that follows from the answer is done by then
        harbor.subscribe({ key: ['a'] }, () => {});
        return [harbor.state, Boolean(harbor.isOpen), Boolean(harbor.watch)];
        """
    )
    assert found == ["disconnected", False, False]


async def test_a_message_that_is_wrong_costs_no_other_and_a_frame_that_is_none_the_connection(node: Node) -> None:
    welcome = {"type": "welcome", "session": "", "server_time": 0, "ping_interval_ms": 25_000, "resume_token": ""}
    said: list[list[Any]] = [
        [[welcome, None, {"type": "presence"}, {"type": "notice", "code": "first"}], "?"],
        [[welcome, {"type": "notice", "code": "second"}]],
    ]
    connections = iter(said)

    async def gateway(socket: ServerConnection) -> None:
        for frame in next(connections):
            await socket.send(frame if frame == "?" else json.dumps(frame))
        await socket.wait_closed()

    async with serve(gateway, "127.0.0.1", 0, subprotocols=[Subprotocol("harbor.v1")]) as server:
        found = await node.run(
            """
            const harbor = client.connect({ url: args.url });
            const codes = [];
            harbor.on('notice', ({ code }) => codes.push(code));
            await kept.until(() => codes.includes('second'));
            harbor.close();
            return codes;
            """,
            url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        )
    assert found == ["first", "second"]
