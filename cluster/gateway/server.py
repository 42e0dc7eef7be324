"""The client-facing server: routes, sockets and event streams around a `GatewayState`.

One writer per session takes one frame at a time and waits until the socket has it; meanwhile the state folds what comes. Reads of live
replicas never leave this process.

It is one thing because every endpoint is a few lines between a parameter and an effect.
"""

import asyncio
import logging
import math
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import orjson
from aiohttp import WSMsgType, web

from cluster import __version__
from cluster.clock import Clock
from cluster.core import protocol
from cluster.core.client_message import PING_MS, Command, answer, client_frame, tokens_of, welcome
from cluster.core.dead_letters import DeadLetter
from cluster.core.gateway_state import REQUEST_MS, Close, Deliver, Effect, GatewayState, Respond
from cluster.core.grants import ANYBODY, Principal
from cluster.core.messages import (
    Act,
    Edit,
    EntryView,
    Erase,
    Failure,
    KeyInfo,
    KeyList,
    ListKeys,
    ListMembers,
    Matched,
    MemberList,
    Payload,
    Read,
    Send,
    Write,
    Written,
)
from cluster.core.operation import parse_operations
from cluster.core.position import decode_token
from cluster.core.presence_message import topic_of
from cluster.core.presence_session import identity_of
from cluster.core.query_key import CanonicalKey, KeyMatcher, canonical, checked, normalized, parse
from cluster.core.replica import Replica
from cluster.core.session_state import COMMANDS, CONTROL, SUBSCRIPTIONS, SessionState
from cluster.core.slot_move import MAX_ACTORS
from cluster.core.tenant import NOBODYS, Tenant
from cluster.errors import ErrorCode, HarborError, RequestError, UnauthorizedError
from cluster.gateway import parameters
from cluster.gateway.access import cookie, credentials
from cluster.gateway.entry_response import DateHeader, EntryResponse
from cluster.gateway.mutation_routes import MUTATION, MutationRoutes, new_mutation_id
from cluster.gateway.openapi import document

PING_S = PING_MS / 1000.0
"""Between pings on a socket or comments on an event stream; a peer that does not answer the former is gone."""
HELLO_S = 10.0
"""A socket that has not said by then whose it is is closed."""
OPEN = frozenset({"/healthz", "/readyz", "/openapi.json", "/"})
"""What anybody may ask: there is nothing of anybody's in it."""
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
"""A shard that does not answer a listing for so long is not ready."""
HARD_FRAME_BYTES = 16 * 1024 * 1024
"""A frame between `MAX_FRAME_BYTES` and this is answered with an error; a longer one is not read, and ends the connection (1009)."""
GROUP = 50
"""Clients that are sent elsewhere at once in a drain, at least."""
GROUP_S = 0.2
"""Between two groups."""
PACED = 0.8
"""Share of a drain's grace over which they are spread; the rest is for sockets to close."""
CLOSE_NORMAL = 1000
FINAL = range(3500, 4000)
"""Close codes of sessions that do not come back; after `CLOSE_NORMAL` they have said so themselves."""
RECONNECT_MS = 1_000
"""At a drain clients are told to come back after this plus as much again at random, so that they do not all come at once."""

STATUS = {
    ErrorCode.BAD_MESSAGE: 400,
    ErrorCode.BAD_KEY: 400,
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.TOO_DEEP: 400,
    ErrorCode.INVALID_VARIABLES: 400,
    ErrorCode.UNKNOWN_TYPE: 400,
    ErrorCode.UNKNOWN_MUTATION: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.VERSION_CONFLICT: 409,
    ErrorCode.CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.TOO_MANY: 429,
    ErrorCode.LIMITED: 429,
    ErrorCode.UNSUPPORTED: 501,
    ErrorCode.UPSTREAM_ERROR: 502,
    ErrorCode.UPSTREAM_OFFLINE: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.TIMEOUT: 504,
}
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
    """A session's shell: its writer waits on `ready`."""

    __slots__ = ("close_code", "close_reason", "closing", "heard", "ready", "session", "taken")

    def __init__(self, session: SessionState) -> None:
        self.session = session
        self.ready = asyncio.Event()
        self.taken = asyncio.Event()
        """Something was written since the reader last looked."""
        self.closing = asyncio.Event()
        self.close_code = 0
        self.close_reason = ""
        self.heard = True
        """The peer has said something since the last ping."""


