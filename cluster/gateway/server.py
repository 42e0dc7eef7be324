"""The client-facing server: routes, sockets and event streams around a `GatewayState`.

One writer per session takes one frame at a time and waits until the socket has it; meanwhile the state folds what comes. A socket that is
quiet has no writer. Reads of live replicas never leave this process.

It is one thing because every endpoint is a few lines between a parameter and an effect.
"""

import asyncio
import logging
import math
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
import orjson
from aiohttp import HttpVersion11, WebSocketError, WSCloseCode, WSMsgType, web

from cluster.clock import Clock
from cluster.core import protocol
from cluster.core.addresses import Addresses
from cluster.core.client_message import PING_MS, Command, answer, client_frame, tokens_of, welcome
from cluster.core.dead_letters import DeadLetter
from cluster.core.gateway_state import REQUEST_MS, Close, Deliver, Effect, GatewayState, Respond
from cluster.core.grants import ANYBODY, Principal
from cluster.core.limits import Limits, refuse
from cluster.core.messages import (
    Act,
    BranchList,
    Edit,
    EntryView,
    Erase,
    Failure,
    KeyInfo,
    KeyList,
    ListBranches,
    ListKeys,
    ListMembers,
    Matched,
    MemberList,
    Payload,
    Ping,
    Read,
    Send,
    Write,
    Written,
)
from cluster.core.operation import parse_operations
from cluster.core.position import Scope, scope_of
from cluster.core.presence_room import topic_of
from cluster.core.presence_session import identity_of
from cluster.core.query_key import CanonicalKey, KeyMatcher, canonical, checked, normalized, parse
from cluster.core.replica import Replica
from cluster.core.session_state import COMMANDS, CONTROL, SessionState
from cluster.core.slot_move import MAX_ACTORS
from cluster.core.tenant import NOBODYS, Tenant
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError, UnauthorizedError
from cluster.gateway import parameters
from cluster.gateway.access import cookie, credentials
from cluster.gateway.backup_route import BACKUP, BackupRoute, Copy
from cluster.gateway.browsers import Browsers
from cluster.gateway.connections import Connection, Connections
from cluster.gateway.entry_response import DateHeader, EntryResponse
from cluster.gateway.error_response import error_response
from cluster.gateway.mutation_routes import MUTATION, MutationRoutes, new_mutation_id
from cluster.gateway.openapi import document
from cluster.gateway.pages import Pages

PING_S = PING_MS / 1000.0
"""Between pings on a socket or comments on an event stream; a peer that does not answer the former is gone."""
KEEP_S = 1.0
"""Between looks at which sockets are quiet: how much later than after `PING_S` or the time for a hello something may be done."""
OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""What anybody may ask, beside pages: there is nothing of anybody's in it."""
COOKIED = frozenset({"/v1/socket", "/v1/stream"})
"""Where a cookie will do, since browsers can send no header."""
PRINCIPAL: web.RequestKey[Principal | None] = web.RequestKey("principal", object)  # type: ignore[arg-type]  # it is for help in debuggers
FLUSH_S = 1.0
"""At a close what waits is still written, for at most so long."""
CLOSE_S = 2.0
"""For the closing handshake."""
LINGER_S = 30.0
"""What a closed socket has not taken by then is thrown away; a stalled client that wakes up before reads why it was closed."""
READY_S = 2.0
"""A shard that does not answer for so long is not ready."""
READY_FOR_S = 1.0
"""Between two times that shards are asked whether they are: anybody may want to know, as often as they like."""
HARD_FRAME = 2
"""A frame of up to so many times the limit is answered with an error; a longer one is not read, and ends the connection (1009)."""
GROUP = 50
"""Clients that are sent elsewhere at once in a drain, at least."""
GROUP_S = 0.2
"""Between two groups."""
PACED = 0.8
"""Share of a drain's grace over which they are spread; the rest is for sockets to close."""
CLOSE_NORMAL = 1000
CLOSE_PROTOCOL_ERROR = 1002
STANDARD = frozenset({1000, 1001, 1002, 1006, 1009, 1011})
"""Close codes that are counted by themselves where the peer says them: it may say any, and each is a series of its own."""
FINAL = range(3500, 4000)
"""Close codes of sessions that do not come back; after `CLOSE_NORMAL` they have said so themselves."""
RECONNECT_MS = 1_000
"""At a drain clients are told to come back after this plus as much again at random, so that they do not all come at once."""

ACTIONS = ("invalidate", "refetch", "reset", "cancel", "remove")
"""What can be done with the entries that a filter matches."""
JSON = {"Content-Type": "application/json"}
LOG = logging.getLogger(__name__)
HOT_TARGETS = 10_000
"""Request targets remembered with the key they name; beyond it they are learnt anew."""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def _nothing_to_prepare(_: str) -> None:
    """Whoever is recognised is recognised by what is here."""


class _Wire:
    """A session's shell."""

    __slots__ = ("close_code", "close_reason", "session", "transport")

    def __init__(self, session: SessionState, transport: asyncio.Transport | None) -> None:
        self.session = session
        self.transport = transport
        self.close_code = 0
        self.close_reason = ""

    def wake(self) -> None:
        """There may be something to be written."""
        raise NotImplementedError

    def end(self) -> None:
        """It is to be closed, once what waits is written."""
        raise NotImplementedError


class _StreamWire(_Wire):
    """An event stream's, whose writer waits on `ready`."""

    __slots__ = ("closing", "ready")

    def __init__(self, session: SessionState, transport: asyncio.Transport | None) -> None:
        super().__init__(session, transport)
        self.ready = asyncio.Event()
        self.closing = asyncio.Event()

    def wake(self) -> None:
        self.ready.set()

    def end(self) -> None:
        self.ready.set()
        self.closing.set()


