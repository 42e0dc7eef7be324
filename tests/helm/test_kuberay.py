"""What the chart has to know of the KubeRay operator and of Ray's autoscaler beside it."""

from typing import Any

import click
import pytest
import yaml
from ray.scripts import scripts

from tests.helm.chart import documents, of_kind, pods, rendered

BASE: dict[str, Any] = {"mode": "kuberay", "auth": {"existingSecret": "k"}, "ray": {"auth": {"existingSecret": "r"}}}
PORT = "6380"


def cluster(**more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(documents({**BASE, **more}), "RayCluster")[0]["spec"]
    return spec


def head_args(of: list[dict[str, Any]]) -> list[str]:
    return next(spec["containers"][0]["args"] for name, _, spec in pods(of) if name.endswith("head"))


def test_the_autoscaler_finds_the_head_and_has_its_token() -> None:
    options = of_kind(rendered("kuberay"), "RayCluster")[0]["spec"]["autoscalerOptions"]
    command = scripts.cli.commands[options["args"][0]]
    assert options["command"] == ["ray"]
    given = command.make_context("ray", list(options["args"][1:])).params  # it is a command that Ray has
    assert given == {"cluster_name": "harbor", "cluster_namespace": "live", "gcs_address": f"$(POD_IP):{PORT}"}
    environment = {each["name"]: each for each in options["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "harbor-ray", "key": "token"}
    assert environment["POD_IP"]["valueFrom"]["fieldRef"] == {"fieldPath": "status.podIP"}


def test_the_autoscaler_is_as_restricted_as_the_rest() -> None:
    found = of_kind(rendered("kuberay"), "RayCluster")[0]["spec"]
    options, head = found["autoscalerOptions"], found["headGroupSpec"]["template"]["spec"]
    assert options["securityContext"] == head["containers"][0]["securityContext"]
    assert options["resources"]["requests"]
    assert "memory" in options["resources"]["limits"]
    assert {each["name"] for each in options["volumeMounts"]} <= {each["name"] for each in head["volumes"]}


@pytest.mark.parametrize("scales", [True, False])
def test_only_one_autoscaler_watches_the_cluster(scales: bool) -> None:
    args = head_args(documents({**BASE, "autoscaling": {"enabled": scales}}))
    assert ("--no-monitor" in args) is scales
    assert isinstance(scripts.cli.commands["start"], click.Command)
    scripts.cli.commands["start"].make_context("ray", args[args.index("--") + 1 :])  # options that Ray has


@pytest.mark.parametrize("mode", ["static", "kuberay"])
def test_the_head_has_the_password_of_its_redis(mode: str) -> None:
    redis = {"address": "redis:6379", "existingSecret": "redis"}
    found = documents({**BASE, "mode": mode, "ray": {"auth": {"existingSecret": "r"}, "redis": redis}})
    assert "--redis-password=$(REDIS_PASSWORD)" in head_args(found)
    _, _, head = next(each for each in pods(found) if each[0].endswith("head"))
    names = {each["name"] for each in head["containers"][0]["env"]}
    assert ("REDIS_PASSWORD" in names) is (mode == "static")  # else the operator sets it, and refuses who does too


def test_releases_of_one_name_do_not_share_what_redis_keeps() -> None:
    found = cluster(ray={"auth": {"existingSecret": "r"}, "redis": {"address": "redis:6379"}})
    assert found["gcsFaultToleranceOptions"]["externalStorageNamespace"] == "live-harbor"


def test_a_budget_is_one_that_kubernetes_keeps_for_pods_of_a_custom_resource() -> None:
    def budgets(**more: Any) -> dict[str, Any]:
        found = of_kind(documents({**BASE, **more}), "PodDisruptionBudget")
        return {each["metadata"]["name"]: {**each["spec"], "selector": None} for each in found}

    assert budgets(workers={"replicas": 3})["harbor-worker"] == {"selector": None, "minAvailable": 2}
    scaled = budgets(autoscaling={"enabled": True}, workers={"replicas": 3, "minReplicas": 1})
    assert scaled["harbor-worker"]["minAvailable"] == 0
    assert scaled["harbor-gateway"]["minAvailable"] == 1
    assert budgets(mode="static")["harbor-worker"] == {"selector": None, "maxUnavailable": 1}


def test_gateways_by_sessions_have_one_pair_of_bounds() -> None:
    """Ray launches nothing for a request it can only meet in part, so the cluster may not want more than the group may have."""
    given = {"autoscaling": {"enabled": True}, "gateways": {"replicas": 9, "autoscaling": {"enabled": True, "max": 5}}}
    found = documents({**BASE, **given})
    group = next(each for each in cluster(**given)["workerGroupSpecs"] if each["groupName"] == "gateway")
    assert {name: group[name] for name in group if "eplicas" in name} == {
        "replicas": 5,
        "minReplicas": 2,
        "maxReplicas": 5,
    }
    maps = [each["data"]["harbor.yaml"] for each in of_kind(found, "ConfigMap") if "harbor.yaml" in each["data"]]
    gateways = {"min": 2, "max": 5, "sessions": 5000, "cool_down": "5m"}
    assert [yaml.safe_load(each)["cluster"]["gateways"] for each in maps] == [gateways]
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(found, "PodDisruptionBudget")}
    assert budgets["harbor-gateway"]["minAvailable"] == 1


def test_the_head_reaches_redis_and_where_it_scales_kubernetes() -> None:
    def egress(**more: Any) -> list[Any]:
        found = of_kind(documents({**BASE, **more}), "NetworkPolicy")
        of_head = [each["spec"] for each in found if each["metadata"]["name"] == "harbor-head"]
        return [port["port"] for spec in of_head for rule in spec["egress"] for port in rule["ports"]]

    redis = {"auth": {"existingSecret": "r"}, "redis": {"address": "redis:6390"}}
    assert egress() == []
    assert egress(autoscaling={"enabled": True}) == [443, 6443]
    assert egress(autoscaling={"enabled": True}, mode="static") == []
    assert egress(mode="static", ray=redis) == [6390]
    assert egress(autoscaling={"enabled": True}, ray=redis) == [6390, 443, 6443]
