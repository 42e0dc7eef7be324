"""The chart as far as a machine without Kubernetes can tell: schemas, and what the objects mean to each other."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster import __version__
from cluster.config import compile_config, load_mapping
from cluster.config.load import ConfigFaults
from cluster.core.gateway_scaling import GatewayScale
from cluster.core.grants import Grants, line
from cluster.observability.metrics import NAMES as METRICS
from helm import generate
from tests.helm.chart import CHART, CI, ROOT, documents, of_kind, pods, rendered, text, values

VERSIONS = ("1.28", "1.31", "1.34", "1.37")
NAMES = [path.name.removesuffix("-values.yaml") for path in CI]
CRDS = ROOT.parent / "shared" / "crds"
TAKEN = {8080, 8265, 6379, 10001, 52365, 8000}
"""By Ray and KubeRay."""
BASE: dict[str, Any] = {"auth": {"existingSecret": "k"}, "ray": {"auth": {"existingSecret": "r"}}}
SCALED: dict[str, Any] = {"mode": "kuberay", "autoscaling": {"enabled": True}}
HTTP_ROUTE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["parentRefs", "rules"],
    "properties": {
        "parentRefs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "integer"},
                    **{each: {"type": "string"} for each in ("name", "namespace", "sectionName")},
                },
            },
        },
        "hostnames": {"type": "array", "items": {"type": "string"}},
        "rules": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "matches": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "path": {
                                    "type": "object",
                                    "required": ["type", "value"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "type": {"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                                        "value": {"type": "string"},
                                    },
                                }
                            },
                        },
                    },
                    "timeouts": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"request": {"type": "string"}},
                    },
                    "backendRefs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name", "port"],
                            "additionalProperties": False,
                            "properties": {"name": {"type": "string"}, "port": {"type": "integer"}},
                        },
                    },
                },
            },
        },
    },
}
"""What of gateway.networking.k8s.io/v1 the chart uses."""


FOREIGN = ("ray.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
"""Groups of resources that operators bring; any other has to be known to Kubernetes."""


def group(document: dict[str, Any]) -> str:
    return str(document["apiVersion"]).rpartition("/")[0]


def strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema in which what is not listed is not allowed."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(member) for name, member in schema.items() if not name.startswith("x-kubernetes-")}
    made.pop("format", None)
    if "(?" in str(made.get("pattern")):
        del made["pattern"]  # Go's regular expressions are not Python's
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["properties"] = {name: strict(member) for name, member in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    return made


def custom(kind: str) -> Any:
    """The schema of a custom resource's spec."""
    if kind == "HTTPRoute":
        return HTTP_ROUTE
    for path in CRDS.glob("*.json.gz"):
        crd = json.loads(gzip.decompress(path.read_bytes()))
        if crd["spec"]["names"]["kind"] == kind:
            version = next(each for each in crd["spec"]["versions"] if each["storage"])
            return strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return None


# --- Helm and Kubernetes ---


@pytest.mark.parametrize("ci", NAMES)
def test_it_lints(ci):
    report = helm_python.lint(CHART, values(CHART / "ci" / f"{ci}-values.yaml"), strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ci", NAMES)
def test_kubernetes_takes_every_object(ci, version):
    found = [each for each in rendered(ci) if group(each) not in FOREIGN]
    checked = 0
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)
        checked += 1
    for _, metadata, spec in pods(rendered(ci)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **metadata}, "spec": spec}
        kubernetes_validate.validate(pod, version, strict=True)
    assert checked > 5


@pytest.mark.skipif(not CRDS.exists(), reason="the CRDs' schemas are not beside the project")
@pytest.mark.parametrize("ci", NAMES)
def test_operators_take_their_resources(ci):
    for document in rendered(ci):
        if group(document) in FOREIGN:
            schema = custom(document["kind"])
            assert schema is not None, f"no schema of {document['kind']}"
            jsonschema.validate(document["spec"], schema)


def test_a_misspelt_member_of_a_resource_would_be_found():
    if not CRDS.exists():
        pytest.skip("the CRDs' schemas are not beside the project")
    cluster = of_kind(rendered("kuberay"), "RayCluster")[0]["spec"]
    for broken in (
        {**cluster, "headGroupSpecs": {}},
        {**cluster, "headGroupSpec": {**cluster["headGroupSpec"], "rayStartParameters": {}}},
        {**cluster, "rayVersion": 2},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, custom("RayCluster"))