class _SocketWire(_Wire):
    """A socket's. Most are idle, and each task and queue takes a KiB or more: it has one task, which reads, and others when they are needed."""

    __slots__ = (
        "_end",
        "_write",
        "again",
        "goodbye",
        "heard",
        "is_held_up",
        "is_over",
        "opened_s",
        "pinged_s",
        "pings",
        "reader",
        "socket",
        "taken",
        "writer",
    )

    def __init__(
        self,
        session: SessionState,
        transport: asyncio.Transport | None,
        socket: web.WebSocketResponse[Any],
        write: Callable[["_SocketWire"], asyncio.Task[None]],
        end: Callable[["_SocketWire"], asyncio.Task[None]],
    ) -> None:
        super().__init__(session, transport)
        self.socket = socket
        self._write = write
        self._end = end
        self.reader: asyncio.Task[Any] | None = None
        """While it reads."""
        self.writer: asyncio.Task[None] | None = None
        self.goodbye: asyncio.Task[None] | None = None
        self.again = False
        """Something came while it was writing."""
        self.taken: asyncio.Future[None] | None = None
        """The reader waits for something to be written."""
        self.heard = True
        """The peer has said something since the last ping."""
        self.pings = False
        """A ping is to be sent."""
        self.is_held_up = False
        """What it said is being seen to, and nothing more is read: neither a pong nor a hello."""
        self.opened_s = self.pinged_s = asyncio.get_running_loop().time()
        self.is_over = False
        """Goodbye was said, or could not be: nothing more is read."""

    def wake(self) -> None:
        if self.writer is not None:
            self.again = True
        elif self.socket.prepared:
            self.writer = self._write(self)

    def end(self) -> None:
        self.let_read()
        self.wake()
        if self.goodbye is None and self.socket.prepared:
            self.goodbye = self._end(self)

    async def paused(self) -> None:
        """Wait until there may be something to go on for."""
        self.taken = asyncio.get_running_loop().create_future()
        await self.taken

    def let_read(self) -> None:
        """Something was written, or time has passed."""
        if self.taken is not None and not self.taken.done():
            self.taken.set_result(None)


