"""`HarborClient`: reading, writing and watching a cluster from asyncio.

Requests go over HTTP, watches share one WebSocket. Each request goes to one gateway and, where that cannot be reached or breaks off, once
to each of the others: reads and invalidations may be repeated, and a write carries an idempotency key, so that a repeat does nothing.

It is one thing because each method is a request and the reading of its answer.

What must not live here: what watches do (`watches`, `subscription`), reading answers (`answer`).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Self
from uuid import uuid4

import httpx
import msgspec
import orjson
from msgspec import Struct

from cluster.client.answer import Answer, read_answer
from cluster.client.connection import RECONNECT, Connection, ConnectionState
from cluster.client.gateways import Gateways
from cluster.client.mutation import Mutation, path_of, read_mutation
from cluster.client.presence import Member, Presence, PresenceDesk, WatchMode, encoded, listed
from cluster.client.subscription import BACKLOG, Mode, Subscription
from cluster.client.token_source import Token, TokenSource
from cluster.client.watches import Watch, Watches
from cluster.core.query_key import canonical, checked
from cluster.core.retry import Backoff
from cluster.errors import ErrorCode, HarborError, RequestError, UnavailableError

TIMEOUT_S = 65.0
"""Longer than the gateway's own, which knows better what went wrong."""
CONNECT_S = 10.0
PAGE_ROWS = 1000
"""The most that the gateway lists at once."""
JSON = "application/json"
JSON_PATCH = "application/json-patch+json"

Fetch = Literal["auto", "never", "force"]
Ack = Literal["memory", "replicated", "durable"]
Activity = Literal["all", "active", "inactive"]
Refetch = Literal["active", "inactive", "all", "none"]


class Entry(Struct, frozen=True, kw_only=True):
    """An entry as it was read.

    Attributes:
        key: The query key.
        data: Its data; None where there is none yet, or the data is null.
        version: Grows with every change; 0: it never had data.
        data_updated_at: Unix ms of the data; 0: it never had any.
        status: `pending` (no data yet), `success` or `error` (the last fetch failed; old data stays).
        fetch_status: `idle`, `fetching` or `paused`.
        is_stale: A reader should rather have it fetched.
        is_invalidated: It was marked out of date.
        is_offline: The service it is fetched from cannot be reached.
        error: `{code, message, temporary}` of the last fetch, where that failed.
        origin: Where the data came from and when, `{kind, at, ...}`; None where the cluster does not say.
    """

    key: list[Any]
    data: Any = None
    version: int = 0
    data_updated_at: int = 0
    status: str = "pending"
    fetch_status: str = "idle"
    is_stale: bool = False
    is_invalidated: bool = False
    is_offline: bool = False
    error: dict[str, Any] | None = None
    origin: Any = None


