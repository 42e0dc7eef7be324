"""Requests made from the API's description, right and wrong ones, to a real cluster: no failure, and every answer as described."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import requests  # noqa: E402
from schemathesis.checks import CHECKS as ALL_CHECKS  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402

from cluster.gateway.openapi import document  # noqa: E402
from tests.lasting import lasting  # noqa: E402
from tests.live import LiveCluster  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

EXAMPLES = lasting(12, 400)
"""Requests for each endpoint."""
ENDLESS = ("/v1/stream", "/v1/socket")
"""Where an answer does not end, or is no HTTP."""
ELSEWHERE = ("/v1/scale",)
"""What would have processes made."""
DOCUMENT = {**document(), "paths": {n: p for n, p in document()["paths"].items() if n not in (*ENDLESS, *ELSEWHERE)}}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
load_all_checks()
CHECKS = ALL_CHECKS.get_by_names(["status_code_conformance", "content_type_conformance", "response_schema_conformance"])
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 1},
            "services": {"api": {"base_url": "http://127.0.0.1:9", "timeout": "1s"}},
            "mutations": {"save": {"request": {"service": "api", "method": "PUT", "path": "/x"}}},
            "presence": {"doc:{id}": {"heartbeat": "30s", "timeout": "75s"}},
        }
    ).start()
    yield live
    live.stop()


CASES = [
    (mode, each)
    for each in OPERATIONS
    for mode in schemathesis.GenerationMode
    # What takes nothing, or any text as its path, cannot be asked wrongly.
    if mode is schemathesis.GenerationMode.POSITIVE or each.query or each.body
]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("mode", "operation"), CASES, ids=[f"{mode.value} {each.method.upper()} {each.path}" for mode, each in CASES]
)
def test_every_answer_is_as_described(cluster: LiveCluster, mode: Any, operation: Any) -> None:
    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    def ask(case: Any) -> None:
        try:
            response = case.call_and_validate(base_url=cluster.url, checks=CHECKS, timeout=60)
        except (UnicodeError, requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            reject()  # the client cannot send that
        assert response.status_code < 500 or response.status_code == 501, "only what this cluster has not may fail so"

    ask()