class GatewayServer:
    """See the module. `send` delivers the state's calls to shards; `describe` and `dead_letters` give `/v1/cluster`, `scale` changes it."""

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
        origins: tuple[str, ...] = (),
        prepare: Callable[[str], Awaitable[None]] = _nothing_to_prepare,
    ) -> None:
        """`prepare` fetches what it takes to recognise who bears credentials."""
        self.prepare = prepare
        self.state = state
        self._clock = clock
        self._send = send
        self._rearm = rearm
        self._describe = describe
        self._scale = scale
        self._dead_letters = dead_letters
        self.origins = frozenset(origins)
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
        self.disconnects: Counter[int] = Counter()
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
            ("GET", "/healthz"): self._healthz,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/openapi.json"): self._openapi_json,
            ("GET", "/"): self._index,
        }

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> int:
        """Listen. Returns the port. Several gateways of one node share it (SO_REUSEPORT)."""
        # Not an `Application`: its routing would be most of the cost of a read.
        server = web.Server(
            self._handle,
            access_log=None,
            handler_cancellation=True,  # the only way to learn that an idle event stream's client is gone
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, reuse_port=True, backlog=1024)
        await site.start()
        self._sites.append(site)
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
                        wire.ready.set()
                case Send():
                    self._send(effect)
                case Respond(ticket=ticket, payloads=payloads):
                    self._respond(ticket, payloads)
                case Close(session=session, code=code, reason=reason):
                    wire = self._wires.get(session)
                    if wire is not None:
                        self._close(wire, code, reason)
        self._rearm()

    def _respond(self, ticket: int, payloads: list[Payload]) -> None:
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
            wire.ready.set()
            wire.taken.set()
            wire.closing.set()

    def _ticket(self) -> int:
        self._next_ticket += 1
        return self._next_ticket

    def _command(self, command: Command) -> int:
        session = self.state.sessions[command.session]
        if session.commands >= COMMANDS:
            raise RequestError(ErrorCode.TOO_MANY, f"a session has at most {COMMANDS} requests open")
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
                    return EntryResponse(self._date.at(now_ms), replica.version, self._body(replica, now_ms))
        handler = self._handler(request.method, request.path)
        if request.method == "OPTIONS":
            handler = self._preflight
        origin = request.headers.get("Origin")
        try:
            if origin is not None and self.origins and origin not in self.origins:
                raise RequestError(ErrorCode.FORBIDDEN, f"the origin {origin!r:.120} is not allowed")
            request[PRINCIPAL] = await self._recognised(request)
            response = await handler(request)
        except HarborError as error:
            response = error_response(error, request.get(PRINCIPAL))
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            LOG.exception("request_failed", extra={"method": request.method, "path": request.path[:120]})
            response = error_response(HarborError(ErrorCode.INTERNAL, "the gateway failed; it has logged why"))
        if origin in self.origins and not response.prepared:
            self._allow(response, origin)
        return response

    def _handler(self, method: str, path: str) -> Handler:
        if path.startswith(MUTATION):
            path = f"{MUTATION}{{id}}"
        return self._routes.get((method, path), self._unknown)

    def _said(self, request: web.BaseRequest) -> str | None:
        """Return the credentials that a request brings.

        Raises:
            HarborError: `UNAUTHORIZED`, they are of another scheme; `FORBIDDEN`, another page's cookie.
        """
        token = credentials(request)
        return cookie(request, self.origins) if token is None and request.path in COOKIED else token

    async def _recognised(self, request: web.BaseRequest) -> Principal | None:
        """Return who asks; None on a socket that is to say hello with a token.

        Raises:
            HarborError: `UNAUTHORIZED`, nobody is recognised.
        """
        if self.state.authority is None or request.path in OPEN or request.method == "OPTIONS":
            return ANYBODY
        token = self._said(request)
        if token is None and request.path == "/v1/socket":
            return None
        if token is None:
            raise UnauthorizedError(
                "missing", "credentials are needed: the header 'Authorization: Bearer TOKEN' or 'X-API-Key: KEY'"
            )
        await self.prepare(token)
        return self.state.recognise(token, self._clock.now_ms())

    def _may_read(self, request: web.BaseRequest, key: CanonicalKey) -> bool:
        if self.state.authority is None:
            return True
        try:
            token = self._said(request)
            principal = None if token is None else self.state.recognise(token, self._clock.now_ms())
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

    @staticmethod
    def _allow(response: web.StreamResponse, origin: str | None) -> None:
        """Let a browser's page from an allowed origin read the response."""
        if origin is None:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "ETag"
        response.headers["Vary"] = "Origin"

    async def _preflight(self, request: web.BaseRequest) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin not in self.origins:
            return error_response(RequestError(ErrorCode.FORBIDDEN, "this origin is not allowed"))
        response = web.Response(status=204)
        self._allow(response, origin)
        response.headers["Access-Control-Allow-Methods"] = "GET, PUT, PATCH, DELETE, POST"
        response.headers["Access-Control-Allow-Headers"] = (
            "authorization, content-type, idempotency-key, if-match, if-none-match, last-event-id, x-api-key"
        )
        response.headers["Access-Control-Max-Age"] = "600"
        return response

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
        request_id = _request_id(request)
        data = orjson.dumps(await parameters.body(request))
        return await self._write(request, key, lambda n: Write(n, request_id, key, data, base_version, ack, merges))

    async def _patch_entry(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "key", "base_version", "ack")
        key = _key(request)
        who(request).require("write", key)
        ack = parameters.acknowledgement(request)
        base_version = parameters.base_version(request)
        request_id = _request_id(request)
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
        request_id = _request_id(request)
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
        parameters.only(request, "prefix", "limit", "cursor")
        tenant = who(request).tenant
        prefix = _key(request, "prefix") if "prefix" in request.query else tenant.inside(CanonicalKey("[]"))
        who(request).require("read", prefix)
        limit = parameters.limit(request, 100, 1000)
        after = tenant.cursor(request.query.get("cursor", ""))
        payloads = await self._ask(None, lambda n: ListKeys(n, prefix, after, limit))
        lists = [payload for payload in payloads if isinstance(payload, KeyList)]
        rows = sorted((row for each in lists for row in each.keys), key=lambda row: row.key)
        more = len(rows) > limit or any(each.more for each in lists)
        rows = rows[:limit]
        answer: dict[str, Any] = {"keys": [_key_row(row, tenant) for row in rows]}
        if more and rows:
            answer["cursor"] = tenant.outside(rows[-1].key)
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

    def _open(self, request: web.BaseRequest, *, server_sent: bool) -> _Wire:
        if self.draining:
            raise HarborError(ErrorCode.UNAVAILABLE, "this gateway is shutting down")
        token = secrets.token_urlsafe(18)
        session = self.state.open_session(
            identity_of(token),
            server_sent=server_sent,
            principal=request[PRINCIPAL],
            resume_token=token,
            now_ms=self._clock.now_ms(),
        )
        wire = self._wires[session.id] = _Wire(session)
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
            max_msg_size=HARD_FRAME_BYTES,
            writer_limit=CHUNK_WRITE_BYTES,
            decode_text=False,
        )
        if not socket.can_prepare(request):
            raise RequestError(ErrorCode.BAD_REQUEST, "this endpoint speaks WebSocket")
        wire = self._open(request, server_sent=False)
        try:
            await socket.prepare(request)
            if wire.session.principal is not None:
                self.run(welcome(self.state, wire.session, self._clock.now_ms()))
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write_socket(wire, socket))
                keeper = group.create_task(self._keep_socket(wire, socket, writer))
                reader = group.create_task(self._read_socket(wire, socket))
                await asyncio.wait({reader, keeper}, return_when=asyncio.FIRST_COMPLETED)
                if wire.close_code:
                    await asyncio.wait({keeper}, timeout=FLUSH_S + CLOSE_S)
                for task in (reader, writer, keeper):
                    task.cancel()
        finally:
            code = wire.close_code or socket.close_code or 1006
            self.disconnects[code] += 1
            self._shut(wire, lingers=code != CLOSE_NORMAL and code not in FINAL)
            if request.transport is not None and not request.transport.is_closing():
                request.transport.close()
            if request.transport is not None:
                asyncio.get_running_loop().call_later(LINGER_S, request.transport.abort)
        return socket

    async def _read_socket(self, wire: _Wire, socket: web.WebSocketResponse[Any]) -> None:
        async for message in socket:
            wire.heard = True
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
                continue
            if message.type is WSMsgType.PONG:
                continue
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            if wire.close_code:
                continue
            for token in () if self.state.authority is None else tokens_of(message.data):
                await self.prepare(token)
            now_ms = self._clock.now_ms()
            effects = client_frame(
                self.state, wire.session, message.data, self._command, now_ms, new_mutation_id, self._take_back
            )
            self.run(effects)
            while len(wire.session.control) > CONTROL and not wire.close_code:
                wire.taken.clear()
                await wire.taken.wait()

    async def _write_socket(self, wire: _Wire, socket: web.WebSocketResponse[Any]) -> None:
        try:
            while not wire.close_code:
                await wire.ready.wait()
                wire.ready.clear()
                while (frame := self._take(wire)) is not None:
                    await socket.send_frame(frame, WSMsgType.TEXT)
                    self.state.written(wire.session, self._clock.now_ms())
                    wire.taken.set()
        except ConnectionError:
            self._close(wire, 1006, "")

    async def _keep_socket(self, wire: _Wire, socket: web.WebSocketResponse[Any], writer: asyncio.Task[None]) -> None:
        """Ping; in the end say goodbye, which a writer that is stuck may not prevent."""
        if wire.session.principal is None and not await _set_within(wire.closing, HELLO_S):
            if wire.session.principal is None:
                self._close(wire, protocol.CLOSE_HELLO_LATE, "no hello with a token")
        while not await _set_within(wire.closing, PING_S):
            if wire.session.busy:
                continue  # whether a full socket still takes anything is for `GatewayState.stalled` to say
            if not wire.heard:
                self._close(wire, protocol.CLOSE_NO_PONG, "no pong")
                break
            wire.heard = False
            try:
                await socket.ping()
            except ConnectionError:
                self._close(wire, 1006, "")
        await asyncio.wait({writer}, timeout=FLUSH_S)
        try:
            async with asyncio.timeout(CLOSE_S):
                await socket.close(code=wire.close_code, message=wire.close_reason.encode()[:120])
        except (TimeoutError, ConnectionError):
            pass

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
        token = request.headers.get("Last-Event-ID") or None
        since = None if token is None else decode_token(token)
        tenant = who(request).tenant
        keys = _widest([(tenant.inside(normalized(text)), prefix) for text, prefix in wanted])
        for key, _ in keys:
            who(request).require("read", key)
        wire = self._open(request, server_sent=True)
        try:
            for n, (key, prefix) in enumerate(keys):
                name = str(n).encode()
                self.run(
                    self.state.subscribe(
                        wire.session, name, key, prefix=prefix, mode=mode, since=since, now_ms=self._clock.now_ms()
                    )
                )
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            origin = request.headers.get("Origin")
            if origin in self.origins:
                self._allow(response, origin)
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

    async def _write_stream(self, wire: _Wire, response: web.StreamResponse) -> None:
        try:
            while not wire.close_code:
                if not await _set_within(wire.ready, PING_S):
                    await response.write(b": alive\n\n")
                    continue
                wire.ready.clear()
                while (piece := self._take(wire)) is not None:
                    await response.write(piece)
                    self.state.written(wire.session, self._clock.now_ms())
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
        since = decode_token(request.query["since"])
        who(request).require("read", key)
        wire = self._open(request, server_sent=False)
        messages: list[_Message] = []
        try:
            now_ms = self._clock.now_ms()
            self.run(
                self.state.subscribe(wire.session, b"0", key, prefix=prefix, mode="data", since=since, now_ms=now_ms)
            )
            async with asyncio.timeout(REQUEST_MS / 1000.0):
                while not _is_whole(messages):
                    await wire.ready.wait()
                    wire.ready.clear()
                    while not _is_whole(messages) and (frame := self._take(wire)) is not None:
                        messages.extend(_MESSAGES(frame))
                        self.state.written(wire.session, self._clock.now_ms())
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
        try:
            async with asyncio.timeout(READY_S):
                await self._ask(None, lambda n: ListKeys(n, CanonicalKey("[]"), "", 1))
        except TimeoutError as error:
            raise HarborError(ErrorCode.UNAVAILABLE, "a shard does not answer") from error
        return web.Response(text="ready\n")

    async def _openapi_json(self, request: web.BaseRequest) -> web.StreamResponse:  # noqa: ARG002
        return web.Response(body=self._openapi, headers=JSON)

    async def _index(self, request: web.BaseRequest) -> web.StreamResponse:  # noqa: ARG002
        page = (
            "<!doctype html><meta charset=utf-8><title>Harbor Cluster</title><h1>Harbor Cluster</h1>"
            f"<p>Version {__version__}. <a href=/v1/cluster>Status</a> · <a href=/v1/keys>Keys</a> · "
            "<a href=/openapi.json>API</a></p>"
        )
        return web.Response(text=page, content_type="text/html")

    async def _unknown(self, request: web.BaseRequest) -> web.StreamResponse:
        raise RequestError(ErrorCode.NOT_FOUND, f"no such endpoint: {request.method} {request.path[:120]}")


