"""Calls between actors of one node, over Unix sockets.

Ray's own calls cost milliseconds of CPU where calls are paced, as windows pace them; a socket costs some tens of microseconds. Ray
still places actors, starts them anew, carries calls between nodes, and those for which there is no socket.

A socket has an abstract name (Linux; elsewhere there is none and Ray carries all): it is gone with its process, and no file stays behind.
Both ends look at the other's user, since such a name has no permissions. A frame is its number and length (4 bytes each, little
endian), then the bytes; an answer has its call's number, and no bytes where the call failed.
"""

import asyncio
import hashlib
import os
import socket
import struct
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import cast

_HEAD = struct.Struct("<II")
_CREDENTIALS = struct.Struct("3i")


Answer = bytes | asyncio.Future[bytes]
"""Of a call, or what will be it."""


class Lost(Exception):  # noqa: N818 - it is an outcome
    """There is no socket, or it closed before the answer, or the call failed."""


_listening: list[asyncio.AbstractServer] = []
"""Held for as long as the process lives: the loop holds no server, and one that is collected listens no longer."""


def _name(node: str, cluster: str, actor: str) -> str:
    """Return where an actor listens."""
    return "\0harbor-" + hashlib.blake2b(f"{node}/{cluster}/{actor}".encode(), digest_size=16).hexdigest()


def _is_ours(transport: asyncio.BaseTransport) -> bool:
    """Return whether the process at the other end is this user's."""
    connection = transport.get_extra_info("socket")
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())


class _Framed(asyncio.Protocol):
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._received = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        if not _is_ours(transport):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        while len(received) - at >= _HEAD.size:
            number, length = _HEAD.unpack_from(received, at)
            end = at + _HEAD.size + length
            if len(received) < end:
                break
            with memoryview(received) as view:
                frame = bytes(view[at + _HEAD.size : end])
            at = end
            self.frame(number, frame)
        if at:
            del received[:at]

    def send(self, number: int, pieces: Sequence[bytes]) -> None:
        """Write a frame."""
        assert self.transport is not None
        self.transport.writelines([_HEAD.pack(number, sum(map(len, pieces))), *pieces])

    @abstractmethod
    def frame(self, number: int, frame: bytes) -> None:
        """Take a frame."""


class _Server(_Framed):
    def __init__(self, take: Callable[[bytes], Answer]) -> None:
        super().__init__()
        self._take = take

    def frame(self, number: int, frame: bytes) -> None:
        answer = self._take(frame)
        if isinstance(answer, bytes):
            self.send(number, [answer])
        else:
            answer.add_done_callback(partial(self._later, number))

    def _later(self, number: int, answer: asyncio.Future[bytes]) -> None:
        assert self.transport is not None
        if not answer.cancelled() and not self.transport.is_closing():
            self.send(number, [answer.result()])


async def listen(node: str, cluster: str, actor: str, take: Callable[[bytes], Answer]) -> bool:
    """Take calls of actors of this node for as long as the process lives; `take` gives a call's answer, or what will be it, empty where it failed.

    Returns:
        Whether it could be done. Where not, calls come by Ray.
    """
    if sys.platform != "linux":
        return False
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_name(node, cluster, actor))
        server = await asyncio.get_running_loop().create_unix_server(lambda: _Server(take), sock=listener)
    except OSError:
        listener.close()
        return False
    _listening.append(server)
    return True


class NodeLink(_Framed):
    """The caller's end of a socket; any number of calls at once."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    @classmethod
    async def connect(cls, node: str, cluster: str, actor: str) -> "NodeLink":
        """Return a link to an actor of this node.

        Raises:
            Lost: it does not listen here.
        """
        if sys.platform != "linux":
            raise Lost
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            # Done or refused at once, never under way: there is no network between.
            connection.connect(_name(node, cluster, actor))
            _, link = await asyncio.get_running_loop().create_unix_connection(cls, sock=connection)
        except OSError as error:
            connection.close()
            raise Lost from error
        return link

    async def call(self, pieces: Sequence[bytes]) -> bytes:
        """Return the answer to a call.

        Raises:
            Lost: none came, or the call failed there.
        """
        if self.transport is None or self.transport.is_closing():
            raise Lost
        number = next(self._numbers) & 0xFFFFFFFF
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(number, pieces)
            received: bytes = await answer
            return received
        finally:
            self._waiting.pop(number, None)

    def frame(self, number: int, frame: bytes) -> None:
        """Take an answer; nobody may wait for it any more."""
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if frame:
            waiting.set_result(frame)
        else:
            waiting.set_exception(Lost())

    def connection_lost(self, _: Exception | None) -> None:
        """Tell all who wait."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Lost())

    def close(self) -> None:
        """Close the socket."""
        if self.transport is not None:
            self.transport.abort()
