"""Runs against a real cluster: it holds under faults, and what a broken proxy does to the contract is found."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from cluster.errors import HarborError
from cluster.verify.contract_oracle import Rule
from cluster.verify.plan import FAULTS, Settings
from cluster.verify.run import Run
from tests.e2e.test_mutations import Service
from tests.lasting import lasting
from tests.live import LiveCluster, eventually
from tests.verify.broken_proxy import Break, BrokenProxy, double, drop, falsify, reorder, rewind

pytestmark = pytest.mark.cluster
PREFIX = '["harbor-verify"]'
SHORT = Settings(seconds=8, faults=(), rate=150, clients=4, keys=8, seed=5)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def cluster(local_ray: None, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    store = tmp_path_factory.mktemp("store")
    live = LiveCluster(
        {
            "cluster": {"gateways": 2},
            "storage": {"path": str(store)},
            "services": {"api": {"base_url": service.url}},
            "mutations": {
                "note": {"request": {"service": "api", "method": "POST", "path": "/", "body": "{variables}"}}
            },
        }
    ).start()
    yield live
    live.stop()


def left(cluster: LiveCluster) -> list[Any]:
    return list(httpx.get(f"{cluster.url}/v1/keys", params={"prefix": PREFIX}, timeout=30).json()["keys"])


@pytest.mark.soak
async def test_it_holds_under_every_fault(cluster: LiveCluster, service: Service) -> None:
    settings = Settings(
        seconds=lasting(14.0, 300.0), faults=FAULTS, rate=100, seed=11, mutation="note", variables={"a": 1}
    )
    report = await Run(cluster.url, None, settings).run()
    assert report.violation is None, report.violation
    assert report.is_whole
    assert {name.split()[0] for name in report.faults} == set(FAULTS), report.notes
    counts = report.counts
    assert counts["acknowledged writes"] > 100
    assert (
        min(counts[each] for each in ("repeated requests", "conflicts", "values compared", "resumed with a token")) > 0
    )
    assert counts["settled mutations"] > 1
    asked = {key for key, _ in service.asked}
    assert counts["settled mutations"] <= len(asked) <= counts["mutations"] + 1, "one has one idempotency key"
    assert report.ages["count"] > 100
    assert await asyncio.to_thread(left, cluster) == []


@pytest.mark.parametrize(
    ("breaks", "rules"),
    [
        (drop, {Rule.GAP}),
        (double, {Rule.DUPLICATE}),
        (reorder, {Rule.GAP}),
        (falsify, {Rule.VALUE}),
        (rewind, {Rule.LOST_WRITE}),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_a_broken_proxy_is_found_out(cluster: LiveCluster, breaks: Break, rules: set[Rule]) -> None:
    async with BrokenProxy(cluster.url, breaks) as proxy:
        report = await Run(proxy.url, None, SHORT).run()
    assert report.violation is not None
    assert not report.is_whole
    assert report.violation.rule in {rule.name.lower() for rule in rules}, report.violation
    assert bool(report.violation.recent) == bool(report.violation.client), (
        "a write's own answer may be what another differs from"
    )
    assert report.violation.seed == SHORT.seed
    assert await asyncio.to_thread(left, cluster) == []


async def test_a_write_that_is_acknowledged_and_lost_is_found_out(cluster: LiveCluster) -> None:
    async with BrokenProxy(cluster.url, loses_writes=True) as proxy:
        report = await Run(proxy.url, None, SHORT).run()
    assert report.violation is not None
    assert report.violation.rule == "lost_write", report.violation
    assert '"own",0]' in report.violation.key


async def test_the_users_own_limits_are_violations_too(cluster: LiveCluster) -> None:
    def hush(_: Any, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [each for each in messages if each["type"] != "change"] if hushed else messages

    hushed: list[bool] = []
    settings = Settings(seconds=20, faults=(), rate=50, clients=1, keys=4, max_silence_s=1.0)
    async with BrokenProxy(cluster.url, hush) as proxy:
        run = Run(proxy.url, None, settings)
        asyncio.get_running_loop().call_later(1.0, hushed.append, True)
        report = await run.run()
    assert report.violation is not None
    assert report.violation.rule == "silence", report.violation
    aged = await Run(cluster.url, None, Settings(seconds=4, faults=(), clients=1, keys=4, max_age_p99_ms=1.0)).run()
    assert aged.violation is not None
    assert aged.violation.rule == "age"


async def test_it_can_be_ended_early(cluster: LiveCluster) -> None:
    run = Run(cluster.url, None, Settings(seconds=600, clients=2, keys=4))
    asyncio.get_running_loop().call_later(1.5, run.stop.set)
    report = await run.run()
    assert (report.violation, report.is_whole) == (None, False)
    assert await asyncio.to_thread(left, cluster) == []


async def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(HarborError, match=r"no cluster answers at http://127\.0\.0\.1:9"):
        await Run("http://127.0.0.1:9", None, SHORT).run()


def verify(cluster: LiveCluster, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "verify", "--url", cluster.url, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HARBOR_TOKEN": ""},
    )


def test_the_command_ends_cleanly_when_interrupted(cluster: LiveCluster) -> None:
    with verify(cluster, "--seconds", "600", "--clients", "2", "--json") as command:
        eventually(lambda: left(cluster))
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (130, "")
    report = orjson.loads(out)
    assert (report["violation"], report["is_whole"]) == (None, False)
    assert left(cluster) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--faults", "flood"], "--faults: there is no 'flood', expected some of flap, slow, pause, kill"),
        (["--rate", "0"], "--rate: expected 1 to 5000, got 0"),
        (["--max-silence", "-1"], "--max-silence: expected 0.1 to 3600, got -1"),
        (["--variables", "[]"], "--variables: expected a JSON object, got '[]'"),
        (["--mutation", "nothing"], "nothing cannot be begun: "),
        (["--prefix", "[]"], "--prefix: expected a key of its own, got []"),
    ],
)
def test_bad_limits_are_said(cluster: LiveCluster, options: list[str], says: str) -> None:
    with verify(cluster, *options) as command:
        _, err = command.communicate(timeout=60)
    assert command.returncode == (1 if "--mutation" in options else 2)
    assert says in err
    assert err.count("\n") == 1


def test_a_report_has_its_figures(cluster: LiveCluster) -> None:
    with verify(cluster, "--seconds", "2", "--faults", "", "--clients", "2", "--seed", "7") as command:
        out, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (0, "")
    assert "delivery contract: held; " in out
    assert "seed 7" in out
    assert "longest silence after load alone: " in out