class GatewayServer:
    """See the module.

    `send` delivers the state's calls to shards; `describe` and `dead_letters` give `/v1/cluster`, `scale` changes it, `copy` makes steps of backups.
    """

    def __init__(
        self,
        state: GatewayState,
        clock: Clock,
        *,
        send: Callable[[Send], None],
        rearm: Callable[[], None],
        describe: Callable[[], Awaitable[dict[str, Any]]],
        scale: Callable[[dict[str, int]], Awaitable[None]],
        dead_letters: Callable[[], Awaitable[list[DeadLetter]]],
        copy: Copy,
        origins: tuple[str, ...] = (),
        prepare: Callable[[str], Awaitable[None]] = _nothing_to_prepare,
        trusted_proxies: tuple[str, ...] = (),
        hsts_s: int = 0,
        demo_page: bool = False,
    ) -> None:
        """`prepare` fetches what it takes to recognise who bears credentials; `demo_page`: whether the demonstration is served."""
        self.prepare = prepare
        self.state = state
        self._clock = clock
        self._send = send
        self._rearm = rearm
        self._describe = describe
        self._scale = scale
        self._dead_letters = dead_letters
        self._browsers = Browsers(origins, hsts_s)
        self._addresses = Addresses(trusted_proxies)
        self._connections: Connections | None = None
        self._wires: dict[str, _Wire] = {}
        self._futures: dict[int, asyncio.Future[list[Payload]]] = {}
        self._commands: dict[int, Command] = {}
        self._next_ticket = 0
        self._runner: web.ServerRunner | None = None
        self._sites: list[web.TCPSite] = []
        self._openapi = orjson.dumps(document())
        self._date = DateHeader()
        self._hot: dict[str, CanonicalKey] = {}
        """Key by request target, of reads that were answered from a replica."""
        self.draining = False
        self._drained = asyncio.Event()
        self.not_ready = ""
        """Why it cannot serve, beside what it finds out itself; empty: nothing is known."""
        self._readiness: asyncio.Task[None] | None = None
        """The last question to all shards, whether they answer, which began at `_readiness_s` of the loop's clock."""
        self._readiness_s = 0.0
        self._silence = ""
        """What it found; empty: each answers."""
        self.disconnects: Counter[str] = Counter()
        """Sockets that were closed, by code."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.keeper: asyncio.Task[None] | None = None
        """What it cannot do without, once it listens: who runs it ends where this fails."""
        pages = Pages(demo=demo_page)
        self.open = OPEN | pages.paths
        """Paths that ask for no credentials."""
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "/v1/entries"): self._get_entry,
            ("PUT", "/v1/entries"): self._put_entry,
            ("PATCH", "/v1/entries"): self._patch_entry,
            ("DELETE", "/v1/entries"): self._delete_entry,
            ("GET", "/v1/keys"): self._keys,
            **{("POST", f"/v1/{action}"): partial(self._act, action) for action in ACTIONS},
            ("GET", "/v1/presence"): self._presence,
            ("GET", "/v1/stream"): self._stream,
            ("GET", "/v1/missed"): self._missed,
            ("GET", "/v1/socket"): self._socket,
            **MutationRoutes(state, clock, self.answers, who).handlers(),
            ("GET", "/v1/cluster"): self._cluster,
            ("POST", "/v1/scale"): self._scale_cluster,
            ("POST", BACKUP): BackupRoute(state, copy, describe, who, self._dress).handle,
            ("GET", "/healthz"): self._healthz,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/openapi.json"): self._openapi_json,
            **pages.handlers(),
        }

    @property
    def limits(self) -> Limits:
        """What clients may take."""
        return self.state.limits

    def reconfigure(
        self, limits: Limits, outbox_bytes: int, *, origins: Iterable[str], trusted_proxies: Iterable[str], hsts_s: int
    ) -> None:
        """Take what a configuration says now. It counts from here on, and ends nobody who is there."""
        self.state.bound(limits, outbox_bytes, self._clock.now_ms())
        self._browsers = Browsers(origins, hsts_s)
        self._addresses = Addresses(trusted_proxies)
        if self._connections is not None:
            self._connections.bound(limits, self._addresses)

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> int:
        """Listen. Returns the port. Several gateways of one node share it (SO_REUSEPORT)."""
        # Not an `Application`: its routing would be most of the cost of a read.
        self._connections = Connections(
            self._handle, self.limits, self.state.limited, self._addresses, lambda: self._browsers
        )
        self._runner = web.ServerRunner(self._connections, handle_signals=False, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, reuse_port=True, backlog=1024)
        await site.start()
        self._sites.append(site)
        self.keeper = self._spawn(self._keep())
        return int(self._runner.addresses[0][1])

    async def drain(self, grace_s: float = 0.0) -> None:
        """Tell every client to reconnect elsewhere, close them (3001), and stop listening.

        From now on it is not ready and takes no sessions; requests are answered to the end. `grace_s`: how long it may take. Clients go
        in groups, so that those who take them in are not overrun. Where it drains already it returns when that is done.
        """
        if self.draining:
            await self._drained.wait()
            return
        self.draining = True
        wires = list(self._wires.values())
        size = max(GROUP, math.ceil(len(wires) * GROUP_S / max(grace_s * PACED, GROUP_S)))
        for start in range(0, len(wires), size):
            if start and grace_s:
                await asyncio.sleep(GROUP_S)
            for wire in wires[start : start + size]:
                after_ms = RECONNECT_MS + secrets.randbelow(RECONNECT_MS)
                self.run(self.state.say(wire.session, protocol.message("drain", reconnect_after_ms=after_ms)))
                self._close(wire, protocol.CLOSE_DRAIN, "draining")
        for site in self._sites:
            await site.stop()
        for _ in range(100):
            if not self._wires:
                break
            await asyncio.sleep(0.02)
        if self.keeper is not None:
            self.keeper.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        self._drained.set()

    # --- effects -------------------------------------------------------------------------------------------------

    def run(self, effects: Iterable[Effect]) -> None:
        """Run the state's effects."""
        for effect in effects:
            match effect:
                case Deliver(session=session):
                    wire = self._wires.get(session)
                    if wire is not None:
                        wire.wake()
                case Send():
                    self._send(effect)
                case Respond(ticket=ticket, payloads=payloads):
                    self._respond(ticket, payloads)
                case Close(session=session, code=code, reason=reason):
                    wire = self._wires.get(session)
                    if wire is not None:
                        self._close(wire, code, reason)
        self._rearm()

    def look_at_wall(self) -> None:
        """See what the wall clock shows: it may have been set, and tokens end by it."""
        self.run(self.state.set_wall(self._clock.wall_ms(), self._clock.now_ms()))

    def _respond(self, ticket: int, payloads: list[Payload]) -> None:
        met = next((each.limit for each in payloads if isinstance(each, Failure) and each.limit is not None), None)
        if met is not None:
            self.state.limited[met[0]] += 1
        future = self._futures.pop(ticket, None)
        if future is not None and not future.done():
            future.set_result(payloads)
        command = self._commands.pop(ticket, None)
        if command is not None:
            session = self.state.sessions.get(command.session)
            if session is not None:
                session.commands -= 1
                self.run(answer(self.state, session, command, payloads, self._clock.now_ms()))

    @staticmethod
    def _close(wire: _Wire, code: int, reason: str) -> None:
        if not wire.close_code:
            wire.close_code, wire.close_reason = code, reason
            wire.end()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task of a session's, which handles what goes wrong in it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop holds it weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def _ticket(self) -> int:
        self._next_ticket += 1
        return self._next_ticket

    def _command(self, command: Command) -> int:
        session = self.state.sessions[command.session]
        if session.commands >= COMMANDS:
            refuse(ErrorCode.TOO_MANY, "open_requests", COMMANDS, f"a session has at most {COMMANDS} requests open")
        session.commands += 1
        ticket = self._ticket()
        self._commands[ticket] = command
        return ticket

    def _take_back(self, ticket: int) -> None:
        """A command was refused before any shard was asked."""
        command = self._commands.pop(ticket)
        self.state.sessions[command.session].commands -= 1

    async def _ask(
        self, key: CanonicalKey | None, make: Callable[[int], Any], tenant: Tenant = NOBODYS
    ) -> list[Payload]:
        """Ask the shard of `key`, or all, for a client of `tenant`.

        Raises:
            HarborError: `TIMEOUT`, or what a shard answered with.
        """
        return await self.answers(lambda ticket: self.state.request(ticket, key, make, self._clock.now_ms()), tenant)

    async def answers(self, begin: Callable[[int], list[Effect]], tenant: Tenant = NOBODYS) -> list[Payload]:
        """Begin what is answered to a ticket, and wait for that. Cancelling frees what waits.

        Raises:
            HarborError: `TIMEOUT`, or what a shard answered with.
        """
        ticket = self._ticket()
        future: asyncio.Future[list[Payload]] = asyncio.get_running_loop().create_future()
        self._futures[ticket] = future
        try:
            self.run(begin(ticket))
            payloads = await future
        finally:
            if self._futures.pop(ticket, None) is not None:
                self.state.abandon(ticket)
        for payload in payloads:
            if isinstance(payload, Failure):
                details = protocol.details_of(payload, self._clock.now_ms(), tenant)
                raise HarborError(ErrorCode(payload.code), payload.message, details=details)
        return payloads

    # --- guards --------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        hot = self._hot.get(request.raw_path)
        if hot is not None and request.method == "GET" and request.keep_alive:
            headers = request.headers
            if "Origin" not in headers and "If-None-Match" not in headers and self._may_read(request, hot):
                now_ms = self._clock.now_ms()
                replica = self.state.local(hot, now_ms)
                if replica is not None:
                    body = self._body(replica, now_ms)
                    return EntryResponse(self._date.at(now_ms), replica.version, body, self._browsers.head)
        handler = self._preflight if request.method == "OPTIONS" else self._handler(request.method, _pattern(request))
        try:
            self._browsers.check(request, is_guarded=self.state.authority is not None)
            principal = request[PRINCIPAL] = await self._recognised(request)
            if self.state.request_rates is not None and request.path not in self.open:
                self.state.request_rates.take(self._taker(request, principal), self._clock.now_ms())
            response = await handler(request)
        except HarborError as error:
            if isinstance(error, LimitError):
                self.state.limited[error.limit] += 1
            response = error_response(error, request.get(PRINCIPAL))
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            LOG.exception("request_failed", extra={"method": request.method, "path": request.path[:120]})
            response = error_response(HarborError(ErrorCode.INTERNAL, "the gateway failed; it has logged why"))
        if not response.prepared:
            self._dress(request, response)
        return response

    def _dress(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers that answers have."""
        self._browsers.allow(request, response)
        self._browsers.guard(response)

    def _handler(self, method: str, path: str) -> Handler:
        return self._routes.get((method, path), self._unknown)

    def _said(self, request: web.BaseRequest) -> str | None:
        """Return the credentials that a request brings.

        Raises:
            HarborError: `UNAUTHORIZED`, they are of another scheme; `FORBIDDEN`, another page's cookie.
        """
        token = credentials(request)
        return cookie(request, self._browsers) if token is None and request.path in COOKIED else token

    def _address(self, request: web.BaseRequest) -> str:
        """Return what a request is counted by, where it has no subject."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        return self._addresses.client(connection.peer, request.headers.getall("X-Forwarded-For", []))

    def _taker(self, request: web.BaseRequest, principal: Principal | None) -> str:
        if principal is None or principal is ANYBODY:
            return self._address(request)
        return f"subject {principal.account}"

    async def _recognised(self, request: web.BaseRequest) -> Principal | None:
        """Return who asks; None on a socket that is to say hello with a token.

        Raises:
            HarborError: `UNAUTHORIZED`, nobody is recognised; `LIMITED`, too many from this address were not.
        """
        if self.state.authority is None or request.path in self.open or request.method == "OPTIONS":
            return ANYBODY
        with self.state.refusals_counted(self._address(request), self._clock.now_ms()):
            return await self._identified(request)

    async def _identified(self, request: web.BaseRequest) -> Principal | None:
        """Return whose credentials a request has; None on a socket that is to say hello with a token.

        Raises:
            HarborError: `UNAUTHORIZED`, nobody is recognised.
        """
        token = self._said(request)
        if token is None and request.path == "/v1/socket":
            return None
        if token is None:
            raise UnauthorizedError(
                "missing", "credentials are needed: the header 'Authorization: Bearer TOKEN' or 'X-API-Key: KEY'"
            )
        await self.prepare(token)
        return self.state.recognise(token, self._clock.wall_ms())

    def _require_still(self, request: web.BaseRequest, key: CanonicalKey) -> None:
        """Have who asked looked at again, since the answer came late: they may read no more.

        Raises:
            HarborError: `UNAUTHORIZED`, what they were recognised by does not count any more; `FORBIDDEN`.
        """
        if self.state.authority is not None:
            request[PRINCIPAL] = self.state.authority.current(who(request), self._clock.wall_ms())
        who(request).require("read", key)

    def _may_read(self, request: web.BaseRequest, key: CanonicalKey) -> bool:
        if self.state.authority is None:
            return self.state.request_rates is None and self._browsers.is_own(request.headers.get("Host", ""))
        if self.state.request_rates is not None:
            return False
        try:
            token = self._said(request)
            principal = None if token is None else self.state.recognise(token, self._clock.wall_ms())
        except HarborError:
            return False  # the long way says why
        return principal is not None and not principal.tenant and principal.may("read", key)

    def _body(self, replica: Replica, now_ms: float, tenant: Tenant = NOBODYS) -> bytes:
        """Return a replica's entry as HTTP answers it, encoded once per version but for tenants, who see another key."""
        self.state.reads["replica"] += 1
        if tenant:
            return protocol.entry(replica.view(), now_ms, tenant)
        body = replica.body
        if body is None:
            body = replica.body = protocol.entry(replica.view(), now_ms)
        return body

    async def _preflight(self, request: web.BaseRequest) -> web.StreamResponse:
        path = _pattern(request)
        methods = [method for method, each in self._routes if each == path]
        return self._browsers.preflight(request, methods, cookies=path in COOKIED)

    # --- entries -------------------------------------------------------------------------------------------------

    async def _get_entry(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "key", "fetch", "page")
        key = _key(request)
        fetch = parameters.choice(request.query, "fetch", "auto", "never", "force")
        page = parameters.choice(request.query, "page", "next", "previous") if "page" in request.query else ""
        who(request).require("read", key)
        now_ms = self._clock.now_ms()
        if fetch != "force" and not page:
            replica = self.state.local(key, now_ms)
            if replica is not None:
                if len(self._hot) >= HOT_TARGETS:
                    self._hot.clear()
                if not who(request).tenant:  # of whom each means another entry by it
                    self._hot[request.raw_path] = key
                return _entry_response(request, replica.version, self._body(replica, now_ms, who(request).tenant))
        payloads = await self._ask(key, lambda request_id: Read(request_id, key, fetch, page))
        self._require_still(request, key)
        view = payloads[0]
        assert isinstance(view, EntryView)
        self.state.reads["shard"] += 1
        return _entry_response(request, view.version, protocol.entry(view, self._clock.now_ms(), who(request).tenant))

    async def _put_entry(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "key", "base_version", "ack", "merge")
        key = _key(request)
        who(request).require("write", key)
        ack = parameters.acknowledgement(request)
        base_version = parameters.base_version(request)
        merges = parameters.merges(request, base_version)
        request_id = _request_id(request, key)
        data = orjson.dumps(await parameters.body(request))
        return await self._write(request, key, lambda n: Write(n, request_id, key, data, base_version, ack, merges))

    async def _patch_entry(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "key", "base_version", "ack")
        key = _key(request)
        who(request).require("write", key)
        ack = parameters.acknowledgement(request)
        base_version = parameters.base_version(request)
        request_id = _request_id(request, key)
        body = await parameters.body(request)
        if request.content_type == "application/json-patch+json":
            if not isinstance(body, list):
                raise RequestError(ErrorCode.BAD_REQUEST, "a JSON Patch is an array of operations")
            patch = orjson.dumps(body)
            return await self._write(request, key, lambda n: Edit(n, request_id, key, patch, None, base_version, ack))
        if not isinstance(body, dict) or set(body) != {"operations"}:
            raise RequestError(
                ErrorCode.BAD_REQUEST, 'the body is {"operations": [...]} or an application/json-patch+json'
            )
        operations = parse_operations(body["operations"])
        return await self._write(request, key, lambda n: Edit(n, request_id, key, None, operations, base_version, ack))

    async def _delete_entry(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "key", "base_version", "ack")
        key = _key(request)
        who(request).require("write", key)
        ack = parameters.acknowledgement(request)
        base_version = parameters.base_version(request)
        request_id = _request_id(request, key)
        await self._ask(key, lambda n: Erase(n, request_id, key, base_version, ack), who(request).tenant)
        return web.Response(status=204)

    async def _write(
        self, request: web.BaseRequest, key: CanonicalKey, make: Callable[[int], Any]
    ) -> web.StreamResponse:
        written = (await self._ask(key, make, who(request).tenant))[0]
        assert isinstance(written, Written)
        merged = b',"merged":true' if written.is_merged else b""
        body = b'{"version":%d%b}' % (written.version, merged)
        return web.Response(body=body, headers={**JSON, "ETag": f'"{written.version}"'})

    async def _keys(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "prefix", "limit", "cursor", "contains", "branches")
        tenant = who(request).tenant
        prefix = _key(request, "prefix") if "prefix" in request.query else tenant.inside(CanonicalKey("[]"))
        who(request).require("read", prefix)
        limit = parameters.limit(request, 100, 1000)
        contains = request.query.get("contains", "")
        if parameters.choice(request.query, "branches", "false", "true") == "true":
            if contains:
                raise RequestError(ErrorCode.BAD_REQUEST, "branches are listed whatever they contain")
            return await self._branches(prefix, request.query.get("cursor", ""), limit)
        after = tenant.cursor(request.query.get("cursor", ""))
        payloads = await self._ask(None, lambda n: ListKeys(n, prefix, after, limit, contains))
        lists = [payload for payload in payloads if isinstance(payload, KeyList)]
        rows = sorted((row for each in lists for row in each.keys), key=lambda row: row.key)
        more = len(rows) > limit or any(each.more for each in lists)
        rows = rows[:limit]
        answer: dict[str, Any] = {"keys": [_key_row(row, self.state.subscribers(row), tenant) for row in rows]}
        if more and rows:
            answer["cursor"] = tenant.outside(rows[-1].key)
        return web.Response(body=orjson.dumps(answer), headers=JSON)

    async def _branches(self, prefix: CanonicalKey, after: str, limit: int) -> web.StreamResponse:
        payloads = await self._ask(None, lambda n: ListBranches(n, prefix, after, limit))
        lists = [payload for payload in payloads if isinstance(payload, BranchList)]
        counts: dict[str, tuple[int, bool]] = {}
        for each in lists:
            for element, count, is_entry in each.branches:
                held = counts.get(element, (0, False))
                counts[element] = (held[0] + count, held[1] or is_entry)
        names = sorted(counts)
        rows = [
            {"element": orjson.Fragment(name), "keys": counts[name][0], "is_entry": counts[name][1]}
            for name in names[:limit]
        ]
        answer: dict[str, Any] = {"branches": rows}
        if rows and (len(names) > limit or any(each.more for each in lists)):
            answer["cursor"] = names[len(rows) - 1]
        return web.Response(body=orjson.dumps(answer), headers=JSON)

    async def _act(self, action: str, request: web.BaseRequest) -> web.StreamResponse:
        """Do something with every entry that a filter matches."""
        parameters.only(request)
        body = await parameters.body(request)
        if not isinstance(body, dict):
            raise RequestError(ErrorCode.BAD_REQUEST, "the body is an object")
        known = ("key", "exact", "type", "stale", "fetch_status", *(("refetch",) if action == "invalidate" else ()))
        for name in body:
            if name not in known:
                raise RequestError(ErrorCode.BAD_REQUEST, f"unknown member {name!r}, there are: {', '.join(known)}")
        key = who(request).tenant.inside(canonical(checked(body.get("key", []))))
        who(request).require("write", key)
        exact = parameters.flag(body, "exact") or False
        which = parameters.choice(body, "type", "all", "active", "inactive")
        refetch = parameters.choice(body, "refetch", "active", "inactive", "all", "none")
        stale = parameters.flag(body, "stale")
        status = (
            parameters.choice(body, "fetch_status", "idle", "fetching", "paused") if "fetch_status" in body else None
        )
        payloads = await self._ask(
            key if exact else None, lambda n: Act(n, action, key, exact, which, refetch, stale, status)
        )
        matched = sum(payload.count for payload in payloads if isinstance(payload, Matched))
        return web.Response(body=b'{"matched":%d}' % matched, headers=JSON)

    async def _presence(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "topic", "limit", "cursor")
        topic = topic_of(request.query.get("topic"))
        limit = parameters.limit(request, 100, 1000)
        after = request.query.get("cursor", "")
        named = who(request).tenant.inside_topic(topic)
        who(request).require_presence(named)
        self.state.presence.pattern(named)
        payloads = await self._ask(CanonicalKey(named), lambda n: ListMembers(n, named, after, limit))
        found = payloads[0]
        assert isinstance(found, MemberList)
        members = b",".join(map(protocol.presence_member, found.members))
        cursor = b',"cursor":%b' % orjson.dumps(found.members[-1].member) if found.more else b""
        body = b'{"topic":%b,"count":%d,"members":[%b]%b}' % (orjson.dumps(topic), found.count, members, cursor)
        return web.Response(body=body, headers=JSON)

    # --- live ----------------------------------------------------------------------------------------------------

    def _session(self, request: web.BaseRequest, scope: Scope = b"") -> SessionState:
        """Open a session; one with a scope reads an event stream."""
        if self.draining:
            raise HarborError(ErrorCode.UNAVAILABLE, "this gateway is shutting down")
        secret = secrets.token_urlsafe(18)
        _bound(request.transport)
        return self.state.open_session(
            identity_of(secret),
            server_sent=bool(scope),
            principal=request[PRINCIPAL],
            secret=secret,
            scope=scope,
            address=self._address(request),
            now_ms=self._clock.now_ms(),
        )

    def _open(self, request: web.BaseRequest, scope: Scope = b"") -> _StreamWire:
        """Open a session that is written to as a whole."""
        session = self._session(request, scope)
        wire = self._wires[session.id] = _StreamWire(session, request.transport)
        return wire

    def _shut(self, wire: _Wire, *, lingers: bool = False) -> None:
        self._wires.pop(wire.session.id, None)
        self.run(self.state.close_session(wire.session.id, self._clock.now_ms(), lingers=lingers))

    async def _socket(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request)
        socket = web.WebSocketResponse(
            timeout=CLOSE_S,
            protocols=(protocol.SUBPROTOCOL,),
            autoping=False,
            compress=False,
            max_msg_size=HARD_FRAME * self.limits.frame_bytes,
            writer_limit=CHUNK_WRITE_BYTES,
            decode_text=False,
        )
        is_one = request.version >= HttpVersion11 and len(request.headers.getall("Sec-WebSocket-Key", [])) == 1
        if not is_one or not socket.can_prepare(request):
            raise RequestError(ErrorCode.BAD_REQUEST, "this endpoint speaks WebSocket")
        socket.headers["Server"] = self._browsers.data["Server"]
        session = self._session(request)
        wire = _SocketWire(
            session,
            request.transport,
            socket,
            lambda wire: self._spawn(self._write_socket(wire)),
            lambda wire: self._spawn(self._say_goodbye(wire)),
        )
        self._wires[session.id] = wire
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.on_late = partial(self._late, wire)
        connection.on_fault = partial(self._close, wire, CLOSE_PROTOCOL_ERROR)
        try:
            await socket.prepare(request)
            if session.principal is not None:
                self.run(welcome(self.state, session, self._clock.now_ms()))
            if wire.close_code:  # meanwhile
                wire.end()
            wire.reader = asyncio.current_task()
            try:
                await self._read_socket(wire, connection)
            except asyncio.CancelledError:
                if not wire.is_over or wire.reader is None:
                    raise
                wire.reader.uncancel()  # by the goodbye
            finally:
                wire.reader = None
            if wire.goodbye is not None:
                await asyncio.wait({wire.goodbye}, timeout=FLUSH_S + CLOSE_S)
        finally:
            code = wire.close_code or socket.close_code or 1006
            self.disconnects[str(code) if wire.close_code or code in STANDARD else "other"] += 1
            self._shut(wire, lingers=code != CLOSE_NORMAL and code not in FINAL)
            connection.on_late = connection.on_fault = None
            for task in (wire.writer, wire.goodbye):
                if task is not None:
                    task.cancel()
            if request.transport is not None and not request.transport.is_closing():
                request.transport.close()
            if request.transport is not None:
                asyncio.get_running_loop().call_later(LINGER_S, request.transport.abort)
        return socket

    def _late(self, wire: _Wire, error: LimitError) -> None:
        """A frame was begun and did not come."""
        self.state.limited[error.limit] += 1
        self._close(wire, protocol.CLOSE_TOO_SLOW, error.message)

    async def _read_socket(self, wire: _SocketWire, connection: Connection) -> None:
        async for message in wire.socket:
            wire.heard = True
            connection.finished()
            if message.type is WSMsgType.PING:
                await wire.socket.pong(message.data)
                continue
            if message.type is WSMsgType.PONG:
                continue
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                if isinstance(message.data, WebSocketError) and message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
                    self.state.limited["frame"] += 1
                break
            if wire.close_code:
                continue
            connection.hold_up()
            wire.is_held_up = True
            tokens = [] if self.state.authority is None else tokens_of(message.data, self.limits.frame_bytes)
            for token in tokens:
                await self.prepare(token)
            if tokens:
                self.look_at_wall()
            now_ms = self._clock.now_ms()
            effects = client_frame(
                self.state, wire.session, message.data, self._command, now_ms, new_mutation_id, self._take_back
            )
            self.run(effects)
            while self._is_unread(wire.session) and not wire.close_code:
                await wire.paused()
            pace = wire.session.pace
            while pace is not None and (pause_ms := pace.pause_ms(self._clock.now_ms())) and not wire.close_code:
                asyncio.get_running_loop().call_later(pause_ms / 1000.0, wire.let_read)
                await wire.paused()
            connection.go_on()
            wire.is_held_up = False

    def _is_unread(self, session: SessionState) -> bool:
        """Whether so many answers wait for a client that no more of its requests are read."""
        return len(session.control) > CONTROL or session.control_bytes > self.state.outbox_limit

    async def _write_socket(self, wire: _SocketWire) -> None:
        """Write all there is, to the end also where it is being closed."""
        try:
            while True:
                wire.again = False
                if wire.pings:
                    wire.pings = False
                    await wire.socket.ping()
                frame = self._take(wire)
                if frame is not None:
                    await wire.socket.send_frame(frame, WSMsgType.TEXT)
                    self._written(wire)
                    wire.let_read()
                elif not wire.again:
                    break
        except ConnectionError:
            self._close(wire, 1006, "")
        except Exception:
            LOG.exception("writing_failed")
            self._close(wire, 1011, "the gateway failed")
        finally:
            wire.writer = None

    async def _say_goodbye(self, wire: _SocketWire) -> None:
        """Close a socket, which a writer that is stuck may not prevent."""
        if wire.writer is not None:
            await asyncio.wait({wire.writer}, timeout=FLUSH_S)
        try:
            async with asyncio.timeout(CLOSE_S):
                await wire.socket.close(code=wire.close_code, message=wire.close_reason.encode()[:120])
        except (TimeoutError, ConnectionError):
            pass
        finally:
            wire.is_over = True
            if wire.reader is not None:
                wire.reader.cancel()

    async def _keep(self) -> None:
        """Ping sockets that are quiet, and end those that do not answer, or do not say whose they are."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(KEEP_S, PING_S / 5, self.limits.hello_within_ms / 5_000))
            now_s = loop.time()
            for wire in list(self._wires.values()):
                if isinstance(wire, _SocketWire) and not wire.close_code:
                    self._look_after(wire, now_s)

    def _look_after(self, wire: _SocketWire, now_s: float) -> None:
        if wire.is_held_up:
            wire.heard = True  # what it has said since is not read yet
        elif wire.session.principal is None and now_s - wire.opened_s >= self.limits.hello_within_ms / 1000.0:
            self.state.limited["hello_within"] += 1
            self._close(wire, protocol.CLOSE_HELLO_LATE, "no hello with a token")
        elif now_s - wire.pinged_s >= PING_S:
            wire.pinged_s = now_s
            if wire.session.busy:
                return  # whether a full socket still takes anything is for `GatewayState.look` to say
            if not wire.heard:
                self._close(wire, protocol.CLOSE_NO_PONG, "no pong")
                return
            wire.heard, wire.pings = False, True
            wire.wake()

    def look(self) -> None:
        """See which sockets hold up what is due."""
        self.run(self.state.look(self._clock.now_ms(), self._unsent))

    def _unsent(self, session: str) -> int:
        wire = self._wires.get(session)
        transport = None if wire is None else wire.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    def _written(self, wire: _Wire) -> None:
        effects = self.state.written(wire.session, self._clock.now_ms())
        if effects:
            self.run(effects)

    def _take(self, wire: _Wire) -> bytes | None:
        frame, effects = self.state.take(wire.session, self._clock.now_ms())
        if effects:
            self.run(effects)
        return frame

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "key", "prefix", "mode")
        mode = parameters.choice(request.query, "mode", "data", "patch")
        wanted = [(text, False) for text in request.query.getall("key", [])]
        wanted += [(text, True) for text in request.query.getall("prefix", [])]
        if not wanted:
            raise RequestError(ErrorCode.BAD_REQUEST, "a stream needs a key or a prefix")
        tenant = who(request).tenant
        keys = _widest(
            [(tenant.inside(normalized(text)), prefix) for text, prefix in wanted], self.limits.subscriptions
        )
        for key, _ in keys:
            who(request).require("read", key)
        since = request.headers.get("Last-Event-ID") or None
        wire = self._open(request, scope=scope_of(keys))
        try:
            for n, (key, prefix) in enumerate(keys):
                name = str(n).encode()
                self.run(
                    self.state.subscribe(
                        wire.session, name, key, prefix=prefix, mode=mode, since=since, now_ms=self._clock.now_ms()
                    )
                )
            response = web.StreamResponse(
                headers={**self._browsers.data, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
            )
            self._browsers.allow(request, response, cookies=True)
            await response.prepare(request)
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write_stream(wire, response))
                await wire.closing.wait()
                await asyncio.wait({writer}, timeout=FLUSH_S)
                writer.cancel()
        finally:
            self._shut(wire)
            if wire.close_code == protocol.CLOSE_TOO_SLOW and request.transport is not None:
                request.transport.abort()
        return response

    async def _write_stream(self, wire: _StreamWire, response: web.StreamResponse) -> None:
        try:
            while not wire.close_code:
                if not await _set_within(wire.ready, PING_S):
                    await response.write(b": alive\n\n")
                    continue
                wire.ready.clear()
                while (piece := self._take(wire)) is not None:
                    await response.write(piece)
                    self._written(wire)
        except ConnectionError:
            self._close(wire, 1006, "")

    async def _missed(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "since", "key", "prefix")
        if ("key" in request.query) == ("prefix" in request.query):
            raise RequestError(ErrorCode.BAD_REQUEST, "missed needs a key or a prefix")
        prefix = "prefix" in request.query
        key = _key(request, "prefix" if prefix else "key")
        if "since" not in request.query:
            raise RequestError(ErrorCode.BAD_REQUEST, "the parameter 'since' is needed, a position token")
        since = request.query["since"]
        who(request).require("read", key)
        wire = self._open(request)
        messages: list[_Message] = []
        begins_again = self.state.tokens.position(scope_of([(key, prefix)]))
        try:
            now_ms = self._clock.now_ms()
            self.run(
                self.state.subscribe(wire.session, b"0", key, prefix=prefix, mode="data", since=since, now_ms=now_ms)
            )
            async with asyncio.timeout(REQUEST_MS / 1000.0):
                while not _is_whole(messages, begins_again):
                    await wire.ready.wait()
                    wire.ready.clear()
                    self._require_still(request, key)
                    while not _is_whole(messages, begins_again) and (frame := self._take(wire)) is not None:
                        messages.extend(_MESSAGES(frame))
                        self._written(wire)
        except TimeoutError as error:
            raise HarborError(ErrorCode.TIMEOUT, "the shard did not answer in time") from error
        finally:
            self._shut(wire)
        return web.Response(body=msgspec.json.encode(_missed_answer(messages)), headers=JSON)

    # --- the rest ------------------------------------------------------------------------------------------------

    async def _cluster(self, request: web.BaseRequest) -> web.StreamResponse:
        wants_dead_letters = parameters.wants_dead_letters(request)
        who(request).require_admin()
        described = await self._describe()
        if wants_dead_letters:
            described["dead_letters"] = msgspec.to_builtins(await self._dead_letters())
        return web.Response(body=orjson.dumps(described), headers=JSON)

    async def _scale_cluster(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have other numbers of actors."""
        parameters.only(request)
        who(request).require_admin()
        body = await parameters.body(request)
        if not isinstance(body, dict) or not body:
            raise RequestError(ErrorCode.BAD_REQUEST, 'the body is an object such as {"ingestors": 4}')
        for name, count in body.items():
            if name not in MAX_ACTORS:
                there_are = ", ".join(MAX_ACTORS)
                raise RequestError(ErrorCode.BAD_REQUEST, f"unknown member {name!r}, there are: {there_are}")
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_ACTORS[name]:
                raise RequestError(
                    ErrorCode.BAD_REQUEST,
                    f"{name}: expected a whole number from 1 to {MAX_ACTORS[name]}, got {count!r}",
                )
        await self._scale(body)
        return web.Response(body=orjson.dumps(body), headers=JSON)

    async def _healthz(self, request: web.BaseRequest) -> web.StreamResponse:  # noqa: ARG002 - aiohttp's signature
        return web.Response(text="alive\n")

    async def _readyz(self, request: web.BaseRequest) -> web.StreamResponse:  # noqa: ARG002
        if self.draining:
            raise HarborError(ErrorCode.UNAVAILABLE, "draining")
        if self.not_ready:
            raise HarborError(ErrorCode.UNAVAILABLE, self.not_ready)
        now_s = asyncio.get_running_loop().time()
        if self._readiness is None or (self._readiness.done() and now_s >= self._readiness_s + READY_FOR_S):
            self._readiness, self._readiness_s = self._spawn(self._find_silence()), now_s
        await asyncio.shield(self._readiness)  # others wait for it too
        if self._silence:
            raise HarborError(ErrorCode.UNAVAILABLE, self._silence)
        return web.Response(text="ready\n")

    async def _find_silence(self) -> None:
        """See whether every shard answers."""
        try:
            async with asyncio.timeout(READY_S):
                await self._ask(None, Ping)
            self._silence = ""
        except TimeoutError:
            self._silence = "a shard does not answer"
        except HarborError as error:
            self._silence = error.message

    async def _openapi_json(self, request: web.BaseRequest) -> web.StreamResponse:  # noqa: ARG002
        return web.Response(body=self._openapi, headers=JSON)

    async def _unknown(self, request: web.BaseRequest) -> web.StreamResponse:
        raise RequestError(ErrorCode.NOT_FOUND, f"no such endpoint: {request.method} {request.path[:120]}")


CHUNK_WRITE_BYTES = 64 * 1024
"""Bytes a socket may hold unsent before writing waits: from then on its session lags and folds."""


NOTSENT_BYTES = 128 * 1024
"""What the kernel may hold of a socket beside what is on its way to the peer. By default it takes megabytes from a client that has stopped
reading, which then seems to keep up."""


def _bound(transport: asyncio.Transport | None) -> None:
    """Let a stream's connection buffer no more than it needs to be kept busy."""
    connection = None if transport is None else transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and some BSDs
    if connection is not None and option is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, option, NOTSENT_BYTES)


