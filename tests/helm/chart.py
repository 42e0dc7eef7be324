"""The chart, rendered by Helm's own library."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "helm"
CI = sorted((CHART / "ci").glob("*-values.yaml"))
Document = dict[str, Any]


def values(path: Path) -> dict[str, Any]:
    """Values as Helm reads them."""
    return helm_python.values_from_yaml(path.read_text())


def text(given: dict[str, Any], name: str = "harbor") -> dict[str, str]:
    """Every template rendered."""
    with helm_python.Chart.load(CHART) as chart:
        return {
            path.removeprefix("harbor-cluster/templates/"): rendered
            for path, rendered in chart.render(given, name=name, namespace="live").items()
        }


def documents(given: dict[str, Any], name: str = "harbor") -> list[Document]:
    return [
        document
        for path, rendered in text(given, name).items()
        if not path.endswith(".txt")
        for document in yaml.safe_load_all(rendered)
        if document
    ]


@cache
def rendered(ci: str) -> list[Document]:
    return documents(values(CHART / "ci" / f"{ci}-values.yaml"))


def pods(of: list[Document]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, metadata, spec) of every pod that comes of documents."""
    for document in of:
        name = f"{document['kind']}/{document['metadata']['name']}"
        spec = document.get("spec", {})
        match document["kind"]:
            case "Pod":
                yield name, document["metadata"], spec
            case "StatefulSet" | "Deployment" | "Job":
                yield name, spec["template"].get("metadata", {}), spec["template"]["spec"]
            case "RayCluster":
                for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                    template = group["template"]
                    yield f"{name}/{group.get('groupName', 'head')}", template["metadata"], template["spec"]
            case _:
                pass


def of_kind(of: list[Document], kind: str) -> list[Document]:
    return [document for document in of if document["kind"] == kind]
