"""A machine's or a pod's part in a Ray cluster: `ray start`, kept in the foreground, and what is drained before it ends.

Ray ends the actors of a node that is stopped as it would those of one that burns. So on SIGTERM the gateways here send their clients
elsewhere and the shards here close their stores first.
"""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import ray
from ray.exceptions import RayError

from cluster.actors import ray_start
from cluster.actors.handles import NAMESPACE, Peers, Unreachable, connect
from cluster.errors import ErrorCode, HarborError

HEAD_TIMEOUT_S = 300.0
"""How long a node waits for the head to listen; pods start in any order."""
PROBE_S = 0.5
STOP_S = 15.0
"""For Ray's processes to end; then they are killed."""
LEAVE_S = 20.0
"""For shards to be taken over on other nodes; those that are not come back with their stores."""
DRAIN_S = 10.0
"""For calls around a drain, beside the drain itself."""
ENVIRONMENT = {
    # Ray's own drain would wait, up to half a minute, for a raylet that the same signal has ended.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # The head believes that a node is lost when it has refused five looks in a row, each 3 s after the last if nothing is said: until then
    # nothing that was there is made anew. A raylet that is merely slow refuses none: it has 10 s for each.
    "RAY_health_check_period_ms": "1000",
}
"""Of Ray's processes, where it does not say otherwise."""


def _option(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of a command line's option."""
    for at, argument in enumerate(arguments):
        if argument == name and at + 1 < len(arguments):
            return arguments[at + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def host_and_port(address: str) -> tuple[str, int] | None:
    """Read HOST:PORT, where IPv6 addresses have brackets; None: it is something else (`auto`, `ray://...`)."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def _await_head(address: str, stop: threading.Event) -> None:
    place = host_and_port(address)
    if place is None:
        raise HarborError(ErrorCode.BAD_REQUEST, f"--address: expected HOST:PORT, got {address!r}")
    deadline = time.monotonic() + HEAD_TIMEOUT_S
    while not stop.is_set():
        try:
            socket.create_connection(place, PROBE_S).close()
        except UnicodeError as error:  # no name of a host has such a label
            raise HarborError(ErrorCode.BAD_REQUEST, f"--address: expected HOST:PORT, got {address!r}") from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise HarborError(
                    ErrorCode.UNAVAILABLE, f"no Ray head at {address} after {HEAD_TIMEOUT_S:.0f} s: {error}"
                ) from error
            stop.wait(PROBE_S)
        else:
            return


class RayNode:
    """The processes of `ray start ARGUMENTS --block`, in a session of their own: signals are ours to pass on."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.name = _option(arguments, "--node-name") or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        named = [] if _option(arguments, "--node-name") else [f"--node-name={self.name}"]
        command = [sys.executable, "-P", "-m", ray_start.__name__, "start", *arguments, *named, "--block"]
        environment = {**ENVIRONMENT, **os.environ}
        self._process = subprocess.Popen(command, start_new_session=True, env=environment)  # noqa: S603 - what the operator gave

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, or None where it runs on."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def stop(self) -> None:
        """End them."""
        # All of them, not only the first: a raylet that is told to end says so to the head, one that is killed is missed a minute later.
        deadline = time.monotonic() + STOP_S
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                self.wait(PROBE_S)
                self._reap()
                os.killpg(self._process.pid, 0)
                time.sleep(0.05)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _reap(self) -> None:
        """Take leave of what Ray's processes left: in a container this is process 1, to which orphans fall, and until then they count."""
        with suppress(ChildProcessError):
            while os.waitpid(-self._process.pid, os.WNOHANG)[0]:
                pass


@contextmanager
def joined(address: str, stop: threading.Event) -> Iterator[None]:
    """Make this machine a node without CPUs meanwhile: a driver needs one beside it, and no actor is to run there.

    Raises:
        HarborError: no Ray there.
    """
    _await_head(address, stop)
    node = RayNode([f"--address={address}", "--num-cpus=0", "--object-store-memory=80000000"])
    try:
        yield
    finally:
        node.stop()


def run(arguments: Sequence[str], grace_s: float, stop: threading.Event) -> int:
    """Be a node until `stop` is set or Ray ends; then drain what is here. Returns the exit code.

    Args:
        arguments: Of `ray start`.
        grace_s: How long clients may take to be sent elsewhere.
        stop: Set by a signal.

    Raises:
        HarborError: the head cannot be reached.
    """
    address = _option(arguments, "--address")
    if address is not None:
        _await_head(address, stop)
    if stop.is_set():
        return 0
    node = RayNode(arguments)
    try:
        while not stop.wait(PROBE_S):
            code = node.wait(0.0)
            if code is not None:
                return code or 1  # it was not asked to end
        _drain(address, _option(arguments, "--port"), node.name, grace_s)
    finally:
        node.stop()
    return 0


def _drain(address: str | None, port: str | None, name: str, grace_s: float) -> None:
    try:
        connect(address=address or f"127.0.0.1:{port or 6379}")
    except (ConnectionError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"harbor: not drained, Ray does not answer: {error}\n")
        return
    try:
        asyncio.run(_drain_actors(name, grace_s))
    except RayError as error:
        sys.stderr.write(f"harbor: not drained: {type(error).__name__}\n")
    finally:
        ray.shutdown()


async def _drain_actors(name: str, grace_s: float) -> None:
    """Have shards leave, drain gateways, then close the stores that are here still: clients are sent on while their shards answer."""
    node = next((each["NodeID"] for each in ray.nodes() if each["NodeName"] == name), None)  # type: ignore[no-untyped-call]
    actors = [
        each for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"].startswith(NAMESPACE)
    ]
    peers = {each["namespace"]: Peers(each["namespace"].removeprefix(NAMESPACE)) for each in actors}

    async def is_here(actor: dict[str, str]) -> bool:
        with suppress(Unreachable):
            status = await peers[actor["namespace"]].status(actor["name"])
            return bool(status["node"] == node)
        return False

    await asyncio.gather(*(each.drain(node or "", LEAVE_S) for each in peers.values()))
    for kind in ("gateway", "shard"):
        of_kind = [each for each in actors if each["name"].startswith(f"{kind}-")]
        here = [each for each, yes in zip(of_kind, await asyncio.gather(*map(is_here, of_kind)), strict=True) if yes]
        leave = [peers[each["namespace"]].leave(each["name"], grace_s, grace_s + DRAIN_S) for each in here]
        await asyncio.gather(*leave)
        if here:
            sys.stderr.write(f"harbor: drained {', '.join(each['name'] for each in here)}\n")
