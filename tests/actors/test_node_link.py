import asyncio
import gc
import os
import socket
import subprocess
import sys
import uuid

import pytest

from cluster.actors import node_link
from cluster.actors.node_link import Lost, NodeLink

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # links are open as long as their process lives
]


@pytest.fixture
def node() -> str:
    return uuid.uuid4().hex


async def listening(node: str, take=lambda message: b"<" + message + b">") -> NodeLink:
    assert await node_link.listen(node, "harbor", "shard-0", take)
    return await NodeLink.connect(node, "harbor", "shard-0")


async def test_a_call_brings_its_answer(node):
    link = await listening(node)
    assert await link.call([b"hello"]) == b"<hello>"


async def test_pieces_of_any_size_arrive_as_one(node):
    link = await listening(node)
    pieces = [b"a" * 3_000_000, b"b" * 90_000, b"c"]
    assert await link.call(pieces) == b"<" + b"".join(pieces) + b">"


async def test_calls_at_once_each_get_their_own_answer(node):
    link = await listening(node)
    calls = [b"%d" % n * (1 + n * 1000) for n in range(50)]
    assert await asyncio.gather(*(link.call([each]) for each in calls)) == [b"<" + each + b">" for each in calls]


async def test_a_call_that_failed_there_is_lost_and_the_next_is_not(node):
    link = await listening(node, lambda message: b"" if message == b"bad" else message)
    with pytest.raises(Lost):
        await link.call([b"bad"])
    assert await link.call([b"good"]) == b"good"


async def test_who_does_not_listen_is_lost_at_once(node):
    await listening(node)
    with pytest.raises(Lost):
        await NodeLink.connect(node, "harbor", "shard-1")
    with pytest.raises(Lost):
        await NodeLink.connect(uuid.uuid4().hex, "harbor", "shard-0")


async def test_it_listens_on_though_nobody_holds_it(node):
    assert await node_link.listen(node, "harbor", "shard-0", lambda message: message)
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    link = await NodeLink.connect(node, "harbor", "shard-0")
    assert await link.call([b"there"]) == b"there"


async def test_a_name_is_listened_on_once(node):
    await listening(node)
    assert not await node_link.listen(node, "harbor", "shard-0", bytes)


async def test_a_killed_peer_loses_its_calls_and_leaves_its_name(node):
    code = (
        "import asyncio, sys, time\n"
        "from cluster.actors import node_link\n"
        "async def main():\n"
        "    assert await node_link.listen(sys.argv[1], 'harbor', 'shard-0', lambda _: time.sleep(600))\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, node], stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        link = await NodeLink.connect(node, "harbor", "shard-0")
        call = asyncio.create_task(link.call([b"hello"]))
        await asyncio.sleep(0)  # it is written
        peer.kill()
        with pytest.raises(Lost):
            await call
        peer.wait()
    with pytest.raises(Lost):
        await link.call([b"again"])
    assert await node_link.listen(node, "harbor", "shard-0", bytes)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_not_heard(node):
    heard = []

    def take(message: bytes) -> bytes:
        heard.append(message)
        return message

    await listening(node, take)
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "with socket.socket(socket.AF_UNIX) as s:\n"
        "    s.connect(bytes.fromhex(sys.argv[1]))\n"
        "    try:\n"
        "        s.sendall(b'\\0\\0\\0\\0\\1\\0\\0\\0x')\n"
        "        print(s.recv(1))\n"
        "    except (BrokenPipeError, ConnectionResetError):  # it may be closed before anything is written, too\n"
        "        print(b'')\n"
    )
    name = node_link._name(node, "harbor", "shard-0").encode().hex()
    outcome = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, name], capture_output=True, text=True, check=True, timeout=60
    )
    assert (outcome.stdout, heard) == ("b''\n", [])


async def test_an_impostor_under_the_name_is_not_called(node, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as impostor:
        impostor.bind(node_link._name(node, "harbor", "shard-0"))
        impostor.listen()
        monkeypatch.setattr(node_link.os, "getuid", lambda: os.geteuid() + 1)
        link = await NodeLink.connect(node, "harbor", "shard-0")
        with pytest.raises(Lost):
            await link.call([b"secret"])