# --- what the objects mean to each other ---


@pytest.mark.parametrize("ci", NAMES)
def test_selectors_match_labels(ci):
    found = rendered(ci)
    labels = [metadata["labels"] for _, metadata, _ in pods(found)]
    for document in found:
        match document["kind"]:
            case "StatefulSet" | "Deployment":
                selector = document["spec"]["selector"]["matchLabels"]
                assert selector.items() <= document["spec"]["template"]["metadata"]["labels"].items()
            case "PodDisruptionBudget":
                assert any(document["spec"]["selector"]["matchLabels"].items() <= each.items() for each in labels)
            case "Service":
                assert any(document["spec"]["selector"].items() <= each.items() for each in labels), document
            case "ServiceMonitor":
                selector = document["spec"]["selector"]["matchLabels"]
                services = [
                    each for each in of_kind(found, "Service") if selector.items() <= each["metadata"]["labels"].items()
                ]
                ports = {port["name"] for each in services for port in each["spec"]["ports"]}
                assert {each["port"] for each in document["spec"]["endpoints"]} <= ports
            case _:
                pass


@pytest.mark.parametrize("ci", NAMES)
def test_services_lead_to_ports_that_are_open(ci):
    found = rendered(ci)
    for service in of_kind(found, "Service"):
        selected = [
            spec
            for _, metadata, spec in pods(found)
            if service["spec"]["selector"].items() <= metadata["labels"].items()
        ]
        for spec in selected:
            names = {port["name"] for container in spec["containers"] for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names, service["metadata"]["name"]


@pytest.mark.parametrize("ci", NAMES)
def test_what_is_mounted_is_there(ci):
    for document in rendered(ci):
        for name, _, spec in pods([document]):
            claims = {each["metadata"]["name"] for each in document["spec"].get("volumeClaimTemplates", [])}
            volumes = {each["name"] for each in spec.get("volumes", [])} | claims
            mounted = {each["name"] for container in spec["containers"] for each in container.get("volumeMounts", [])}
            assert mounted <= volumes, name
            assert volumes <= mounted, name
            maps = {each["configMap"]["name"] for each in spec.get("volumes", []) if "configMap" in each}
            assert maps <= {each["metadata"]["name"] for each in of_kind(rendered(ci), "ConfigMap")}


@pytest.mark.parametrize("ci", NAMES)
def test_pods_are_restricted(ci):
    for name, _, spec in pods(rendered(ci)):
        pod = spec["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"] > 0) == (True, True), name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]
            assert "memory" in container["resources"]["limits"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))
        scales = name == "RayCluster/harbor/head"  # Ray's autoscaler speaks to Kubernetes
        assert spec.get("automountServiceAccountToken", True) is scales, name


@pytest.mark.parametrize("ci", NAMES)
def test_ports_keep_clear_of_ray_and_of_each_other(ci):
    for name, _, spec in pods(rendered(ci)):
        for container in spec["containers"]:
            ports = [port["containerPort"] for port in container.get("ports", [])]
            given = re.findall(r"--[a-z-]*port=(\d+)", " ".join(container.get("args", [])))
            used = [int(port) for port in given if int(port) not in ports] + ports
            assert not TAKEN & set(used), name
            assert len(used) == len(set(used)), name


def test_the_image_is_of_this_version_and_ray_of_the_pinned():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    for ci in NAMES:
        for _, _, spec in pods(rendered(ci)):
            assert {container["image"].rpartition(":")[2] for container in spec["containers"]} == {__version__}
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert of_kind(rendered("kuberay"), "RayCluster")[0]["spec"]["rayVersion"] == pinned[1]


