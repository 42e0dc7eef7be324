import re
from pathlib import Path

from cluster.gateway import server
from cluster.gateway.openapi import document


def test_it_describes_every_route() -> None:
    source = Path(server.__file__).read_text()
    routes = set(re.findall(r'\("([A-Z]+)", "(/[^"]*)"\): self\.', source))
    assert len(routes) == 14
    paths = document()["paths"]
    for method, path in routes - {("GET", "/")}:
        assert method.lower() in paths.get(path, {}), f"{method} {path} is not described"


def test_its_references_lead_somewhere() -> None:
    schemas = document()["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/(\w+)", str(document())):
        assert name in schemas
