"""What the chart owes a Ray that is not its own."""

from typing import Any

from tests.helm.chart import documents, of_kind, pods, rendered

BASE: dict[str, Any] = {"auth": {"existingSecret": "k"}, "ray": {"auth": {"existingSecret": "r"}}}


def test_what_stops_the_cluster_needs_nothing_that_goes_before_it():
    found = rendered("external")
    job = of_kind(found, "Job")[0]
    # A controller that is there still would start the cluster again.
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"
    _, _, spec = next(pods([job]))
    assert "serviceAccountName" not in spec
    assert not {volume.get("configMap", {}).get("name") for volume in spec["volumes"]} - {None}


def test_a_ray_of_others_reaches_the_nodes_that_join_it():
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ray"}}}]

    def rules(**more: Any) -> tuple[list[Any], list[Any]]:
        spec = of_kind(documents({**BASE, **more}), "NetworkPolicy")[0]["spec"]
        return spec["ingress"], spec["egress"]

    outside = {"mode": "external", "external": {"address": "ray-head.ray:6379"}}
    assert [{} in each for each in rules()] == [False, False]
    assert [{} in each for each in rules(**outside)] == [True, True]
    ingress, egress = rules(**outside, networkPolicy={"ray": peers})
    assert ({"from": peers} in ingress, {"to": peers} in egress) == (True, True)
    assert {} not in (*ingress, *egress)
