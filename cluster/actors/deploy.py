"""Bringing a cluster up and down: the driver's side.

Without an address a Ray of our own is started and ends with us; what is on a Ray that was there before goes on when we crash, and
also when we only attached to a cluster that was running. A note of the local Ray's address lets `harbor down`, and a second
`harbor up`, find it.
"""

import json
import math
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from cluster.actors import admin, handles, node
from cluster.actors.handles import NAMESPACE, SUPERVISOR, SupervisorHandle, connect, kill, namespace
from cluster.actors.specification import encode
from cluster.clock import SystemClock
from cluster.config import Config, refusals
from cluster.config.model import ClusterConfig
from cluster.errors import ConfigError, ErrorCode, HarborError

READY_TIMEOUT_S = 90.0
DOWN_CHECK_S = 2.0
"""How soon `up` ends after `down`, and notices another configuration."""
TELL_S = 10.0
"""Between words on what is waited for."""
PROBE_S = 5.0
"""For a Ray to take a connection."""
DEFAULT_NAME = ClusterConfig().name
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Ours is a local Ray for messages of some hundred KB."""


def _notes() -> Path:
    """Return where drivers of this user leave notes; nothing need be there.

    It is among everybody's temporary files, since not every shell of a user names a directory that is theirs alone. Who else could make it
    could leave a note that names a Ray of their own, which would be given this user's token and believed.

    Raises:
        HarborError: `FORBIDDEN`, somebody else could have.
    """
    place = Path(tempfile.gettempdir()) / f"harbor-{os.getuid()}"
    with suppress(FileNotFoundError):
        there = place.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or stat.S_IMODE(there.st_mode) & 0o077:
            raise HarborError(
                ErrorCode.FORBIDDEN,
                f"{place}, which says where clusters run, has to be a directory of yours that nobody else may use (mode "
                "0700): remove it, or set TMPDIR to another place",
            )
    return place


def running(name: str) -> dict[str, Any] | None:
    """Return the note of the driver of this user that runs a local Ray for the cluster: its `pid`, Ray's `address`, its `upstream`.

    Raises:
        HarborError: `FORBIDDEN`, as `_notes`.
    """
    file = _notes() / f"{name}.json"
    try:
        note: dict[str, Any] = json.loads(file.read_text())
        os.kill(note["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return note


def _noted() -> list[str]:
    """Return the names of the clusters of which there is a note of a driver that lives."""
    return sorted(note.stem for note in _notes().glob("*.json") if running(note.stem) is not None)


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
            _probe(address)
            connect(address=address, namespace=namespace(name))
        else:
            connect(
                address="local",  # also where this machine has another Ray, or the environment names one
                namespace=namespace(name),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                num_cpus=max(os.cpu_count() or 1, 1),
            )
    except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        raise HarborError(ErrorCode.UNAVAILABLE, f"no Ray at {address or 'this machine'}: {error}") from error
    own = address is None
    note: Path | None = None
    try:
        if own:
            _notes().mkdir(mode=0o700, exist_ok=True)
            note = _notes() / f"{name}.json"  # looked at once more: somebody may have been quicker
            gcs_address = ray.get_runtime_context().gcs_address
            note.write_text(json.dumps({"pid": os.getpid(), "address": gcs_address, "upstream": upstream}))
        yield own
    finally:
        if note is not None:
            note.unlink(missing_ok=True)
        ray.shutdown()


def _probe(address: str) -> None:
    """Find out whether somebody listens there. Ray itself would go on trying for minutes, and print that it does.

    Raises:
        OSError: nobody does.
    """
    place = node.host_and_port(address)
    if place is not None:
        socket.create_connection(place, PROBE_S).close()


def up(
    config: Config,
    *,
    address: str | None,
    upstream: str | None = None,
    joins: bool = False,
    keeps: bool = False,
    on_ready: Callable[[dict[str, Any]], None],
    reload: Callable[[], Config | None] = lambda: None,
    stop: threading.Event,
) -> None:
    """Run the cluster until `stop` is set or somebody takes it down, then end what was started here.

    Args:
        config: What it is to be.
        address: Of a Ray that is there; None: one of our own.
        upstream: The sample upstream's URL, noted for those who attach.
        joins: This machine is to be a node of that Ray meanwhile, without CPUs.
        keeps: The cluster goes on when this ends; this one waits for it to be ready as long as that takes.
        on_ready: Is told the description when clients can be served.
        reload: Returns another configuration, once, where there is one.
        stop: Set by a signal.

    Raises:
        HarborError: it cannot be brought up; nothing is left behind.
    """
    name = config.cluster.name
    if address is None and _local_address(name) is None:
        _check_port(config.gateway.host, config.gateway.port)
    with (
        node.joined(address, stop) if joins and address is not None else nullcontext(),
        _ray(address, name, upstream) as own,
    ):
        specification = encode(config, _revision())
        handle = _supervisor(name)
        attached = handle is not None
        if handle is None:
            handle = handles.create_supervisor(name, specification)
        supervisor = SupervisorHandle(handle)
        try:
            if attached:
                supervisor.apply(specification)
            with admin.serving(config, supervisor, shared=attached and not keeps) as served:
                patience_s = READY_TIMEOUT_S + config.storage.wait_ms / 1000.0  # shards may wait for their stores
                described = _await_ready(supervisor, stop, math.inf if keeps else patience_s)
                on_ready(described)
                reloading = Reloading(config, reload, supervisor, served)
                while not stop.wait(DOWN_CHECK_S) and _supervisor(name) is not None:
                    reloading.look()
        except RayError as error:
            raise HarborError(ErrorCode.UNAVAILABLE, f"the cluster did not come up: {_reason(error)}") from error
        finally:
            if own or not (attached or keeps):
                with suppress(RayError):
                    supervisor.stop()
                with suppress(Exception):
                    kill(handle)


def _revision() -> int:
    return int(SystemClock().now_ms())


class Reloading:
    """What the configuration says as the cluster runs, and what of it the supervisor has still to be told."""

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config | None],
        supervisor: SupervisorHandle,
        served: Callable[[Config], None],
    ) -> None:
        self.config = config
        """What counts."""
        self._reload = reload
        self._supervisor = supervisor
        self._served = served
        self._untold: Config | None = None

    def look(self) -> None:
        """Apply what the configuration says now, if it has changed and may."""
        said = None
        try:
            said = self._reload()
        except ConfigError as error:
            _refused(fault.message for fault in getattr(error, "faults", [error]))
        if said is not None and (lines := refusals(self.config, said)):
            _refused(lines)
            said = None
        wanted = self._untold if said is None else said
        # What was not answered may have arrived all the same: then even what counts has to be told again.
        if wanted is None or (wanted == self.config and self._untold is None):
            return
        try:
            self._supervisor.apply(encode(wanted, _revision()))
        except RayError as error:
            # The cluster runs on without its supervisor, which comes back.
            _refused([f"the supervisor does not answer and is told again: {_reason(error)}"])
            self._untold = wanted
            return
        self.config, self._untold = wanted, None
        self._served(wanted)
        sys.stderr.write("harbor: configuration applied\n")


def _refused(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(f"harbor: configuration not applied: {line}\n")


def _check_port(host: str, port: int) -> None:
    """Find out now, not after actors have died of it several times, that a host is none or a port is taken.

    Raises:
        HarborError: it is.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the latter: no name of a host has such a label
        reason = error.strerror if isinstance(error, OSError) else error
        raise HarborError(ErrorCode.UNAVAILABLE, f"gateway.host: {host}:{port} cannot be used: {reason}") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gateways do, which share theirs
        try:
            probe.bind(place)
        except OSError as error:
            raise HarborError(
                ErrorCode.UNAVAILABLE, f"{host}:{port} cannot be used ({error.strerror}): choose another with --port"
            ) from error


