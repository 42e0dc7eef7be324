"""The admin port, beside the supervisor's driver: metrics of the whole cluster, its description, its health.

Metrics and health are for anybody who reaches the port, since there is nothing of anybody's in them; the description needs the admin
grant where keys are configured.
"""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Generic, TypeVar

import msgspec
from aiohttp import web
from ray.exceptions import RayError

from cluster.actors.handles import SupervisorHandle
from cluster.clock import SystemClock
from cluster.config import Config
from cluster.config.model import GatewayConfig
from cluster.core.addresses import Addresses
from cluster.core.limits import Limits
from cluster.errors import ErrorCode, HarborError, RequestError
from cluster.gateway import Browsers, Connections, configured_authority, credentials, error_response, parameters
from cluster.observability import metrics

CONNECTIONS = 128
"""At once, of which an address has half: some scrapers, probes and people. Beyond it they are refused, as by a gateway."""
PACE_S = 0.25
"""Between two calls to the supervisor for the same: each is work for every actor, and anybody who reaches the port may ask."""

T = TypeVar("T")


class _Paced(Generic[T]):
    """A blocking call for all who ask: one at a time, not more often than `PACE_S`, and for each of them begun after it has asked."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._next: asyncio.Task[T] | None = None
        """Not begun yet."""
        self._began_s = -math.inf
        self._calling = asyncio.Lock()

    async def __call__(self) -> T:
        """Return what it says, which is as of now."""
        if self._next is None:
            self._next = asyncio.create_task(self._make())
        return await asyncio.shield(self._next)  # others may wait for it too

    async def _make(self) -> T:
        async with self._calling:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, self._began_s + PACE_S - loop.time()))
            self._began_s = loop.time()
            self._next = None
            return await asyncio.to_thread(self._call)


class _Admin:
    """The endpoints. Calls to the supervisor block, so they are made on threads."""

    def __init__(self, gateway: GatewayConfig, supervisor: SupervisorHandle) -> None:
        self._gateway = gateway
        self._metrics = _Paced(supervisor.metrics)
        self._described = _Paced(supervisor.describe)
        self._dead_letters = _Paced(supervisor.dead_letters)
        self._authority = configured_authority(gateway)
        self._browsers = _browsers(gateway)
        self._clock = SystemClock()
        self._routes = {
            "/metrics": self._scrape,
            "/v1/cluster": self._describe,
            "/healthz": self._alive,
            "/readyz": self._is_ready,
        }

    def reconfigure(self, config: Config) -> None:
        """Take what a configuration says now of pages in browsers. Another thread may call it."""
        self._browsers = _browsers(config.gateway)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve the port, and keep what credentials are checked with current.

        Raises:
            OSError: it cannot be listened on.
        """
        server = Connections(self._handle, _few(self._gateway.limits), Counter(), Addresses(), lambda: self._browsers)
        runner = web.ServerRunner(server, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._gateway.admin_host, self._gateway.admin_port).start()
            async with asyncio.TaskGroup() as group:
                keeping = None if self._authority is None else group.create_task(self._authority.keep(lambda _: None))
                yield
                if keeping is not None:
                    keeping.cancel()
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, guarded against pages in browsers as a gateway's are."""
        browsers = self._browsers
        try:
            browsers.check(request, is_guarded=self._authority is not None)
            response = await self._answer(request)
        except HarborError as error:
            response = error_response(error)
        except RayError as error:  # it is pending, restarting, or gone
            reason = f"the supervisor does not answer ({type(error).__name__})"
            response = error_response(HarborError(ErrorCode.UNAVAILABLE, reason))
        browsers.guard(response)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = self._routes.get(request.path)
        if endpoint is not None and request.method in ("GET", "HEAD"):
            return await endpoint(request)
        refusal = RequestError(ErrorCode.NOT_FOUND, f"no such endpoint: {request.method} {request.path[:120]}")
        response = error_response(refusal)
        if endpoint is not None:
            response.set_status(405)
            response.headers["Allow"] = "GET,HEAD"
        return response

    async def _scrape(self, _: web.BaseRequest) -> web.Response:
        gathered = await self._metrics()
        samples = [sample for _, encoded in gathered if encoded is not None for sample in metrics.decode(encoded)]
        return web.Response(body=metrics.render(samples), content_type="text/plain", charset="utf-8")

    async def _describe(self, request: web.BaseRequest) -> web.Response:
        await self._check(request)
        wants_dead_letters = parameters.wants_dead_letters(request)
        described = await self._described()
        if wants_dead_letters:
            described = {**described, "dead_letters": msgspec.to_builtins(await self._dead_letters())}
        return web.json_response(described)

    async def _check(self, request: web.BaseRequest) -> None:
        """Let in who may see the cluster.

        Raises:
            HarborError: `UNAUTHORIZED`, `FORBIDDEN`.
        """
        if self._authority is None:
            return
        token = credentials(request)
        if token is None:
            raise HarborError(ErrorCode.UNAUTHORIZED, "credentials with the admin grant are needed")
        await self._authority.prepare(token)
        self._authority.look()
        self._authority.recognise(token, self._clock.wall_ms()).require_admin()

    async def _alive(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="alive\n")

    async def _is_ready(self, _: web.BaseRequest) -> web.Response:
        described = await self._described()
        if described["ready"]:
            return web.Response(text="ready\n")
        reason = f"not ready: waiting for {', '.join(described['waits_for'])}"
        raise HarborError(ErrorCode.UNAVAILABLE, reason)


def _browsers(gateway: GatewayConfig) -> Browsers:
    return Browsers(gateway.origins, int(gateway.hsts_ms / 1000))


def _few(limits: Limits) -> Limits:
    """Return the limits of a gateway with those connections that this port has."""
    return msgspec.structs.replace(
        limits,
        connections=min(CONNECTIONS, limits.connections),
        connections_per_address=min(CONNECTIONS // 2, limits.connections_per_address),
    )


@contextmanager
def serving(config: Config, supervisor: SupervisorHandle, *, shared: bool) -> Iterator[Callable[[Config], None]]:
    """Serve the admin port. Yields what takes another configuration.

    `shared`: another driver may serve it already, which will do.

    Raises:
        HarborError: it cannot be listened on.
    """
    admin = _Admin(config.gateway, supervisor)
    loop = asyncio.new_event_loop()
    failures: list[Exception] = []
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with admin.listening():
            ready.set()
            await over.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        except Exception as error:
            if ready.is_set():
                raise  # nobody waits any more
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="admin", daemon=True)
    thread.start()
    ready.wait()
    try:
        for failure in failures:
            if not (shared and isinstance(failure, OSError)):
                raise _unserved(config.gateway, failure) from failure
        yield admin.reconfigure
    finally:
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(over.set)
        thread.join(5.0)


def _unserved(gateway: GatewayConfig, failure: Exception) -> HarborError:
    if isinstance(failure, HarborError):
        return failure
    reason = (isinstance(failure, OSError) and failure.strerror) or failure
    where = f"{gateway.admin_host}:{gateway.admin_port}"
    return HarborError(ErrorCode.UNAVAILABLE, f"gateway.admin_port: {where} cannot be listened on: {reason}")
