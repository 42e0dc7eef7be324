"""Bringing a cluster up and down: the driver's side.

Without an address a Ray of our own is started and ends with us; what is on a Ray that was there before goes on when we crash, and
also when we only attached to a cluster that was running. A note of the local Ray's address lets `harbor down`, and a second
`harbor up`, find it.
"""

import asyncio
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import ray
from aiohttp import web
from ray.exceptions import RayError

from cluster.actors import handles
from cluster.actors.handles import SUPERVISOR, SupervisorHandle, kill, namespace
from cluster.actors.specification import encode
from cluster.actors.supervisor import ACTOR_OPTIONS, SupervisorActor
from cluster.config import Config
from cluster.core.grants import ApiKeys
from cluster.errors import ErrorCode, HarborError
from cluster.gateway import KeysFile, credentials, error_response, parameters
from cluster.observability import metrics

READY_TIMEOUT_S = 90.0
DOWN_CHECK_S = 2.0
"""How soon `up` ends after `down`."""
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Ours is a local Ray for messages of some hundred KB."""


def _note(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"harbor-{os.getuid()}" / f"{name}.json"


def running(name: str) -> dict[str, Any] | None:
    """Return the note of the driver of this user that runs a local Ray for the cluster: its `pid`, Ray's `address`, its `upstream`."""
    try:
        note: dict[str, Any] = json.loads(_note(name).read_text())
        os.kill(note["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return note


def _local_address(name: str) -> str | None:
    note = running(name)
    return None if note is None else str(note["address"])


@contextmanager
def _ray(address: str | None, name: str, upstream: str | None = None) -> Iterator[bool]:
    """Connect to Ray. Yields whether it is our own."""
    address = address or _local_address(name)
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        if address is not None:
            ray.init(address=address, namespace=namespace(name), logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                namespace=namespace(name),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE_BYTES,
                num_cpus=max(os.cpu_count() or 1, 1),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise HarborError(ErrorCode.UNAVAILABLE, f"no Ray at {address or 'this machine'}: {error}") from error
    own = address is None
    note = _note(name)
    try:
        if own:
            note.parent.mkdir(mode=0o700, exist_ok=True)
            gcs_address = ray.get_runtime_context().gcs_address
            note.write_text(json.dumps({"pid": os.getpid(), "address": gcs_address, "upstream": upstream}))
        yield own
    finally:
        if own:
            note.unlink(missing_ok=True)
        ray.shutdown()


def up(
    config: Config,
    *,
    address: str | None,
    upstream: str | None = None,
    on_ready: Callable[[dict[str, Any]], None],
    stop: threading.Event,
) -> None:
    """Run the cluster until `stop` is set or somebody takes it down, then end what was started here.

    `upstream` is the sample upstream's URL, noted for those who attach.

    Raises:
        HarborError: it cannot be brought up; nothing is left behind.
    """
    name = config.cluster.name
    if address is None and _local_address(name) is None:
        _check_port(config.gateway.host, config.gateway.port)
    with _ray(address, name, upstream) as own:
        specification = encode(config)
        existing = _supervisor(name)
        attached = existing is not None
        handle = existing
        if handle is None:
            options = {**ACTOR_OPTIONS, "name": SUPERVISOR, "namespace": namespace(name), "get_if_exists": True}
            handle = handles.create(SupervisorActor, options, name, specification)
        supervisor = SupervisorHandle(handle)
        try:
            if attached:
                supervisor.apply(specification)
            described = _await_ready(supervisor, stop)
            with _admin(config, supervisor, shared=attached):
                on_ready(described)
                while not stop.wait(DOWN_CHECK_S) and _supervisor(name) is not None:
                    pass
        except RayError as error:
            raise HarborError(ErrorCode.UNAVAILABLE, f"the cluster did not come up: {_reason(error)}") from error
        finally:
            if own or not attached:
                with suppress(RayError):
                    supervisor.stop()
                with suppress(Exception):
                    kill(handle)


def _check_port(host: str, port: int) -> None:
    """Find out now, not after actors have died of it several times, that a port is taken.

    Raises:
        HarborError: it is.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gateways do, which share theirs
        try:
            probe.bind(place)
        except OSError as error:
            raise HarborError(
                ErrorCode.UNAVAILABLE, f"{host}:{port} cannot be used ({error.strerror}): choose another with --port"
            ) from error


def down(address: str | None, name: str) -> bool:
    """Stop a cluster. Returns whether there was one.

    Raises:
        HarborError: no Ray there.
    """
    address = address or _local_address(name)
    if address is None:
        return False
    with _ray(address, name):
        handle = _supervisor(name)
        if handle is None:
            return False
        with suppress(RayError):
            SupervisorHandle(handle).stop()
        kill(handle)
        return True


def _supervisor(name: str) -> Any:
    try:
        return ray.get_actor(SUPERVISOR, namespace(name))
    except ValueError:
        return None


def _await_ready(supervisor: SupervisorHandle, stop: threading.Event) -> dict[str, Any]:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not stop.is_set():
        described = supervisor.describe()
        if described["ready"]:
            return described
        if time.monotonic() > deadline:
            missing = [
                f"{kind[:-1]}-{each['id']}"
                for kind in ("shards", "coordinators", "ingestors", "gateways")
                for each in described[kind]
                if "pid" not in each
            ]
            raise HarborError(
                ErrorCode.UNAVAILABLE,
                f"not ready after {READY_TIMEOUT_S:.0f} s, missing: {', '.join(missing)} (is the gateway's port free?)",
            )
        stop.wait(0.1)
    return {"ready": False, "shards": [], "coordinators": [], "ingestors": [], "gateways": [], "sources": []}


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