@pytest.mark.parametrize("ci", NAMES)
def test_the_configuration_is_one_that_the_cluster_takes(ci, tmp_path: Path):
    found = next(each for each in of_kind(rendered(ci), "ConfigMap") if "harbor.yaml" in each["data"])
    given = yaml.load(found["data"]["harbor.yaml"], Loader=yaml.BaseLoader) and yaml.safe_load(
        found["data"]["harbor.yaml"]
    )
    for stream in given.get("streams", []):
        assert True not in stream  # YAML 1.1's `on`
    assert given["gateway"]["auth"] == {"mode": "api_keys", "keys_file": "/etc/harbor/keys/keys"}
    keys = tmp_path / "keys"
    keys.write_text(line("a", "hk_a", Grants()))
    given["gateway"]["auth"]["keys_file"] = str(keys)
    env = {"API_URL": "http://api", "API_TOKEN": "t", "WS_URL": "ws://up"}
    config = load_mapping(given, env)
    gateways = GatewayScale(3, 12, 1_000, 90_000.0) if ci == "kuberay-gateways" else None
    assert (config.cluster.gateways, config.storage.path) == (gateways, "/var/lib/harbor")
    if ci == "static":
        assert config.storage.nodes == ("harbor-worker-0", "harbor-worker-1")
        assert config.storage.wait_ms == 300_000


JWT: dict[str, Any] = {
    "ray": {"auth": {"existingSecret": "r"}},
    "auth": {
        "mode": "jwt",
        "jwt": {"algorithms": ["RS256"], "jwksUrl": "https://issuer.example/jwks", "audience": ["harbor"]},
    },
    "config": {"gateway": {"tenant_claim": "org"}},
}


def test_tokens_need_no_secret_with_keys():
    found = documents(JWT)
    document = yaml.safe_load(
        next(each for each in of_kind(found, "ConfigMap") if "harbor.yaml" in each["data"])["data"]["harbor.yaml"]
    )
    wanted = {
        "mode": "jwt",
        "algorithms": ["RS256"],
        "jwks_url": "https://issuer.example/jwks",
        "audience": ["harbor"],
        "claim": "harbor",
    }
    assert document["gateway"]["auth"] == wanted
    config = load_mapping(document, {})
    assert (config.gateway.auth.jwks_url, config.gateway.tenant_claim) == ("https://issuer.example/jwks", "org")
    assert not any(volume["name"] == "keys" for _, _, spec in pods(found) for volume in spec.get("volumes", []))