CHUNK_WRITE_BYTES = 64 * 1024
"""Bytes a socket may hold unsent before writing waits: from then on its session lags and folds."""


def _entry_response(request: web.BaseRequest, version: int, body: bytes) -> web.Response:
    etag = f'"{version}"'
    held = request.headers.get("If-None-Match")
    if held is not None and (
        held.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in held.split(",")]
    ):
        return web.Response(status=304, headers={"ETag": etag})
    return web.Response(body=body, headers={"Content-Type": "application/json", "ETag": etag})


def error_response(error: HarborError, principal: Principal | None = None) -> web.Response:
    """Return an error as HTTP answers it, to somebody."""
    members = protocol.error_of(error)
    if principal is not None:
        members["message"] = principal.tenant.text(error.message)
    body = orjson.dumps({"error": members})
    response = web.Response(status=STATUS.get(error.code, 500), body=body, headers=JSON)
    if error.code is ErrorCode.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


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


def _request_id(request: web.BaseRequest) -> str:
    """Return the caller's `Idempotency-Key`, which is another one in each tenant, or an id of its own.

    Raises:
        RequestError: as `parameters.request_id`.
    """
    tenant = who(request).tenant
    given = parameters.request_id(request, secrets.token_hex(12))
    return f"tenant/{tenant.name}/{given}" if tenant else given


def _key_row(row: KeyInfo, tenant: Tenant) -> dict[str, Any]:
    return {
        "key": orjson.Fragment(tenant.outside(row.key)),
        "version": row.version,
        "status": row.status,
        "is_stale": row.is_stale,
        "subscribers": row.subscribers,
    }


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; return whether it came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _widest(wanted: list[tuple[CanonicalKey, bool]]) -> list[tuple[CanonicalKey, bool]]:
    """Leave out what another key or prefix of a stream covers: its events do not say which of them they are for.

    Raises:
        RequestError: `TOO_MANY`, as many as a URL can hold would keep everybody waiting while they are compared.
    """
    asked = dict.fromkeys(wanted)
    if len(asked) > SUBSCRIPTIONS:
        raise RequestError(ErrorCode.TOO_MANY, f"a stream has at most {SUBSCRIPTIONS} keys and prefixes")
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


def _is_whole(messages: list[_Message]) -> bool:
    """Whether a subscription that resumed has been told everything."""
    if not messages:
        return False
    last = messages[-1]
    if _kind(last) == "position":
        return bool(msgspec.json.decode(last["token"]).encode() != protocol.VOID_TOKEN)
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