def _entry_response(request: web.BaseRequest, version: int, body: bytes) -> web.Response:
    etag = f'"{version}"'
    held = request.headers.get("If-None-Match")
    if held is not None and (
        held.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in held.split(",")]
    ):
        return web.Response(status=304, headers={"ETag": etag})
    return web.Response(body=body, headers={"Content-Type": "application/json", "ETag": etag})


def _pattern(request: web.BaseRequest) -> str:
    """Return a request's path as routes have it. An escaped `/` parts nothing, here as for a proxy that lets only some paths through."""
    path = request.rel_url.raw_path
    return f"{MUTATION}{{id}}" if path.startswith(MUTATION) else path


def who(request: web.BaseRequest) -> Principal:
    """Return whose request it is."""
    principal = request[PRINCIPAL]
    assert principal is not None
    return principal


def _key(request: web.BaseRequest, name: str = "key") -> CanonicalKey:
    """Return the cluster's key for the one that a parameter names.

    Raises:
        RequestError: as `parameters.key`.
    """
    return who(request).tenant.inside(parameters.key(request, name))


def _request_id(request: web.BaseRequest, key: CanonicalKey) -> str:
    """Return an id for a write of `key`: one of its own, or the caller's `Idempotency-Key`.

    That is another one for each subject and entry: a shard answers a repeated id with what it did the first time, and writes nothing.

    Raises:
        RequestError: as `parameters.request_id`.
    """
    own = secrets.token_hex(12)
    given = parameters.request_id(request, own)
    if given == own:
        return own
    whose = f"{who(request).account}\n{key}"  # a key has no line feed
    return f"{given}/{sha256(whose.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _key_row(row: KeyInfo, subscribers: int, tenant: Tenant) -> dict[str, Any]:
    return {
        "key": orjson.Fragment(tenant.outside(row.key)),
        "version": row.version,
        "status": row.status,
        "is_stale": row.is_stale,
        "subscribers": subscribers,
    }


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; return whether it came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _widest(wanted: list[tuple[CanonicalKey, bool]], most: int) -> list[tuple[CanonicalKey, bool]]:
    """Leave out what another key or prefix of a stream covers: its events do not say which of them they are for.

    Raises:
        RequestError: `TOO_MANY`, as many as a URL can hold would keep everybody waiting while they are compared.
    """
    asked = dict.fromkeys(wanted)
    if len(asked) > most:
        refuse(ErrorCode.TOO_MANY, "subscriptions", most, f"a stream has at most {most} keys and prefixes")
    prefixes = [KeyMatcher(parse(key)) for key, prefix in asked if prefix]
    return [
        (key, prefix)
        for key, prefix in asked
        if not any(matcher.matches(key, parse(key)) for matcher in prefixes if not (prefix and matcher.key == key))
    ]


