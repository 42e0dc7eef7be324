"""The API's description is of the API that is served."""

import re

from cluster.gateway.openapi import document
from tests.gateway.conftest import Harness

UNDESCRIBED = {("GET", "/")}
"""The page for people."""


async def test_it_describes_the_servers_routes_and_no_others(harness: Harness) -> None:
    described = {(method.upper(), path) for path, operations in document()["paths"].items() for method in operations}
    assert described == set(harness.server._routes) - UNDESCRIBED


def test_its_references_lead_somewhere() -> None:
    schemas = document()["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/(\w+)", str(document())):
        assert name in schemas