def down(address: str | None, name: str | None = None, *, joins: bool = False) -> str | None:
    """Stop a cluster. Returns its name, or None where there is none.

    Args:
        address: Of a Ray that is there; None: the one that this user's `up` has started.
        name: None: of the only cluster there, or of the one that has the default name.
        joins: As in `up`.

    Raises:
        HarborError: no Ray there; several clusters, and none is named; or notes of them may be somebody else's.
    """
    if address is None:
        name = _only(_noted(), "here") if name is None else name
        address = None if name is None else _local_address(name)
    if address is None:
        return None
    with (
        node.joined(address, threading.Event()) if joins else nullcontext(),
        _ray(address, name or ""),  # to look at all namespaces, any will do
    ):
        name = _only(_supervised(), f"at {address}") if name is None else name
        handle = None if name is None else _supervisor(name)
        if handle is None:
            return None
        with suppress(RayError):
            SupervisorHandle(handle).stop()
        kill(handle)
        return name


def _only(names: list[str], where: str) -> str | None:
    """Return the one name there is, or of several the one that clusters have by default; else which is meant is not guessed."""
    if DEFAULT_NAME in names:
        return DEFAULT_NAME
    if len(names) > 1:
        raise HarborError(
            ErrorCode.BAD_REQUEST, f"several clusters are running {where}: {', '.join(names)}; say which with --name"
        )
    return names[0] if names else None


def _supervised() -> list[str]:
    """Return the names of the clusters that have a supervisor on this Ray."""
    return sorted(
        each["namespace"].removeprefix(NAMESPACE)
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["name"] == SUPERVISOR and each["namespace"].startswith(NAMESPACE)
    )


def _supervisor(name: str) -> Any:
    try:
        return ray.get_actor(SUPERVISOR, namespace(name))
    except ValueError:
        return None


def _await_ready(supervisor: SupervisorHandle, stop: threading.Event, patience_s: float) -> dict[str, Any]:
    """Return the description when it is ready. For so long none of what it waits for may have come, before it is given up."""
    deadline = time.monotonic() + patience_s
    told_at = time.monotonic()
    waits_for, fewest = ["the supervisor"], math.inf
    while not stop.is_set():
        with suppress(GetTimeoutError):
            described = supervisor.describe()
            if described["ready"]:
                return described
            waits_for = described["waits_for"]
        now = time.monotonic()
        if len(waits_for) < fewest:
            fewest, deadline = len(waits_for), now + patience_s
        if now > deadline:
            raise HarborError(
                ErrorCode.UNAVAILABLE,
                f"nothing came for {patience_s:.0f} s of what is missing: {', '.join(waits_for)} (is the gateway's port free?)",
            )
        if now - told_at > TELL_S:
            told_at = now
            sys.stderr.write(f"harbor: waiting for {', '.join(waits_for)}\n")
        stop.wait(0.1)
    return {"ready": False, "shards": [], "coordinators": [], "ingestors": [], "gateways": [], "sources": []}


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
