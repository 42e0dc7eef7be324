"""The admin port, beside the supervisor's driver: metrics of the whole cluster, its description, its health.

Metrics and health are for anybody who reaches the port, since there is nothing of anybody's in them; the description needs the admin
grant where keys are configured.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from aiohttp import web
from ray.exceptions import RayError

from cluster.actors.handles import SupervisorHandle
from cluster.clock import SystemClock
from cluster.config import Config
from cluster.errors import ErrorCode, HarborError, RequestError
from cluster.gateway import Browsers, configured_authority, credentials, error_response, parameters
from cluster.observability import metrics


class _Admin:
    """The endpoints. Calls to the supervisor block, so they are made on threads."""

    def __init__(self, config: Config, supervisor: SupervisorHandle) -> None:
        self._supervisor = supervisor
        self._authority = configured_authority(config.gateway)
        self._clock = SystemClock()
        self.routes = [
            web.get("/metrics", self._scrape),
            web.get("/v1/cluster", self._describe),
            web.get("/healthz", self._alive),
            web.get("/readyz", self._is_ready),
        ]

    async def _scrape(self, _: web.Request) -> web.Response:
        gathered = await asyncio.to_thread(self._supervisor.metrics)
        samples = [sample for _, encoded in gathered if encoded is not None for sample in metrics.decode(encoded)]
        return web.Response(body=metrics.render(samples), content_type="text/plain", charset="utf-8")

    async def _describe(self, request: web.Request) -> web.Response:
        try:
            await self._check(request)
            wants_dead_letters = parameters.wants_dead_letters(request)
        except HarborError as error:
            return error_response(error)
        described = await asyncio.to_thread(self._supervisor.describe)
        if wants_dead_letters:
            described["dead_letters"] = msgspec.to_builtins(await asyncio.to_thread(self._supervisor.dead_letters))
        return web.json_response(described)

    async def _check(self, request: web.Request) -> None:
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
        self._authority.recognise(token, self._clock.now_ms()).require_admin()

    async def keep(self, _: web.Application) -> AsyncIterator[None]:
        """Keep what credentials are checked with current while the port is served."""
        if self._authority is None:
            yield
            return
        keeping = asyncio.ensure_future(self._authority.keep(lambda _: None))
        yield
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _is_ready(self, _: web.Request) -> web.Response:
        described = await asyncio.to_thread(self._supervisor.describe)
        if described["ready"]:
            return web.Response(text="ready\n")
        reason = f"not ready: waiting for {', '.join(described['waits_for'])}"
        return error_response(HarborError(ErrorCode.UNAVAILABLE, reason))


def _careful(config: Config) -> Any:
    """Return what guards the endpoints against pages in browsers, as those of gateways are."""
    gateway = config.gateway
    browsers = Browsers(gateway.origins, int(gateway.hsts_ms / 1000))

    @web.middleware
    async def careful(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        try:
            browsers.check(request, is_guarded=gateway.auth.mode != "none")
        except HarborError as error:
            response: web.StreamResponse = error_response(error)
        else:
            try:
                response = await handler(request)
            except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
                response = _no_such(request, error)
        browsers.guard(response)
        return response

    return careful


def _no_such(request: web.Request, error: web.HTTPNotFound | web.HTTPMethodNotAllowed) -> web.Response:
    """Return as the gateway's port has it what the library would answer with a page of text."""
    refusal = RequestError(ErrorCode.NOT_FOUND, f"no such endpoint: {request.method} {request.path[:120]}")
    response = error_response(refusal)
    response.set_status(error.status)
    if (methods := error.headers.get("Allow")) is not None:
        response.headers["Allow"] = methods
    return response


@web.middleware
async def _supervised(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Say so where the supervisor does not answer: it is pending, restarting, or gone."""
    try:
        return await handler(request)
    except RayError as error:
        reason = f"the supervisor does not answer ({type(error).__name__})"
        return error_response(HarborError(ErrorCode.UNAVAILABLE, reason))


@contextmanager
def serving(config: Config, supervisor: SupervisorHandle, *, shared: bool) -> Iterator[None]:
    """Serve the admin port.

    `shared`: another driver may serve it already, which will do.

    Raises:
        HarborError: it cannot be listened on.
    """
    host, port = config.gateway.admin_host, config.gateway.admin_port
    loop = asyncio.new_event_loop()
    started: list[OSError | None] = []
    ready = threading.Event()

    async def serve() -> web.AppRunner:
        app = web.Application(middlewares=[_careful(config), _supervised])
        admin = _Admin(config, supervisor)
        app.add_routes(admin.routes)
        app.cleanup_ctx.append(admin.keep)
        idle_s = config.gateway.limits.idle_ms / 1000
        runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=idle_s)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            started.append(None)
        except OSError as error:
            started.append(error)
        ready.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, name="admin", daemon=True)
    thread.start()
    ready.wait()
    outcome = started[0]
    try:
        if isinstance(outcome, OSError) and not shared:
            raise HarborError(
                ErrorCode.UNAVAILABLE,
                f"gateway.admin_port: {host}:{port} cannot be listened on: {outcome.strerror}",
            )
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5.0)
