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

from cluster.cli.printable import printable
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


def configuration_here() -> Path | None:
    """Return the configuration that commands take where none is named, if there is one."""
    path = Path("harbor.yaml")
    return path if path.exists() else None


def run(
    config_path: Path | None,
    *,
    address: str | None,
    port: int | None,
    demo: bool,
    app: str | None = None,
    joins: bool = False,
    keeps: bool = False,
) -> None:
    """Bring the cluster up and wait for Ctrl-C."""
    prepare_ray(address)
    if app is not None:
        # What runs the app's functions are the workers of a local Ray, which find its module where we do.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    elif config_path is None and not demo:
        config_path = configuration_here()
    demo = demo or (config_path is None and app is None)
    path = config_path or (DEMO_CONFIG if demo else None)
    stop = threading.Event()
    _stop_on_signals(stop)
    with _sample_upstream(demo, address) as upstream:
        environment = (
            {"UPSTREAM_URL": upstream, "UPSTREAM_WS": upstream.replace("http", "ws", 1) + "/ws"} if upstream else {}
        )
        given = Given(path, app, {**os.environ, **environment}, port, demo_page=demo)
        config = given.first()
        from cluster.actors import deploy

        deploy.up(
            config,
            address=address,
            upstream=upstream,
            joins=joins,
            keeps=keeps,
            on_ready=_announce,
            reload=given.changed,
            stop=stop,
        )


class Given:
    """What a file and an app say together; the file is read again when it changes."""

    def __init__(
        self,
        path: Path | None,
        app: str | None,
        environment: dict[str, str],
        port: int | None,
        *,
        demo_page: bool = False,
    ) -> None:
        self._path = path
        self._app = app
        self._environment = environment
        self._port = port
        self._demo_page = demo_page
        self._content: bytes | None = None
        self._files: list[Path] = [] if path is None else [path]

    def first(self) -> Config:
        """Return it; a fault ends the command.

        Raises:
            typer.Exit: it is faulty; what is wrong was said.
        """
        try:
            self._load()  # which tells the app's file
            self._content = self._read()
            return self._load()
        except ConfigError as error:
            name = ", ".join(str(each) for each in (self._app, self._path) if each is not None)
            for fault in getattr(error, "faults", [error]):
                sys.stderr.write(f"{name}: {printable(fault.message)}\n")
            raise typer.Exit(2) from None

    def changed(self) -> Config | None:
        """Return it if the file has changed.

        Raises:
            ConfigError: it is faulty.
        """
        content = self._read()
        if content is None or content == self._content:
            return None
        self._content = content
        return self._load()

    def _read(self) -> bytes | None:
        try:
            return b"".join(path.read_bytes() for path in self._files)
        except OSError:
            return None

    def _load(self) -> Config:
        if self._app is None:
            assert self._path is not None
            config = load(self._path, self._environment)
        else:
            from cluster.app import load_app

            documents = [] if self._path is None else [read_document(self._path)]
            made = load_app(self._app)
            self._files = [path for path in (self._path, made.file) if path is not None]
            config = made.config(self._environment, *documents)
        port = config.gateway.port if self._port is None else self._port
        gateway = msgspec.structs.replace(config.gateway, port=port, demo_page=self._demo_page)
        return msgspec.structs.replace(config, gateway=gateway)


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
