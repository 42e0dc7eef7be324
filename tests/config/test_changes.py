import msgspec
import pytest

from cluster.config import Config, concerns, load_mapping, refusals
from cluster.config.changes import CONCERNS, FIXED
from cluster.config.model import ClusterConfig, GatewayConfig

REQUEST = {"service": "api", "method": "POST", "path": "/a"}
BASE = {
    "services": {"api": {"base_url": "http://127.0.0.1:1"}},
    "sources": {"s": {"type": "sse", "url": "http://127.0.0.1:1/s"}},
}


def config(**more: object) -> Config:
    return load_mapping({**BASE, **more}, {})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"cluster": {"gateways": "auto"}},
            "cluster.gateways: cannot change while the cluster runs (1 -> None): restart it",
        ),
        ({"gateway": {"port": 1}}, "gateway.port: cannot change while the cluster runs (8700 -> 1): restart it"),
        (
            {"gateway": {"token_secret": "x" * 32}},
            "gateway.token_secret: cannot change while the cluster runs: restart it",
        ),
        ({"storage": {"path": "/x"}}, "storage: cannot change while the cluster runs: restart it"),
    ],
)
def test_what_only_a_restart_changes_is_refused(change, line):
    assert refusals(config(), config(**change)) == [line]
    assert refusals(config(**change), config(**change)) == []


def test_numbers_of_actors_change_as_the_cluster_runs():
    assert refusals(config(), config(cluster={"shards": 8, "coordinators": 2, "gateways": 3, "ingestors": 2})) == []


def test_bounds_of_gateways_change_as_the_cluster_runs_but_not_who_decides():
    def scaled(**bounds: object) -> Config:
        return config(cluster={"gateways": bounds})

    assert refusals(scaled(max=2), scaled(max=3, sessions=10)) == []
    assert [line.partition(" ")[0] for line in refusals(scaled(), config())] == ["cluster.gateways:"]
    assert [line.partition(" ")[0] for line in refusals(config(cluster={"gateways": "auto"}), scaled())] == [
        "cluster.gateways:"
    ]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, set()),
        ({"cluster": {"ingestors": 2}}, set()),
        ({"cluster": {"shards": 8, "coordinators": 2, "gateways": 2}}, set()),
        ({"gateway": {"origins": ["https://a"]}}, set()),
        ({"presence": {"doc:{id}": {}}}, set()),
        ({"cache": {"max_entries": 5}}, {"shard"}),
        ({"queries": [{"key": ["a"], "service": "api", "path": "/a"}]}, {"shard"}),
        ({"mutations": {"m": {"request": REQUEST}}}, {"shard"}),
        (
            {
                "mutations": {"m": {"request": REQUEST, "confirm_on": {"stream": "s", "event": "e"}}},
                "streams": [{"source": "s", "on": {"f": {"delete": {"key": ["a"]}}}}],
            },
            {"shard", "ingestor", "coordinator"},
        ),
        ({"services": {"api": {"base_url": "http://127.0.0.1:2"}}}, {"shard"}),
        ({"batching": {"window": "50ms"}}, {"shard", "ingestor", "coordinator"}),
        ({"streams": [{"source": "s", "on": {"e": {"delete": {"key": ["a"]}}}}]}, {"shard", "ingestor", "coordinator"}),
    ],
)
def test_whom_a_change_concerns(change, kinds):
    assert refusals(config(), config(**change)) == []
    assert {kind for kind in CONCERNS if concerns(kind, config(), config(**change))} == kinds


def test_an_ingestor_is_made_anew_for_what_confirms_and_for_nothing_else_of_a_mutation():
    stream = {"source": "s", "on": {"f": {"delete": {"key": ["a"]}}}}

    def of(event: str, **more: object) -> Config:
        confirm = {"stream": "s", "event": event}
        return config(streams=[stream], mutations={"m": {"request": REQUEST, "confirm_on": confirm, **more}})

    assert not concerns("ingestor", of("e"), of("e", retry=3))
    assert concerns("ingestor", of("e"), of("f"))


TAKEN = {
    *(f"cluster.{each}" for each in ("shards", "coordinators", "ingestors", "autoscale")),  # by the supervisor
    *(f"gateway.{each}" for each in ("origins", "limits", "trusted_proxies", "hsts_ms", "outbox_bytes")),
    "presence",
}
"""What is taken as it runs: see `tests/gateway/test_live_configuration.py` and `tests/e2e/test_live_configuration.py`."""


def test_every_part_of_a_configuration_is_fixed_or_concerns_somebody_or_is_taken_as_it_runs():
    known = {*FIXED, *(each for paths in CONCERNS.values() for each in paths)} - {"confirmations"}  # of mutations
    parts = {"cluster": ClusterConfig, "gateway": GatewayConfig}
    every = {f"{part}.{each}" for part, of in parts.items() for each in of.__struct_fields__}
    every |= set(Config.__struct_fields__) - set(parts)
    assert known | TAKEN == every
    assert not known & TAKEN
    assert all(not part.startswith(f"{path}.") for part in every for path in every)


def test_the_demonstration_is_for_gateways_that_begin_anew():
    before = config()
    after = msgspec.structs.replace(before, gateway=msgspec.structs.replace(before.gateway, demo_page=True))
    assert refusals(before, after) == []
    assert {kind for kind in CONCERNS if concerns(kind, before, after)} == {"gateway"}