_Message = dict[str, msgspec.Raw]
"""What a session is told. Its data stays as it is: an upstream may send JSON that others read and this gateway would not (`1e999`)."""
_MESSAGES = msgspec.json.Decoder(list[_Message]).decode


def _kind(message: _Message) -> str:
    return str(msgspec.json.decode(message["type"]))


def _is_whole(messages: list[_Message], begins_again: bytes) -> bool:
    """Whether a subscription that resumed has been told everything; the token `begins_again` says that more is to come."""
    if not messages:
        return False
    last = messages[-1]
    if _kind(last) == "position":
        return bool(msgspec.json.decode(last["token"]).encode() != begins_again)
    return _kind(last) == "snapshot_end"


def _missed_answer(messages: list[_Message]) -> dict[str, Any]:
    last = messages[-1]
    position = last.get("token") or last.get("position")
    kinds = [_kind(message) for message in messages]
    for message in messages:
        del message["type"]
        message.pop("sub", None)
    if "reset" in kinds:
        entries: dict[bytes, _Message] = {}
        for kind, message in zip(kinds, messages, strict=True):
            key = bytes(message.get("key", b""))
            match kind:
                case "snapshot":
                    entries[key] = message
                case "removed":
                    entries.pop(key, None)
                case "change" if key in entries:  # while the snapshot was being taken
                    entries[key].update({"version": message["version"], "data": message["data"]})
                case "change":
                    entries[key] = {"key": message["key"], "version": message["version"], "data": message["data"]}
        return {"reset": True, "entries": list(entries.values()), "position": position}
    changes: list[dict[str, Any]] = []
    for kind, message in zip(kinds, messages, strict=True):
        if kind == "change":
            changes.append(message)
        elif kind == "removed":
            changes.append({"key": message["key"], "version": message["version"], "removed": True})
    return {"changes": changes, "position": position}
