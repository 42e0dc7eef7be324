"""Requests made from the API's description, right and wrong ones, to a real cluster: no failure, and every answer as described."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import requests  # noqa: E402
from schemathesis.checks import CHECKS as ALL_CHECKS  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402

from cluster.gateway.openapi import document  # noqa: E402
from tests.live import LiveCluster  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

EXAMPLES = int(os.environ.get("HARBOR_DESCRIPTION_EXAMPLES", "12"))
"""Requests for each endpoint."""
ENDLESS = ("/v1/stream", "/v1/socket")
"""Where an answer does not end, or is no HTTP."""
ELSEWHERE = ("/v1/scale",)
"""What would have processes made."""
DOCUMENT = {**document(), "paths": {n: p for n, p in document()["paths"].items() if n not in (*ENDLESS, *ELSEWHERE)}}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
load_all_checks()
CHECKS = ALL_CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
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


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method.upper()} {each.path}")
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda each: each.value)
def test_every_answer_is_as_described(cluster: LiveCluster, operation: Any, mode: Any) -> None:
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
            case.call_and_validate(base_url=cluster.url, checks=CHECKS, timeout=60)
        except (UnicodeError, requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            reject()  # the client cannot send that

    ask()
