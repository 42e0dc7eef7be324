"""A WebSocket upstream: joining, leaving, heartbeats, over a connection of whichever transport, in whichever dialect.

What must not live here: what a frame means (`core.dialect`), when to reconnect (`source`), the libraries that hold connections (`transport`).
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from functools import partial

from cluster.core.dialect import Conversation, Dialect
from cluster.core.retry import Backoff
from cluster.core.rule import Envelope
from cluster.sources.connection import Connection, Dial, LostError
from cluster.sources.read_pace import READ_SPACING_S
from cluster.sources.source import OPEN_TIMEOUT_S, ConnectionFailedError, ReconnectingSource, SourceListener
from cluster.sources.transport import REFERENCE, Transport

MAX_FRAME_BYTES = 1024 * 1024


class WebSocketSource(ReconnectingSource):
    """See the module and `source.Source`."""

    def __init__(
        self,
        name: str,
        url: str,
        listener: SourceListener,
        *,
        headers: Mapping[str, str] | None = None,
        subscribe_message: Callable[[str, str | int | None], str] | None = None,
        unsubscribe_message: Callable[[str], str] | None = None,
        backoff: Backoff | None = None,
        heartbeat_ms: float | None = 30_000.0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        read_spacing_s: float = READ_SPACING_S,
        jitter: Callable[[], float] = random.random,
        transport: str = REFERENCE,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        dialect: Dialect | None = None,
        is_lines: bool = False,
    ) -> None:
        """Build; nothing is connected before `run`.

        Args:
            name: Given to the listener with everything.
            url: `ws://` or `wss://`.
            listener: Consumes the messages.
            headers: Of the handshake.
            subscribe_message: (channel, id of the last event that is known of it) -> text message that asks for it. Without one,
                `join` only remembers.
            unsubscribe_message: Channel -> text message that ends it.
            backoff: Between attempts.
            heartbeat_ms: A ping is sent this often; a connection on which nothing was read for two of them is dropped. None: never.
            max_frame_bytes: Longer messages are skipped and refused; the fast transport ends the connection with them.
            read_spacing_s: See `read_pace`.
            jitter: Uniform in 0..1.
            transport: `auto`, `fast` or `websockets`; see `transport`.
            open_timeout_s: For name, connection, TLS and handshake together; for what a dialect says first, once more.
            dialect: None: each message is a frame of events.
            is_lines: Each line of a message is a frame.
        """
        super().__init__(name, listener, backoff or Backoff(), jitter)
        self._url = url
        self._headers = dict(headers or {})
        self._subscribe = subscribe_message
        self._unsubscribe = unsubscribe_message
        self._heartbeat_s = None if heartbeat_ms is None else heartbeat_ms / 1000.0
        self._max_frame_bytes = max_frame_bytes
        self._read_spacing_s = read_spacing_s
        self._open_timeout_s = open_timeout_s
        self._transport = Transport(transport, url)
        self._joined: dict[str, None] = {}
        self._asked: set[str] = set()
        """Channels asked for on this connection."""
        self._dialect = dialect
        self._is_lines = is_lines
        self._conversation: Conversation | None = None
        self._is_ready = False
        """Channels can be joined on this connection."""
        self._failure = ""
        """Why the conversation came to nothing."""
        self._connection: Connection | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def transport(self) -> str:
        """Return which transport is in use."""
        return self._transport.name

    def join(self, channel: str) -> None:
        """Ask for a channel now, and after every reconnect. Repeats do nothing."""
        self._joined[channel] = None
        if (
            self._subscribe is not None
            and self._connection is not None
            and self._is_ready
            and channel not in self._asked
        ):
            self._asked.add(channel)
            self._connection.say_now(self._joining(channel))

    def leave(self, channel: str) -> None:
        """Ask no longer for a channel."""
        self._joined.pop(channel, None)
        if channel in self._asked:
            self._asked.remove(channel)
            asked = None if self._unsubscribe is None else self._unsubscribe(channel)
            said = asked if self._conversation is None else self._conversation.leave(channel, asked)
            if said is not None and self._connection is not None:
                self._connection.say_now(said)

    def _joining(self, channel: str) -> str:
        assert self._subscribe is not None
        asked = self._subscribe(channel, self._listener.position(self.name, channel))
        return asked if self._conversation is None else self._conversation.join(channel, asked)

    def resume(self) -> None:
        """Hand over and read again, after the listener said False."""
        if self._connection is not None:
            self._connection.release()

    def reconnect(self) -> None:
        """Hand over nothing more of this connection, and open another at once."""
        if self._connection is not None:
            self._connection.finish()
            self._connection = None
            self._asked.clear()
            super().reconnect()

    def _hear(self, frames: list[bytes]) -> bool:
        """Take frames of a dialect."""
        conversation, connection = self._conversation, self._connection
        if conversation is None or connection is None:
            return True
        events: list[Envelope] = []
        for frame in frames:
            heard = conversation.hear(frame)
            for reply in heard.replies:
                connection.say_now(reply)
            if heard.refused is not None:
                self._listener.refused(self.name, heard.refused[0], len(frame), heard.refused[1])
            if heard.failure is not None:
                self._fail(heard.failure)
            if heard.is_ready and not self._is_ready:
                self._is_ready = True
                for channel in self._joined:
                    self.join(channel)
                self._opened()
            events.extend(heard.events)
        return not events or self._listener.received_events(self.name, events)

    def _hear_lines(self, frames: list[bytes]) -> bool:
        lines = [line for frame in frames for line in frame.splitlines() if line.strip()]
        return not lines or self._listener.received(self.name, lines)

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        if self._listening is not None:
            self._listening.cancel()

    async def _converse(self) -> None:
        connection = await self._connect()
        self._connection = connection
        self._conversation = None if self._dialect is None else self._dialect.begin()
        self._is_ready, self._failure = self._conversation is None, ""
        try:
            if self._conversation is None:
                await self._ask_all(connection)
                self._opened()
            else:
                for text in self._conversation.begin():
                    await connection.say(text)
                asyncio.get_running_loop().call_later(self._open_timeout_s, self._check_ready, self._conversation)
            self._listening = asyncio.create_task(self._until_lost(connection))
            connection.release()
            await self._listening
        except LostError:
            pass
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._failure or (task is not None and task.cancelling()):
                raise
        finally:
            self._connection = self._listening = None
            self._asked.clear()
            connection.finish()
            await connection.hang_up()
        if connection.failure is not None:
            raise connection.failure
        if connection.outdone:
            self._transport.outdone()
        raise ConnectionFailedError(self._failure or connection.loss)

    def _check_ready(self, conversation: Conversation) -> None:
        if conversation is self._conversation and self._connection is not None and not self._is_ready:
            self._fail("the upstream did not let us in in time")

    async def _connect(self) -> Connection:
        return await self._transport.connect(
            Dial(
                self._url if self._dialect is None else self._dialect.url,
                self._headers,
                () if self._dialect is None else self._dialect.subprotocols,
                self._deliver(),
                partial(self._listener.refused, self.name),
                self._max_frame_bytes,
                self._read_spacing_s,
                self._open_timeout_s,
            )
        )

    def _deliver(self) -> Callable[[list[bytes]], bool]:
        if self._dialect is not None:
            return self._hear
        return self._hear_lines if self._is_lines else partial(self._listener.received, self.name)

    async def _ask_all(self, connection: Connection) -> None:
        """Ask for the joined channels at the pace the upstream takes the messages."""
        if self._subscribe is None:
            return
        for channel in list(self._joined):
            if channel in self._joined and channel not in self._asked:
                self._asked.add(channel)
                await connection.say(self._joining(channel))

    async def _until_lost(self, connection: Connection) -> None:
        if self._heartbeat_s is None:
            await connection.until_lost()
            return
        heard = -1
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await connection.until_lost()
                return
            except TimeoutError:
                if connection.held:
                    heard = -1
                    continue
            if connection.heard == heard:
                raise ConnectionFailedError(f"nothing heard for {2 * self._heartbeat_s:g} s")
            heard = connection.heard
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await connection.probe()
            except TimeoutError as exc:
                raise ConnectionFailedError("the upstream reads nothing") from exc