class HarborClient:
    """A client of one cluster, used inside `async with`. Not for several event loops or threads.

    Every method raises `HarborError` with the cluster's `code`, `message` and `details`; `UnavailableError` where no cluster answers;
    `RequestError` where what was asked for cannot be said. Cancelling a read or a wait is safe; a write that was cancelled may have
    happened.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: Token = None,
        *,
        wait: bool = False,
        timeout_s: float = TIMEOUT_S,
        backlog: int = BACKLOG,
        backoff: Backoff = RECONNECT,
        on_notice: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Build; nothing is connected before it is entered and used.

        Args:
            url: Of a gateway, or several of one cluster: one is used at random, and when it fails the next.
            token: Sent as a bearer token; or a function, of which a coroutine function is awaited, that gives one. It is asked at
                first, when a token is about to expire, and when one is refused; watches take the new one without a gap.
            wait: Watches wait for a cluster that cannot be reached at first, instead of raising `UnavailableError`.
            timeout_s: For the answer to a request.
            backlog: Changes that wait for a slow consumer of a watch before they fold per entry.
            backoff: Between attempts to get a lost WebSocket back.
            on_notice: Is called with each notice of the cluster, as in docs/protocol.md: `degraded` where this client reads slowly,
                `source_disconnected` and others where what it watches is in trouble. By default they are logged.

        Raises:
            RequestError: `BAD_REQUEST`, not an `http://` or `https://` URL.
        """
        self._gateways = Gateways(url)
        self._tokens = TokenSource(token)
        self._timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        self._backlog = backlog
        self._on_notice = on_notice
        self._connection = Connection(self._gateways, self._tokens, wait=wait, backoff=backoff)
        self._group: asyncio.TaskGroup | None = None
        self._http: httpx.AsyncClient | None = None
        self._watches: Watches | None = None

    async def __aenter__(self) -> Self:
        # Imported late: it brings aiohttp, for whose import the commands, which only share this package, would wait 0.2 s. httpx's own
        # transport costs eight times the CPU per request.
        from httpx_aiohttp import HttpxAiohttpClient  # noqa: PLC0415

        self._group = await asyncio.TaskGroup().__aenter__()
        self._http = HttpxAiohttpClient(timeout=self._timeout, trust_env=False)
        self._watches = Watches(self._connection, self._group.create_task, self._on_notice)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End every watch, close the connections."""
        group, http, watches = self._group, self._http, self._watches
        self._group = self._http = self._watches = None
        assert group is not None
        assert http is not None
        assert watches is not None
        watches.stop()
        try:
            # Without the error of the body, which a group would wrap: it is the caller's own and passes as it is.
            await group.__aexit__(None, None, None)
        finally:
            await http.aclose()

    @property
    def state(self) -> ConnectionState:
        """The WebSocket's: `connecting`, `connected`, `reconnecting` or `closed` (before the first watch, and in the end)."""
        return self._connection.state

    # --- entries -------------------------------------------------------------------------------------------------

    async def get(self, key: list[Any], *, fetch: Fetch = "auto") -> Entry:
        """Read an entry; a missing or stale one of a declared query is fetched first, as `fetch` says.

        Raises:
            HarborError: `NOT_FOUND`; `UPSTREAM_ERROR`, its fetch failed and there is no old data.
        """
        return await self._entry(key, {} if fetch == "auto" else {"fetch": fetch})

    async def next_page(self, key: list[Any]) -> Entry:
        """Load the next page of an infinite entry and return the whole entry.

        Raises:
            HarborError: as `get`.
        """
        return await self._entry(key, {"page": "next"})

    async def previous_page(self, key: list[Any]) -> Entry:
        """Load the page before the first of an infinite entry and return the whole entry.

        Raises:
            HarborError: as `get`.
        """
        return await self._entry(key, {"page": "previous"})

    async def set(
        self,
        key: list[Any],
        data: Any,
        *,
        base_version: int | None = None,
        merge: Literal["three_way"] | None = None,
        ack: Ack | None = None,
        idempotency_key: str | None = None,
    ) -> int:
        """Replace an entry's data. Returns its version.

        Args:
            key: The query key.
            data: JSON values.
            base_version: Only if the entry is at this version; 0: only if there is none.
            merge: `three_way`: where it is at another, merge `data`, an edit of what `base_version` was, with what it is now. What
                was written then comes to those who watch, and to `get`.
            ack: Answer when the write is applied (`memory`), at the standby (`replicated`) or on the disk (`durable`); by default at the
                standby while one is in sync, else on the disk where there is a store.
            idempotency_key: A repeat with the same one within 10 minutes does nothing and gets the first answer.

        Raises:
            ConflictError: `VERSION_CONFLICT`; `current` is the entry as it is, a dict as `/v1/entries` gives it, `conflicts` where the
                merge failed.
            HarborError: `UNSUPPORTED`, the cluster has no such `ack`.
        """
        more = {} if merge is None else {"merge": merge}
        return await self._write("PUT", key, _json(data), JSON, base_version, ack, idempotency_key, **more)

    async def edit(
        self,
        key: list[Any],
        *,
        operations: list[dict[str, Any]] | None = None,
        patch: list[dict[str, Any]] | None = None,
        base_version: int | None = None,
        ack: Ack | None = None,
        idempotency_key: str | None = None,
    ) -> int:
        """Edit an entry's data in place, all or nothing. Returns its version.

        Args:
            key: The query key.
            operations: Such as `[{"append": {"at": "/tasks", "item": {}}}]`; or
            patch: RFC 6902.
            base_version: As for `set`.
            ack: As for `set`.
            idempotency_key: As for `set`.

        Raises:
            ConflictError: as for `set`.
            HarborError: `NOT_FOUND`; `BAD_REQUEST`, an operation of a patch does not fit.
        """
        if (operations is None) == (patch is None):
            raise RequestError(ErrorCode.BAD_REQUEST, "an edit has operations or a patch")
        content, kind = (_json({"operations": operations}), JSON) if patch is None else (_json(patch), JSON_PATCH)
        return await self._write("PATCH", key, content, kind, base_version, ack, idempotency_key)

    async def delete(
        self,
        key: list[Any],
        *,
        base_version: int | None = None,
        ack: Ack | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Remove an entry.

        Raises:
            ConflictError: as for `set`.
            HarborError: `NOT_FOUND`.
        """
        await self._ask("DELETE", "/v1/entries", _params(key, base_version, ack), headers=_idempotency(idempotency_key))

    async def invalidate(
        self,
        key: list[Any] | None = None,
        *,
        exact: bool = False,
        type: Activity = "all",  # noqa: A002 - the filter's name in query-core and on the wire
        refetch: Refetch = "active",
        stale: bool | None = None,
        fetch_status: str | None = None,
    ) -> int:
        """Mark entries as out of date; those that `refetch` names are fetched anew. Returns how many matched.

        Args:
            key: A prefix, or with `exact` one key; all where it is left out.
            exact: Only that entry.
            type: Watched ones (`active`), others (`inactive`), or all.
            refetch: Which of the matching ones to fetch.
            stale: Only those that are stale, or are not.
            fetch_status: Only those in this state of fetching.
        """
        body: dict[str, Any] = {}
        if key:
            body["key"] = _sayable(key)
        if exact:
            body["exact"] = True
        if type != "all":
            body["type"] = type
        if refetch != "active":
            body["refetch"] = refetch
        if stale is not None:
            body["stale"] = stale
        if fetch_status is not None:
            body["fetch_status"] = fetch_status
        answer = await self._ask("POST", "/v1/invalidate", {}, _json(body), {"Content-Type": JSON})
        return answer.member("matched", int)

    async def keys(self, prefix: list[Any] | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield a row for each entry under a prefix, in the order of their canonical keys: `key`, `version`, `status`, `is_stale`, `subscribers`.

        Pages are asked for as they are needed: what is written meanwhile may be missing.
        """
        params = {"prefix": _text([] if prefix is None else prefix), "limit": str(PAGE_ROWS)}
        while True:
            answer = await self._ask("GET", "/v1/keys", params)
            for row in answer.member("keys", list):
                yield row
            if "cursor" not in answer:
                return
            params["cursor"] = answer.member("cursor", str)

    # --- mutations -----------------------------------------------------------------------------------------------

    async def mutate(
        self,
        name: str,
        variables: dict[str, Any],
        *,
        id: str | None = None,  # noqa: A002 - its name on the wire
        delay_ms: float | None = None,
        wait: bool = False,
    ) -> Mutation:
        """Begin a mutation: its optimistic operations are seen at once, its service is asked as soon as it can be.

        Args:
            name: As it is declared.
            variables: JSON values.
            id: Of 1 to 128 printable ASCII characters; one of its own by default. A repeat with the same id acts once, and tells how it is.
            delay_ms: How long it can be undone before it is sent; by default as it is declared.
            wait: Answer once it is settled, or after 60 s with the status it has then.

        Raises:
            HarborError: `UNKNOWN_MUTATION`, `INVALID_VARIABLES`, `FORBIDDEN`, `CONFLICT` (a temporary id was used before), `TOO_MANY`.
        """
        body: dict[str, Any] = {"name": name, "variables": variables, "id": str(uuid4()) if id is None else id}
        if delay_ms is not None:
            body["delay_ms"] = delay_ms
        params = {"wait": "true"} if wait else {}
        return read_mutation(await self._ask("POST", "/v1/mutations", params, _json(body), {"Content-Type": JSON}))

    async def undo(self, id: str) -> Mutation:  # noqa: A002
        """Cancel a mutation that was not sent yet: what it showed is taken back, what others changed meanwhile stays.

        Raises:
            HarborError: `NOT_FOUND`; `CONFLICT`, it was sent, `details["status"]` is its status; `FORBIDDEN`.
        """
        return read_mutation(await self._ask("DELETE", path_of(id), {}))

    async def mutation(self, id: str) -> Mutation:  # noqa: A002
        """Look at a mutation.

        Raises:
            HarborError: `NOT_FOUND`; a settled one is forgotten after 10 minutes.
        """
        return read_mutation(await self._ask("GET", path_of(id), {}))

    async def mutations(self, status: str | Sequence[str] | None = None) -> list[Mutation]:
        """Return the mutations that one may begin (with the admin grant, all), oldest first; of some statuses where those are named."""
        names = status if status is None or isinstance(status, str) else ",".join(status)
        params = {} if names is None else {"status": names}
        found: list[Mutation] = []
        while True:
            answer = await self._ask("GET", "/v1/mutations", params)
            found.extend(read_mutation(each) for each in answer.member("mutations", list))
            if "cursor" not in answer:
                return found
            params["cursor"] = answer.member("cursor", str)

    # --- watching ------------------------------------------------------------------------------------------------

    def watch(self, key: list[Any], *, prefix: bool = False, mode: Mode = "data") -> Watch:
        """Follow an entry, or (`prefix`) every entry under a key: first as they are, then every change.

        It is subscribed at once and until its loop is left. In mode `patch` changes travel, and are told, as patches too.

        Raises:
            RequestError: `BAD_KEY`, `BAD_REQUEST`.
        """
        own = _sayable(key)
        if mode not in ("data", "patch"):
            raise RequestError(ErrorCode.BAD_REQUEST, f"mode is data or patch, got {mode!r:.60}")
        if self._watches is None:
            raise RuntimeError("a HarborClient is used inside `async with`")
        return self._watches.open(Subscription(own, prefix=prefix, mode=mode, backlog=self._backlog))

    def watching(
        self, key: list[Any], *, prefix: bool = False, mode: Mode = "data"
    ) -> AbstractAsyncContextManager[Watch]:
        """Return `watch` as a context, which unsubscribes where it is left."""
        return self.watch(key, prefix=prefix, mode=mode)

    # --- presence ------------------------------------------------------------------------------------------------

    def join(self, topic: str, state: Any = None, *, watch: WatchMode = "members") -> Presence:
        """Be present in a topic with a state, until its context is left, and follow who else is there.

        Heartbeats are sent by themselves. After a reconnect within the server's grace nobody has seen it leave.

        Raises:
            RequestError: `CONFLICT`, this client is in the topic already; `TOO_LARGE`, its name has over 256 characters, or the state
                4 KiB; `BAD_REQUEST`.
        """
        return self._desk().open(topic, watch, encoded(state))

    def watch_presence(self, topic: str, *, watch: WatchMode = "members") -> Presence:
        """Follow who is in a topic, or (`count`) how many, without being there.

        Raises:
            RequestError: as `join`.
        """
        return self._desk().open(topic, watch, None)

    def _desk(self) -> PresenceDesk:
        if self._watches is None:
            raise RuntimeError("a HarborClient is used inside `async with`")
        return self._watches.presence

    async def members(self, topic: str) -> AsyncIterator[Member]:
        """Yield who is in a topic, in the order of their sessions; pages are asked for as they are needed.

        Raises:
            HarborError: `NOT_FOUND`, no such topic is declared; `FORBIDDEN`.
        """
        params = {"topic": topic, "limit": str(PAGE_ROWS)}
        while True:
            answer = await self._ask("GET", "/v1/presence", params)
            for row in listed(answer):
                yield row
            if "cursor" not in answer:
                return
            params["cursor"] = answer.member("cursor", str)

    # --- requests ------------------------------------------------------------------------------------------------

    async def _entry(self, key: list[Any], params: dict[str, str]) -> Entry:
        answer = await self._ask("GET", "/v1/entries", {"key": _text(key), **params})
        try:
            return msgspec.convert(answer, Entry)
        except msgspec.ValidationError as error:
            raise UnavailableError(f"what answers is no entry: {error}") from error

    async def _write(
        self,
        method: str,
        key: list[Any],
        content: bytes,
        kind: str,
        base_version: int | None,
        ack: Ack | None,
        idempotency_key: str | None,
        **more: str,
    ) -> int:
        headers = {"Content-Type": kind, **_idempotency(idempotency_key)}
        answer = await self._ask(method, "/v1/entries", _params(key, base_version, ack) | more, content, headers)
        return answer.member("version", int)

    async def _ask(
        self,
        method: str,
        path: str,
        params: dict[str, str],
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        if self._http is None:
            raise RuntimeError("a HarborClient is used inside `async with`")
        failure: HarborError | None = None
        is_renewed = not self._tokens.is_renewable
        urls = list(self._gateways.all())
        while urls:
            url = urls.pop(0)
            token = await self._tokens.current()
            given = {**(await self._tokens.headers()), **(headers or {})}
            try:
                sent = httpx.Headers(given, "utf-8")
                response = await self._http.request(method, url + path, params=params, content=content, headers=sent)
            except httpx.ReadTimeout as error:
                raise UnavailableError(f"{url} did not answer within {self._timeout.read:g} s") from error
            except (
                httpx.InvalidURL,
                ValueError,
            ) as error:  # text that is no Unicode, or that no header holds, above all
                raise RequestError(ErrorCode.BAD_REQUEST, f"that cannot be sent: {_reason(error)}") from error
            except (httpx.HTTPError, OSError) as error:
                failure = UnavailableError(f"no cluster answers at {url}: {_reason(error)}")
                failure.__cause__ = error
                self._gateways.failed(url)
            else:
                if response.status_code == 401 and not is_renewed:
                    is_renewed = True
                    await self._tokens.renewed(token)
                    urls.insert(0, url)
                    continue
                return read_answer(url, response.status_code, response.content)
        assert failure is not None
        raise failure


def _text(key: list[Any]) -> str:
    try:
        return canonical(checked(key))
    except (TypeError, UnicodeError) as error:
        raise RequestError(ErrorCode.BAD_KEY, f"not a query key: {key!r:.80}: {error}") from error


def _sayable(key: list[Any]) -> list[Any]:
    """Return a key as a message can say it: JSON texts hold longer numbers than orjson writes, canonical ones do not."""
    try:
        return orjson.loads(_text(key))  # type: ignore[no-any-return]
    except orjson.JSONDecodeError as error:  # a lone surrogate
        raise RequestError(ErrorCode.BAD_KEY, f"not a query key: {key!r:.80}: {error}") from error


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, f"not JSON: {error}") from error


def _params(key: list[Any], base_version: int | None, ack: Ack | None) -> dict[str, str]:
    params = {"key": _text(key)}
    if base_version is not None:
        params["base_version"] = str(base_version)
    if ack is not None:
        params["ack"] = ack
    return params


def _idempotency(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(12) if key is None else key}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
