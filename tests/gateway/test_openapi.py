"""The API's description is of the API that is served."""

import re

from cluster.gateway.openapi import document
from cluster.gateway.pages import Pages
from tests.gateway.conftest import Harness


async def test_it_describes_the_servers_routes_and_no_others(harness: Harness) -> None:
    pages = {"/"} | Pages().paths
    described = {(method.upper(), path) for path, operations in document()["paths"].items() for method in operations}
    assert described == set(harness.server._routes) - {("GET", path) for path in pages}


def test_its_references_lead_somewhere() -> None:
    schemas = document()["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/(\w+)", str(document())):
        assert name in schemas


def test_what_may_be_repeated_is_a_list() -> None:
    parameters = document()["paths"]["/v1/stream"]["get"]["parameters"]
    lists = [each["name"] for each in parameters if each["schema"] == {"type": "array", "items": {"type": "string"}}]
    assert lists == ["key", "prefix"]
