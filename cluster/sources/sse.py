"""A server-sent events upstream, over httpx on the aiohttp transport.

Reconnecting follows WHATWG HTML, 9.2.3: `Last-Event-ID` is sent, `retry:` replaces the first delay, 204 ends it for good. Unlike a
browser this source also comes back after an error status or a wrong content type: an upstream that restarts behind a proxy shows
either for a while.

What must not live here: the line format (`sse_parser`), what an event means.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
import httpx
from httpx_aiohttp import HttpxAiohttpClient

from cluster import __version__
from cluster.core.retry import Backoff
from cluster.core.url import parted
from cluster.sources.source import OPEN_TIMEOUT_S, ConnectionFailedError, GoneError, ReconnectingSource, SourceListener
from cluster.sources.sse_parser import MAX_EVENT_BYTES, EndlessEventError, SseParser

READ_SPACING_S = 0.002
"""After a chunk that came hard on the last one, as in `read_pace`: a chunk costs 50 times what parsing an event does."""
FULL_CHUNK_BYTES = 4 * 1024
"""A chunk of this size has enough events in it: there is nothing to gather."""


class SseSource(ReconnectingSource):
    """See the module and `source.Source`. There are no channels: `join` and `leave` do nothing."""

    transport = "http"
    accepted: tuple[str, ...] = ("text/event-stream",)
    """Content types of an answer that is a stream."""

    def __init__(
        self,
        name: str,
        url: str,
        listener: SourceListener,
        *,
        headers: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
        heartbeat_ms: float | None = None,
        max_event_bytes: int = MAX_EVENT_BYTES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Build; nothing is connected before `run`.

        Args:
            name: Given to the listener with everything.
            url: `http://` or `https://`.
            listener: Consumes the events.
            headers: Of the request.
            backoff: Between attempts.
            heartbeat_ms: How often the upstream is known to send something; after two of them in silence the connection is dropped.
                None: it may be silent for ever.
            max_event_bytes: Larger events are skipped and refused.
            jitter: Uniform in 0..1.
        """
        super().__init__(name, listener, backoff or Backoff(), jitter)
        self._url, headers = parted(url, headers or {})
        self._headers = httpx.Headers({"User-Agent": f"harbor-cluster/{__version__}"})
        self._headers.update(headers)
        self._headers.update(
            {"Accept": ", ".join(self.accepted), "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        )
        self._silence_s = None if heartbeat_ms is None else 2 * heartbeat_ms / 1000.0
        self._max_event_bytes = max_event_bytes
        self._go_on = asyncio.Event()
        self._go_on.set()

    def join(self, channel: str) -> None:
        """Do nothing: the stream has no channels."""

    def leave(self, channel: str) -> None:
        """Do nothing: the stream has no channels."""

    def resume(self) -> None:
        """Hand over and read again, after the listener said False."""
        self._go_on.set()

    async def _converse(self) -> None:
        self._go_on.set()
        timeout = httpx.Timeout(OPEN_TIMEOUT_S, read=self._silence_s)
        url, more = self._target()
        headers = [
            *self._headers.raw,
            *((name.encode(), value.encode()) for name, value in more.items()),
        ]  # ids are UTF-8
        try:
            certificates = httpx.create_ssl_context()  # who vouches for them is what counts of the environment
            async with HttpxAiohttpClient(timeout=timeout, trust_env=False, verify=certificates) as client:
                try:
                    request = client.build_request("GET", url, headers=headers)
                    async with asyncio.timeout(OPEN_TIMEOUT_S):
                        response = await client.send(request, stream=True)
                except (httpx.InvalidURL, ValueError) as exc:  # characters that an answer's head must not have
                    raise ConnectionFailedError(f"cannot be asked, or understood: {exc}") from exc
                try:
                    self._check(response)
                    self._opened()
                    await self._consume(response.aiter_bytes())
                finally:
                    await response.aclose()
        except EndlessEventError as exc:
            raise ConnectionFailedError("line_too_long") from exc
        except (httpx.HTTPError, aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise ConnectionFailedError(str(exc) or type(exc).__name__) from exc
        raise ConnectionFailedError("the upstream ended the stream")

    def _target(self) -> tuple[str, dict[str, str]]:
        """Return the URL to go on from, and headers that say from where."""
        last = self._listener.position(self.name)
        return self._url, {} if last is None else {"Last-Event-ID": str(last)}

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 204:
            raise GoneError("http 204: the upstream asks not to be connected to again")
        if response.status_code != 200:
            raise ConnectionFailedError(f"http {response.status_code}")
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() not in self.accepted:
            raise ConnectionFailedError(
                f"content type is {content_type or 'missing'}, not {' or '.join(self.accepted)}"
            )

    async def _consume(self, chunks: AsyncIterator[bytes]) -> None:
        read = self._reader()
        loop_time = asyncio.get_running_loop().time
        read_at = 0.0
        async for chunk in chunks:
            if not read(chunk):
                self._go_on.clear()
                await self._go_on.wait()
            now = loop_time()
            if len(chunk) < FULL_CHUNK_BYTES and now - read_at < 2 * READ_SPACING_S:
                await asyncio.sleep(READ_SPACING_S)
            read_at = now

    def _reader(self) -> Callable[[bytes], bool]:
        """Return what takes the bytes of a connection, hands over what they complete, and answers as the listener does."""
        parser = SseParser(self._max_event_bytes)

        def read(chunk: bytes) -> bool:
            events = parser.feed(chunk)
            if parser.retry_ms is not None:
                self._initial_ms = float(parser.retry_ms)
            self._refuse(parser.refused)
            return not events or self._listener.received_events(self.name, events)

        return read

    def _refuse(self, sizes_bytes: list[int]) -> None:
        """Say what was too large, and forget it."""
        for size_bytes in sizes_bytes:
            self._listener.refused(self.name, "too_large", size_bytes)
        sizes_bytes.clear()
