"""Everything one client watches, over one connection.

One task reads the socket and hands each message to its subscription; consumers take from theirs at their own pace. Nobody waits for
anybody: what a consumer does not take folds in its `Subscription`.

What must not live here: what a message does (`subscription`), when to reconnect (`connection`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from cluster.client.answer import error_of
from cluster.client.connection import Connection, ConnectionState
from cluster.client.presence import PresenceDesk
from cluster.client.subscription import Change, Subscription
from cluster.errors import ErrorCode, HarborError

LOG = logging.getLogger(__name__)


class _Seat:
    """Where the reader leaves what is for one watch."""

    __slots__ = ("error", "name", "news", "subscription", "vacated")

    def __init__(self, subscription: Subscription, name: int) -> None:
        self.subscription = subscription
        self.name = name
        """The id it is subscribed under; another one after each time it subscribes."""
        self.news = asyncio.Event()
        self.error: HarborError | None = None
        self.vacated = False


class Watch(AsyncIterator[Change]):
    """The changes of one key or prefix, for one consumer.

    Leaving a loop over it unsubscribes, and so does `aclose` or leaving it as a context. It ends when its client is closed. Cancelling
    a wait for the next change is safe: nothing is lost.
    """

    def __init__(self, watches: "Watches", seat: _Seat) -> None:
        self._watches = watches
        self._seat = seat
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        """Return the next change.

        Raises:
            HarborError: the cluster refuses the watch, or (`UNAVAILABLE`) was never reached; after what came before it.
        """
        seat = self._seat
        while not seat.vacated:
            change = seat.subscription.take()
            if change is not None:
                return change
            if seat.error is not None:
                self._watches.leave(seat)
                raise seat.error
            seat.news.clear()
            await seat.news.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Unsubscribe. What was not taken is dropped."""
        self._watches.leave(self._seat)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A loop that was left by `break` drops it without a word, and the collector may run on any thread.
        if not self._seat.vacated and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watches.leave, self._seat)


class Watches:
    """See the module. `spawn` starts the reading task, which lives while there is a connection or somebody wants one."""

    def __init__(
        self,
        connection: Connection,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_notice: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.connection = connection
        self._on_notice = on_notice or _log_notice
        self._spawn = spawn
        self._seats: dict[int, _Seat] = {}
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._number = 0
        self.presence = PresenceDesk(connection, self._name, self._wake)

    def open(self, subscription: Subscription) -> Watch:
        """Begin a watch."""
        seat = _Seat(subscription, self._name())
        self._seats[seat.name] = seat
        if self.connection.state is ConnectionState.CONNECTED:
            self.connection.send(subscription.request(seat.name))
        else:
            self._wake()
        return Watch(self, seat)

    def _wake(self) -> None:
        if self._task is None:
            self._task = self._spawn(self._read())

    def leave(self, seat: _Seat) -> None:
        """End a watch. Repeats do nothing."""
        if not seat.vacated:
            seat.vacated = True
            seat.news.set()
            if self._seats.pop(seat.name, None) is not None:
                self._unsubscribe(seat)

    def stop(self) -> None:
        """End every watch, and the connection."""
        for seat in list(self._seats.values()):
            self.leave(seat)
        self.presence.stop()
        for task in (self._task, self._renewal):
            if task is not None:
                task.cancel()

    async def _read(self) -> None:
        """The reading task."""
        try:
            while self._seats or self.presence:
                async with aclosing(self.connection.frames(lambda: bool(self._seats or self.presence))) as frames:
                    async for frame in frames:
                        for message in frame:
                            self._receive(message)
        except HarborError as error:
            self._fail(error)
        except Exception:
            LOG.exception("watching_failed")
            self._fail(HarborError(ErrorCode.INTERNAL, "the client failed; it has logged why"))
        finally:
            self._task = None

    def _receive(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome" if self.presence.welcome(message):
                pass
            case "presence":
                self.presence.receive(message)
            case "result" | "error" if self.presence.answered(message):
                pass
            case "notice" if message.get("code") == "token_expires" and self.connection.tokens.is_renewable:
                if self._renewal is None or self._renewal.done():
                    self._renewal = self._spawn(self._renew())
            case "welcome":
                for seat in list(self._seats.values()):
                    self._subscribe(seat)
            case "notice":
                self._on_notice(message)
            case "error" if self._begins_anew(message):
                pass
            case "error":
                refused = self._seats.pop(message.get("re", -1), None)
                if refused is not None:
                    refused.error = error_of(message)
                    refused.news.set()
                else:
                    LOG.warning("error_without_request", extra={"code": message.get("code")})
            case _:
                told = self._seats.get(message.get("sub", -1))
                if told is not None:
                    if not told.subscription.receive(message):
                        self._unsubscribe(told)
                        self._subscribe(told)
                    told.news.set()

    async def _renew(self) -> None:
        """Take another token in place. Where there is none the connection is closed in the end, and asks for one again."""
        tokens = self.connection.tokens
        try:
            token = await tokens.renewed(await tokens.current())
        except HarborError as error:
            LOG.warning("token_not_renewed", extra={"reason": error.message})
        else:
            self.connection.send({"type": "auth", "id": self._name(), "token": token})

    def _begins_anew(self, error: dict[str, Any]) -> bool:
        """Subscribe from the start where a token was not taken."""
        seat = self._seats.get(error.get("re", -1))
        if seat is None or not seat.subscription.refused(error["code"]):
            return False
        self._subscribe(seat)
        return True

    def _subscribe(self, seat: _Seat) -> None:
        # Under a new name: what is still under way under the old one is void.
        del self._seats[seat.name]
        seat.name = self._name()
        self._seats[seat.name] = seat
        self.connection.send(seat.subscription.request(seat.name))
        seat.news.set()

    def _unsubscribe(self, seat: _Seat) -> None:
        self.connection.send({"type": "unsubscribe", "id": seat.name})

    def _fail(self, error: HarborError) -> None:
        for seat in self._seats.values():
            seat.error = error
            seat.news.set()
        self._seats.clear()
        self.presence.fail(error)

    def _name(self) -> int:
        self._number += 1
        return self._number


def _log_notice(message: dict[str, Any]) -> None:
    level = logging.INFO if message.get("level") in ("success", "info") else logging.WARNING
    LOG.log(level, "notice", extra={"code": message.get("code"), "text": message.get("message")})
