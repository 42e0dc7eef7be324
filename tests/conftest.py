"""Fixtures of all tests."""

import asyncio
import gc
import logging
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import uvloop
from hypothesis import settings

from cluster.demo.tracker import Emission
from cluster.demo.upstream import Upstream

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Any]:
    """Run asynchronous tests on the loop that the actors run on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray and grpc leave sockets to the garbage collector."""
    for item in items:
        if item.get_closest_marker("cluster") is not None:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


class Unretrieved(logging.Handler):
    """Keeps what asyncio says of exceptions that nobody asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "never retrieved" in record.getMessage():
            self.said.append(self.format(record))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_to_the_collector() -> Iterator[None]:
    """Once a module: what only a collection brings to light counts as its last test's."""
    unretrieved = Unretrieved()
    logger = logging.getLogger("asyncio")
    logger.addHandler(unretrieved)
    yield
    gc.collect()
    logger.removeHandler(unretrieved)
    assert unretrieved.said == []


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of the session."""
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=2**27,
    )
    yield
    ray.shutdown()


class ServedUpstream:
    """The sample upstream on a thread of its own, driven from a test."""

    def __init__(self, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.upstream = Upstream(**options)
        self.url = self.run(self.upstream.start())
        self.ws_url = self.upstream.ws_url

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def do(self, act: Any) -> Any:
        """Call something on the upstream's loop."""

        async def on_loop() -> Any:
            return act(self.upstream)

        return self.run(on_loop())

    def say(self, channel: str, event: str, *data: Any) -> None:
        """Send events at once, in order."""
        self.do(lambda up: up.emit([Emission(channel, event, each) for each in data]))

    def stop(self) -> None:
        self.run(self.upstream.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ServedUpstream]:
    """The sample upstream, silent but for what a test makes it say."""
    served = ServedUpstream(seed=7, rate=0)
    yield served
    served.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by nobody else."""
    made, key = (tmp_path_factory.mktemp("tls") / name for name in ("certificate.pem", "key.pem"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=harbor test"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


@pytest.fixture
def tls_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """Of a server that has it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context