@pytest.mark.parametrize("ci", NAMES)
def test_every_pod_has_the_environment_and_the_volumes_that_are_added(ci):
    more = {
        "env": [{"name": "SSL_CERT_FILE", "value": "/etc/ca/ca.pem"}],
        "extraVolumes": [{"name": "ca", "secret": {"secretName": "our-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    }
    found = documents({**values(CHART / "ci" / f"{ci}-values.yaml"), **more})
    of_release = [(name, spec) for name, _, spec in pods(found) if not name.startswith("Pod/")]
    containers = [(name, each) for name, spec in of_release for each in spec["containers"]]
    for cluster in of_kind(found, "RayCluster"):
        if options := cluster["spec"].get("autoscalerOptions"):
            containers.append(("autoscaler", options))
    for name, spec in of_release:
        assert more["extraVolumes"][0] in spec["volumes"], name
    for name, container in containers:
        assert more["env"][0] in container["env"], name
        assert more["extraVolumeMounts"][0] in container["volumeMounts"], name


def test_an_application_in_python_is_the_controllers():
    for more, wanted in (({"app": "board:app"}, ["--app", "board:app"]), ({}, [])):
        (controller,) = of_kind(documents({**BASE, **more}), "Deployment")
        (container,) = controller["spec"]["template"]["spec"]["containers"]
        at = container["args"].index("--keep") + 1
        assert container["args"][at:] == wanted


def test_what_was_revoked_is_beside_the_keys(tmp_path: Path):
    secret = {"algorithms": ["HS256"], "secret": "${JWT_SECRET}"}
    found = documents({**JWT, "auth": {"mode": "jwt", "existingSecret": "k", "revokedKey": "gone", "jwt": secret}})
    document = yaml.safe_load(
        next(each for each in of_kind(found, "ConfigMap") if "harbor.yaml" in each["data"])["data"]["harbor.yaml"]
    )
    assert document["gateway"]["auth"].pop("revoked_file") == "/etc/harbor/keys/revoked"
    assert load_mapping(document, {"JWT_SECRET": "s" * 32}).gateway.auth.secret == "s" * 32
    mounted = [
        volume["secret"] for _, _, spec in pods(found) for volume in spec.get("volumes", []) if volume["name"] == "keys"
    ]
    assert mounted[0] == {"secretName": "k", "items": [{"key": "gone", "path": "revoked"}]}
    both = documents({**BASE, "auth": {"existingSecret": "k", "revokedKey": "gone"}})
    mounted = [
        volume["secret"] for _, _, spec in pods(both) for volume in spec.get("volumes", []) if volume["name"] == "keys"
    ]
    assert mounted[0]["items"] == [{"key": "keys", "path": "keys"}, {"key": "gone", "path": "revoked"}]


def test_mutations_resources_and_presence_reach_the_application_as_they_are():
    given = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())["config"]
    found = next(each for each in of_kind(rendered("everything"), "ConfigMap") if "harbor.yaml" in each["data"])
    document = yaml.safe_load(found["data"]["harbor.yaml"])
    for section in ("mutations", "resources", "presence"):
        assert document[section] == given[section]
    document["gateway"]["auth"] = {"mode": "none"}
    document["gateway"]["host"] = document["gateway"]["admin_host"] = "127.0.0.1"
    config = load_mapping(document, {"API_URL": "http://api", "API_TOKEN": "t", "WS_URL": "ws://up"})
    resource = {f"messages.{each}" for each in ("create", "update", "delete")}
    assert compile_config(config).mutations.keys() == {"rename", "add", *resource}
    assert len(config.presence) == 2


@pytest.mark.parametrize(
    "section",
    [
        {"mutations": {"a": {"request": {"service": "api", "methd": "POST"}}}},
        {"resources": {"a": {"stream": {"events": {"created": 7}}}}},
        {"presence": {"a": {"timout": "1m"}}},
    ],
)
def test_what_is_misspelt_there_is_refused_by_the_schema(section):
    with pytest.raises(helm_python.HelmError, match=next(iter(section))):
        documents({**BASE, "config": section})


@pytest.mark.parametrize("ci", NAMES)
def test_names_are_short_and_unique(ci):
    given = values(CHART / "ci" / f"{ci}-values.yaml")
    given.pop("fullnameOverride", None)
    found = documents(given, "a-release-name-of-fifty-three-characters-which-is-max")
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert max(len(name) for _, name in names) <= 53
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("ci", NAMES)
def test_rendering_twice_gives_the_same(ci):
    given = values(CHART / "ci" / f"{ci}-values.yaml")
    assert text(given) == text(given)


def test_a_changed_configuration_rolls_no_pod_and_other_secrets_do():
    def templates(**more: Any) -> dict[str, Any]:
        return {name: (metadata, spec) for name, metadata, spec in pods(documents({**BASE, **more}))}

    before = templates()
    assert templates(config={"cluster": {"shards": 4}, "cache": {"max_entries": 5}}) == before
    after = templates(secretEnv={"existingSecret": "upstream"})
    assert {name for name in before if before[name] != after[name]} == {"Deployment/harbor-controller"}


@pytest.mark.parametrize("ci", NAMES)
def test_rays_objects_fit_into_shared_memory(ci):
    for name, _, spec in pods(rendered(ci)):
        for memory in re.findall(r"--object-store-memory=(\d+)", " ".join(spec["containers"][0].get("args", []))):
            shm = next(each["emptyDir"]["sizeLimit"] for each in spec["volumes"] if each["name"] == "shm")
            assert int(memory) <= int(shm.removesuffix("Mi")) * 1024**2 * 0.95, name
        args = spec["containers"][0].get("args", [])
        assert args[0] != "node" or any(each.startswith("--object-store-memory=") for each in args), name


def test_nodes_wait_for_a_head_that_comes_back_where_redis_keeps_its_state():
    for address, given in (("", None), ("redis:6379", "600")):
        redis = {"auth": {"existingSecret": "r"}, "redis": {"address": address}}
        for name, _, spec in pods(documents({**BASE, "ray": redis})):
            environment = {each["name"]: each.get("value") for each in spec["containers"][0].get("env", [])}
            assert not environment or environment.get("RAY_gcs_rpc_server_reconnect_timeout_s") == given, name


def test_the_drain_fits_into_the_grace():
    for ci in ("static", "kuberay", "external", "everything"):
        for name, _, spec in pods(rendered(ci)):
            args = spec["containers"][0].get("args", [])
            if "--grace" in args:
                seconds = int(args[args.index("--grace") + 1].removesuffix("s"))
                asleep = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
                assert asleep + seconds + 15 + 15 <= spec["terminationGracePeriodSeconds"], name


def test_alerts_are_of_this_release_and_link_to_the_runbook_that_is_named():
    rule = {"enabled": True, "runbook": "https://wiki.example/harbor"}
    found = documents({**BASE, "monitoring": {"prometheusRule": rule}}, "live")
    groups = of_kind(found, "PrometheusRule")[0]["spec"]["groups"]
    alerts = {each["alert"]: each for group in groups for each in group["rules"] if "alert" in each}
    assert {each["annotations"]["runbook_url"].partition("#")[0] for each in alerts.values()} == {rule["runbook"]}
    volumes = re.search(r'persistentvolumeclaim=~"([^"]+)"', alerts["HarborDiskFilling"]["expr"])
    assert volumes is not None
    sets = {each["metadata"]["name"]: each["spec"] for each in of_kind(found, "StatefulSet")}
    claim = sets["live-worker"]["volumeClaimTemplates"][0]["metadata"]["name"]
    assert re.fullmatch(volumes[1], f"{claim}-live-worker-0")
    assert re.fullmatch(volumes[1], "live-worker-worker-x7k2p-data")  # of a RayCluster's pod
    assert not re.fullmatch(volumes[1], "data-other-worker-0")


# --- values ---


def test_metrics_keep_their_own_label_where_the_operator_has_one_of_that_name():
    (monitor,) = of_kind(documents({**BASE, "monitoring": {"serviceMonitor": {"enabled": True}}}), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["honorLabels"]
    of_targets = {"job", "namespace", "pod", "endpoint", "container", "instance", "service"}
    own = {name: of_targets & set(labels) for name, (_, _, labels) in METRICS.items() if of_targets & set(labels)}
    assert own == {"service_offline_seconds": {"service"}}, "and nothing else displaces what says where it comes from"


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"mod": "static"}, "mod"),
        ({"mode": "statik"}, "/mode"),
        ({"workers": {"replica": 3}}, "/workers"),
        ({"workers": {"replicas": "3"}}, "/workers/replicas"),
        ({"workers": {"persistence": {"sise": "1Gi"}}}, "/workers/persistence"),
        ({"config": {"cluster": {"shard": 1}}}, "/config/cluster"),
        ({"config": {"cluster": {"gateways": 2}}}, "/config/cluster"),
        ({"config": {"gateway": {"port": 1}}}, "/config/gateway"),
        ({"config": {"queries": [{"keys": []}]}}, "/config/queries/0"),
        ({"config": {"sources": {"s": {"uri": "x"}}}}, "/config/sources/s"),
        ({"config": {"steams": []}}, "/config"),
        ({"gateways": {"drain": "soon"}}, "/gateways/drain"),
        ({"gateways": {"autoscaling": {"coolDown": "0s"}}}, "/gateways/autoscaling/coolDown"),
        ({"gateways": {"autoscaling": {"enabled": True}}}, "gateways.autoscaling.enabled: needs mode kuberay"),
        ({"mode": "kuberay", "gateways": {"autoscaling": {"enabled": True}}}, "gateways.autoscaling.enabled: needs"),
        ({**SCALED, "gateways": {"autoscaling": {"enabled": True, "min": 9}}}, "gateways.autoscaling: min has to be 1"),
        ({**SCALED, "gateways": {"autoscaling": {"enabled": True, "sessions": 0}}}, "gateways.autoscaling.sessions"),
        ({"external": {"address": "ray"}}, "/external/address"),
        ({"app": "board"}, "/app"),
        ({"config": {"gateway": {"outbox": 1}}}, "/config/gateway/outbox"),
        ({"config": {"storage": {"history": {"max_bytes": 1}}}}, "/config/storage/history/max_bytes"),
        ({"config": {"cache": {"max_bytes": 1}}}, "/config/cache/max_bytes"),
        ({"env": ["A=1"]}, "/env/0"),
        ({"auth": {"existingSecret": ""}}, "auth.existingSecret: needed"),
        ({"auth": {"mode": "jwt"}}, "auth.jwt.algorithms: needed"),
        ({"auth": {"mode": "jwt", "jwt": {"algorithms": ["RS256"]}}}, "auth.jwt: one of jwksUrl, publicKey and secret"),
        ({"auth": {"mode": "jwt", "jwt": {"secret": "hunter2"}}}, "/auth/jwt/secret"),
        ({"auth": {"mode": "none"}}, "/auth/mode"),
        ({"ray": {"auth": {"existingSecret": ""}}}, "ray.auth.existingSecret: needed"),
        ({"mode": "external"}, "external.address: needed"),
        ({"gateways": {"drain": "2m"}}, "gateways.terminationGracePeriodSeconds: with a drain of 2m it has to be 155"),
        ({"gateways": {"drain": "41s"}}, "gateways.terminationGracePeriodSeconds: with a drain of 41s"),
        ({"ingress": {"enabled": True}}, "ingress.hosts: one is needed"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs: one is needed"),
    ],
)
def test_bad_values_are_refused_by_their_path(more, path):
    with pytest.raises(helm_python.HelmError) as refused:
        documents({**BASE, **more})
    assert path in str(refused.value)


def known(path: str) -> set[str]:
    """The keys that the application takes at a place, from what it says of one it does not."""
    document: Any = {"zzzzzzzz": 1}
    for name in reversed([each for each in path.split(".") if each]):
        document = [document] if name == "0" else {name: document}
    with pytest.raises(ConfigFaults) as faults:
        load_mapping(document, {})
    fault = next(each for each in faults.value.faults if each.path.endswith("zzzzzzzz"))
    return set(fault.reason.partition("one of ")[2].split(", "))


@pytest.mark.parametrize(
    ("path", "schema", "set_by_chart"),
    [
        ("", generate.CONFIG, set()),
        ("cluster", generate.CONFIG["cluster"], {"gateways"}),
        ("cluster.ingestors", generate.CONFIG["cluster"]["ingestors"][1], set()),
        ("batching", generate.CONFIG["batching"], set()),
        ("gateway", generate.CONFIG["gateway"], {"host", "port", "admin_host", "admin_port", "auth"}),
        ("gateway.limits", generate.CONFIG["gateway"]["limits"], set()),
        ("storage", generate.CONFIG["storage"], {"path", "nodes"}),
        ("cache", generate.CONFIG["cache"], set()),
        ("defaults", generate.CONFIG["defaults"], set()),
        ("services.a", generate.CONFIG["services"]["*"], set()),
        ("queries.0", generate.CONFIG["queries"][0], set()),
        ("sources.a", generate.CONFIG["sources"]["*"], set()),
        ("streams.0", generate.CONFIG["streams"][0], set()),
        ("mutations.a", generate.CONFIG["mutations"]["*"], set()),
        ("mutations.a.request", generate.CONFIG["mutations"]["*"]["request"], set()),
        ("mutations.a.confirm_on", generate.CONFIG["mutations"]["*"]["confirm_on"], set()),
        ("presence.a", generate.CONFIG["presence"]["*"], set()),
        ("resources.a", generate.CONFIG["resources"]["*"], set()),
        ("resources.a.stream", generate.CONFIG["resources"]["*"]["stream"], set()),
        ("resources.a.stream.events", generate.CONFIG["resources"]["*"]["stream"]["events"], set()),
    ],
)
def test_the_schema_knows_what_the_application_knows(path, schema, set_by_chart):
    assert set(schema) - {"true"} == known(path) - set_by_chart


def test_what_is_generated_is_up_to_date():
    assert (CHART / "values.schema.json").read_text() == generate.schema(), "run: python -m helm.generate"
    assert (CHART / "README.md").read_text() == generate.readme(), "run: python -m helm.generate"
    held = {path.name: path.read_text() for path in (CHART / "files").iterdir()}
    assert held == generate.files(), "run: python -m helm.generate"
