"""`harbor up`: configuration, sample upstream, signals; the cluster itself is `cluster.actors.deploy`."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import typer

from cluster.config import Config, load, read_document
from cluster.errors import ConfigError, ErrorCode, HarborError

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "harbor.yaml"
DEMO_NAME = "harbor"
UPSTREAM_TIMEOUT_S = 20.0


def prepare_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported.

    It is kept from talking to our user, and from telling anybody about them. A local Ray takes only callers that bear the user's token
    (in `~/.ray`, made by Ray); those who attach to it must say so before their first call. How a Ray that is already there is guarded, the
    environment says.
    """
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def run(config_path: Path | None, *, address: str | None, port: int | None, demo: bool, app: str | None = None) -> None:
    """Bring the cluster up and wait for Ctrl-C."""
    prepare_ray(address)
    if app is not None:
        # What runs the app's functions are the workers of a local Ray, which find its module where we do.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    elif config_path is None and not demo and Path("harbor.yaml").exists():
        config_path = Path("harbor.yaml")
    demo = demo or (config_path is None and app is None)
    path = config_path or (DEMO_CONFIG if demo else None)
    stop = threading.Event()
    _stop_on_signals(stop)
    with _sample_upstream(demo, address) as upstream:
        environment = (
            {"UPSTREAM_URL": upstream, "UPSTREAM_WS": upstream.replace("http", "ws", 1) + "/ws"} if upstream else {}
        )
        config = _load(path, app, {**os.environ, **environment})
        if port is not None:
            config = msgspec.structs.replace(config, gateway=msgspec.structs.replace(config.gateway, port=port))
        from cluster.actors import deploy

        deploy.up(config, address=address, upstream=upstream, on_ready=_announce, stop=stop)


def _load(path: Path | None, app: str | None, environment: dict[str, str]) -> Config:
    """Read what a file and an app say together."""
    try:
        if app is None:
            assert path is not None
            return load(path, environment)
        from cluster.app import load_app

        return load_app(app).config(environment, *([] if path is None else [read_document(path)]))
    except ConfigError as error:
        name = path if app is None else app if path is None else f"{app}, {path}"
        for fault in getattr(error, "faults", [error]):
            sys.stderr.write(f"{name}: {fault.message}\n")
        raise typer.Exit(2) from None


def _stop_on_signals(stop: threading.Event) -> None:
    def on_signal(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        sys.stderr.write("harbor: stopping (again to force)\n" if number == signal.SIGINT else "")
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)


def _announce(described: dict[str, Any]) -> None:
    if not described["ready"]:
        return
    counts = ", ".join(
        f"{len(described[kind])} {kind if len(described[kind]) != 1 else kind[:-1]}"
        for kind in ("shards", "coordinators", "ingestors", "gateways")
    )
    sys.stdout.write(f"harbor ready: {described['gateways'][0]['address']} ({counts})\n")
    sys.stdout.flush()


@contextmanager
def _sample_upstream(wanted: bool, address: str | None) -> Iterator[str | None]:
    """Run the sample upstream beside the cluster, unless the demo that runs here has one. Yields its URL."""
    if not wanted:
        yield None
        return
    from cluster.actors import deploy

    running = deploy.running(DEMO_NAME) if address is None else None
    if running is not None and running["upstream"]:
        yield str(running["upstream"])
        return
    # A session of its own: Ctrl-C in the terminal is ours to pass on, after the cluster has drained.
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.demo.upstream", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(UPSTREAM_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        watchdog.cancel()
        if not line.startswith("upstream ready: "):
            raise HarborError(ErrorCode.UNAVAILABLE, "the sample upstream did not start")
        yield line.removeprefix("upstream ready: ")
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
