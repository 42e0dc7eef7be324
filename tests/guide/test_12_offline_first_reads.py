"""Pattern 12: what was fetched outlives a restart of the whole cluster, and is served while the upstream cannot be reached."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live import LiveCluster, eventually, text

pytestmark = pytest.mark.cluster
KEPT, SHORT, FORGOTTEN = ["projects", "detail", "7"], ["tasks", "7"], ["users"]
FOR_LONG_MS = 600_000


@pytest.fixture
def cluster(local_ray: None, upstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    document = {
        "storage": {"path": str(tmp_path_factory.mktemp("store"))},
        "services": {"api": {"base_url": upstream.url}},
        "defaults": {"stale_time": "0s", "gc_time": "8s", "retry": 1},
        "queries": [
            {"key": ["projects", "detail", "{id}"], "service": "api", "path": "/projects/{id}"},
            {
                "key": ["tasks", "{project}"],
                "service": "api",
                "path": "/tasks",
                "params": {"projectId": "{project}"},
                "offline_time": "1s",
            },
            {"key": ["users"], "service": "api", "path": "/users", "persist": False},
        ],
    }
    live = LiveCluster(document).start()
    yield live
    upstream.do(lambda up: up.outage(0))
    live.stop()


def keys(cluster: LiveCluster) -> list[list[Any]]:
    return [row["key"] for row in httpx.get(f"{cluster.url}/v1/keys", timeout=60).raise_for_status().json()["keys"]]


def test_a_restart_without_the_upstream_serves_the_last_data(cluster: LiveCluster, upstream: Any) -> None:
    before = {text(*key): cluster.get(*key).raise_for_status().json() for key in (KEPT, SHORT, FORGOTTEN)}
    assert not any(entry["is_offline"] for entry in before.values())
    cluster.stop()
    upstream.do(lambda up: up.outage(FOR_LONG_MS))
    cluster.start()
    assert FORGOTTEN not in keys(cluster), "it was not to be stored"
    assert cluster.get(*FORGOTTEN).status_code in (502, 503)

    entry = cluster.get(*KEPT).raise_for_status().json()
    assert entry["data"] == before[text(*KEPT)]["data"]
    assert entry["data_updated_at"] == before[text(*KEPT)]["data_updated_at"]
    assert (entry["is_stale"], entry["is_offline"]) == (True, True)

    # Both are over their gc time; the one with an offline time goes after that, the other stays.
    eventually(lambda: SHORT not in keys(cluster), "its offline time is over")
    assert KEPT in keys(cluster)
    assert cluster.get(*KEPT, fetch="never").raise_for_status().json()["data"] == entry["data"]

    upstream.do(lambda up: up.outage(0))
    assert KEPT in keys(cluster)
    eventually(lambda: KEPT not in keys(cluster), "its gc time has begun anew, and is over")
    fetched = cluster.get(*KEPT).raise_for_status().json()
    assert fetched["data_updated_at"] > entry["data_updated_at"]
    assert (fetched["data"], fetched["is_offline"]) == (entry["data"], False)
