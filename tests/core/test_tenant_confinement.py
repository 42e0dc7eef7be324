"""What mutations, entities, relations and temporary ids of one tenant may reach: nothing of another's."""

from typing import Any

import orjson
import pytest

from cluster.config import compile_config, load_mapping
from cluster.config.load import ConfigFaults
from cluster.core import broadcast
from cluster.core.declared_query import Response
from cluster.core.grants import Grants, line
from cluster.core.messages import Lay, Lift, Mutate
from cluster.core.mutation import DeclaredMutation
from cluster.core.mutation_queue import MutationQueue, MutationRecord, StartMutation
from cluster.core.operation import Invalidate, Merge
from cluster.core.rule import compile_operations
from cluster.core.tenant import Tenant
from cluster.errors import ErrorCode, HarborError, RequestError, UpstreamError
from tests.core.shard import Shard

DOCUMENT: dict[str, Any] = {
    "services": {"api": {"base_url": "http://api"}},
    "queries": [{"key": ["{tenant}", "users", "{id}"], "service": "api", "path": "/{tenant}/users/{id}"}],
    "sources": {"events": {"type": "sse", "url": "http://up"}},
    "entities": {"user": {"keys": ["userId"], "objects": ["user"]}},
    "relations": {"user": [["{tenant}", "users", "{id}"], {"contains": "user:{id}"}]},
    "mutations": {
        "save": {
            "request": {"service": "api", "method": "POST", "path": "/{tenant}/x", "body": "{variables}"},
            "optimistic": [{"set": {"key": ["{tenant}", "x"], "value": "{variables}"}}],
            "result": [
                {"set": {"key": "{response.key}", "value": 1}},
                {"entity": {"type": "user", "value": "{response}"}},
                {"relation": {"type": "user", "id": "{response.id}"}},
            ],
            "invalidate": ["{response.key}"],
        },
        "anywhere": {
            "request": {"service": "api", "method": "POST", "path": "/x"},
            "optimistic": [{"set": {"key": "{key}", "value": 1}}],
        },
        "create": {
            "request": {"service": "api", "method": "POST", "path": "/x"},
            "optimistic": [{"set": {"key": ["{tenant}", "made", "{id}"], "value": "{name}"}}],
            "temp_id": "{variables.id}",
        },
    },
}


@pytest.fixture
def document(tmp_path: Any) -> dict[str, Any]:
    keys = tmp_path / "keys"
    keys.write_text(line("op", "k", Grants(admin=True)))
    auth = {"mode": "api_keys", "keys_file": str(keys)}
    return {**DOCUMENT, "gateway": {"auth": auth, "tenant_claim": "org"}}


@pytest.fixture
def declared(document: dict[str, Any]) -> dict[str, DeclaredMutation]:
    return dict(compile_config(load_mapping(document, {})).mutations)


ACME = {"tenant": "acme", "name": "n"}


def test_variables_are_shown_without_the_tenant(declared: dict[str, DeclaredMutation]) -> None:
    ((key, made),) = declared["save"].optimistic_operations(ACME, "acme/m")
    assert key == '["acme","x"]'
    assert getattr(made, "value", None) == b'{"name":"n"}'
    request = declared["save"].request(ACME, "acme/m")
    assert (request.path, request.body) == ("/acme/x", b'{"name":"n"}')
    ((_, made),) = declared["save"].optimistic_operations({"tenant": "acme"}, "acme/m")
    assert getattr(made, "value", None) == b"{}"


@pytest.mark.parametrize("key", [["globex", "x"], ["x"], [], ["acme2"], ["*"], [["acme"]]])
def test_optimistic_operations_stay_at_home(declared: dict[str, DeclaredMutation], key: Any) -> None:
    with pytest.raises(RequestError, match="not under the tenant"):
        declared["anywhere"].optimistic_operations({"tenant": "acme", "key": key}, "acme/m")
    declared["anywhere"].optimistic_operations({"tenant": "acme", "key": ["acme", *key]}, "acme/m")
    declared["anywhere"].optimistic_operations({"key": key}, "m")  # an operator's


def test_nothing_is_made_that_looks_as_if_the_cluster_said_it(declared: dict[str, DeclaredMutation]) -> None:
    anywhere = declared["anywhere"]
    with pytest.raises(RequestError, match="the cluster's own"):
        anywhere.optimistic_operations({"key": ["$harbor", "overview"]}, "m")  # an operator's
    with pytest.raises(RequestError, match="not under the tenant"):
        anywhere.optimistic_operations({"tenant": "acme", "key": ["acme", "$harbor", "overview"]}, "acme/m")
    result = declared["save"].result_operations(ACME, "m", {"id": 7, "key": ["acme", "$harbor", "overview"]})
    assert all(broadcast.is_broadcast(key) for key, _ in result)
    assert anywhere.optimistic_operations({"tenant": "acme", "key": ["acme", "x", "$harbor"]}, "acme/m")


def test_results_and_invalidations_stay_at_home(declared: dict[str, DeclaredMutation]) -> None:
    def kept(response: Any) -> list[str]:
        save = declared["save"]
        return [
            key for key, _ in [*save.result_operations(ACME, "m", response), *save.invalidations(ACME, "m", response)]
        ]

    broadcasts = [broadcast.name("entity", ["user", 7, "acme"]), broadcast.name("relation", ["user", 7, "acme"])]
    assert kept({"id": 7, "key": ["globex", "x"]}) == broadcasts
    assert kept({"id": 7, "key": []}) == broadcasts
    assert kept({"id": 7, "key": ["acme", "y"]}) == ['["acme","y"]', *broadcasts, '#u["acme","y"]']


def test_entities_and_relations_of_a_tenant(document: dict[str, Any]) -> None:
    shard = Shard({**document, "streams": []})
    old = {"id": 7, "name": "old"}
    for tenant in ("acme", "globex"):
        shard.put(f'["{tenant}","users",7]', old)
        shard.put(f'["{tenant}","posts"]', [{"user": old}])
        shard.put(f'["{tenant}","user:7"]', 1)
    shard.batch((broadcast.name("entity", ["user", 7, "acme"]), [Merge(orjson.dumps({"id": 7, "name": "new"}))]))
    assert shard.data('["acme","users",7]') == {"id": 7, "name": "new"}, "what a key says it holds, after the tenant"
    assert shard.data('["acme","posts"]') == [{"user": {"id": 7, "name": "new"}}]
    assert shard.data('["globex","users",7]') == old
    assert shard.data('["globex","posts"]') == [{"user": old}]
    shard.batch((broadcast.name("relation", ["user", 7, "acme"]), [Invalidate()]))
    doubted = {entry.key for entry in shard.machine.cache if entry.is_invalidated}
    assert doubted == {'["acme","users",7]', '["acme","user:7"]'}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"streams": [{"source": "events", "on": {"e": {"entity": {"type": "user", "value": "{data}"}}}}]},
            "streams.0.on.e.entity.tenant: required, since gateway.tenant_claim is set",
        ),
        (
            {"streams": [{"source": "events", "on": {"e": [{"relation": {"type": "user", "id": 1}}]}}]},
            "streams.0.on.e.0.relation.tenant: required, since gateway.tenant_claim is set",
        ),
        (
            {"relations": {"user": [["users", "{id}"]]}},
            "relations.user.0: keys have a tenant, expected {tenant} first, got ['users', '{id}']",
        ),
        (
            {"queries": [{"key": ["users", "{id}"], "service": "api", "path": "/users/{id}"}]},
            "queries.0.key: keys have a tenant, expected a placeholder for it first: whoever is called 'users' would have these",
        ),
        (
            {"streams": [{"source": "events", "on": {"e": [{"set": {"key": ["users", 1], "value": 1}}]}}]},
            "streams.0.on.e.0.set.key: keys have a tenant, expected a placeholder for it first: whoever is called 'users'",
        ),
        (
            {"streams": [{"source": "events", "on": {"e": {"call": "a:b", "key": ["users", 1]}}}]},
            "streams.0.on.e.key: keys have a tenant, expected a placeholder for it first: whoever is called 'users'",
        ),
        ({"resources": {"m": {"service": "api", "path": "/m"}}}, "resources: keys of resources name no tenant"),
    ],
)
def test_a_configuration_that_would_cross_is_refused(document: dict[str, Any], change: Any, fault: str) -> None:
    with pytest.raises(ConfigFaults) as raised:
        load_mapping({**document, **change}, {})
    assert [each.message[: len(fault)] for each in raised.value.faults] == [fault]


def test_what_can_be_no_tenant_s_or_is_said_by_an_upstream_is_not_refused(document: dict[str, Any]) -> None:
    """The keys of the first two are an operator's alone."""
    on = {"e": [{"set": {"key": key, "value": 1}} for key in (["_all", 1], [1], ["{data.org}", 1], "{data.key}")]}
    query = {"key": ["_all", "{id}"], "service": "api", "path": "/{id}"}
    load_mapping({**document, "queries": [query], "streams": [{"source": "events", "on": on}]}, {})


def test_an_event_says_whose_entity_it_is_about(document: dict[str, Any]) -> None:
    on = {
        "e": {"entity": {"type": "user", "value": "{data}", "tenant": "{data.org}"}},
        "r": {"relation": {"type": "user", "id": "{data.id}", "tenant": "{data.org}"}},
    }
    compiled = compile_config(load_mapping({**document, "streams": [{"source": "events", "on": on}]}, {}))
    dropped: list[str] = []
    for event, about in (("e", "entity"), ("r", "relation")):
        make = compile_operations(list(compiled.streams[0].on[event]), lambda why, *_: dropped.append(why))
        ((name, _),) = make((event,), b'{"id":7,"org":"acme"}', None)
        assert broadcast.read(name) == (about, ["user", 7, "acme"])
        for org in (b'"*"', b'"a/b"', b"7", b'""', b"null"):
            assert list(make((event,), b'{"id":7,"org":%b}' % org, None)) == []
    assert len(dropped) == 10


class Home:
    """The home of mutations of all tenants."""

    def __init__(self, declared: dict[str, DeclaredMutation]) -> None:
        self.queue = MutationQueue(0, 1, lambda _: 0, declared, lambda _: None)

    def begin(self, tenant: str, mutation: str, name: str = "create", /, **variables: Any) -> Any:
        said = orjson.dumps({"tenant": tenant, **variables})
        named = Tenant(tenant).inside_id(mutation)
        return self.queue.begin(Mutate(1, named, name, said, f"{tenant}/id:{named}", None), "g", 0.0)

    def sent(self) -> list[StartMutation]:
        calls, self.queue.calls = self.queue.calls, []
        return calls

    def tell(self) -> list[Lift]:
        """All shards hear what there is."""
        lifts = [item for item in self.queue.items.pop(0, []) if isinstance(item, Lift)]
        for lift in lifts:
            self.queue.rename(lift, 0.0)
            self.queue.lifted(0, lift.mutation)
        return lifts

    def shown(self, mutation: str) -> tuple[Any, list[str]]:
        """The variables of a mutation, and the keys that show it."""
        record = self.queue.records[mutation]
        return orjson.loads(record.variables), [key for key, _ in record.laid]


def test_temporary_ids_are_others_in_each_tenant(declared: dict[str, DeclaredMutation]) -> None:
    home = Home(declared)
    begin, queue = home.begin, home.queue
    begin("acme", "m1", id="t1", name="a")
    with pytest.raises(HarborError, match="the temporary id t1 was used before"):
        begin("acme", "m2", id="t1", name="b")
    begin("globex", "m1", id="t1", name="c")
    begin("globex", "m2", id="t2", name="t1")
    assert queue.records["globex/m2"].awaits == ["globex\0t1"]


REFUSED = UpstreamError("http 422", status=422, retryable=False)


@pytest.mark.parametrize("answer", [Response(b'{"id":17}'), Response(b'{"id":"globex"}'), REFUSED])
def test_a_tenant_s_name_as_a_temporary_id_leads_out_of_no_tenant(
    declared: dict[str, DeclaredMutation], answer: Any
) -> None:
    home = Home(declared)
    home.begin("acme", "m1", id="acme", name="n")
    home.begin("acme", "earlier", "save", a=1)
    create, save = home.sent()
    assert save.mutation == "acme/earlier", "nor does it wait"
    home.queue.responded(create, answer, 0.0)
    (lift,) = home.tell()
    assert {key for key, _ in lift.lasting} <= {'["acme","made","globex"]', '["acme","made",17]'}
    home.begin("acme", "later", "save", a=1)
    for name in ("earlier", "later"):
        assert home.shown(f"acme/{name}") == ({"tenant": "acme", "a": 1}, ['["acme","x"]'])
    assert [call.request.path for call in home.sent()] == ["/acme/x"]
    with pytest.raises(RequestError, match="not under the tenant"):
        home.begin("acme", "m3", "anywhere", key=["globex", "secret"])


def test_nor_does_one_that_is_undone_or_restored(declared: dict[str, DeclaredMutation]) -> None:
    home = Home(declared)
    said = orjson.dumps({"tenant": "acme", "id": "acme", "name": "n"})
    home.queue.begin(Mutate(1, "acme/m1", "create", said, "acme/id:m1", 5.0), "g", 0.0)
    home.begin("acme", "m2", "save", a=1)
    later = Home(declared)
    later.queue.restore(list(home.queue.records.values()), 0.0)
    assert [call.mutation for call in later.sent()] == ["acme/m2"]
    assert later.queue.undo("acme/m1", 0.0)
    later.tell()
    assert later.queue.records["acme/m2"].status == "pending"
    later.begin("acme", "m3", "save", a=1)
    assert later.shown("acme/m3")[0] == {"tenant": "acme", "a": 1}


@pytest.mark.parametrize("tenant", [17, "", "*", None, ["acme"]])
def test_what_is_no_tenant_s_name_is_refused_and_not_nobody_s(
    declared: dict[str, DeclaredMutation], tenant: Any
) -> None:
    home = Home(declared)
    for name, more in (("save", {}), ("anywhere", {"key": ["globex", "x"]}), ("create", {"id": "t", "name": "n"})):
        variables = {"tenant": tenant, **more}
        with pytest.raises(RequestError, match="the variable tenant is a tenant's name") as raised:
            home.queue.begin(Mutate(1, "m", name, orjson.dumps(variables), "s"), "g", 0.0)
        assert raised.value.code == ErrorCode.INVALID_VARIABLES
        with pytest.raises(RequestError, match="is a tenant's name"):
            declared[name].request(variables, "m")
        assert declared[name].result_operations(variables, "m", {"id": 7, "key": ["globex", "x"]}) == []
        assert declared[name].invalidations(variables, "m", {"key": ["globex", "x"]}) == []
    assert not home.queue.records


def test_a_stored_mutation_that_names_none_is_given_up(declared: dict[str, DeclaredMutation]) -> None:
    """An earlier release let an answer take the tenant's place."""
    home = Home(declared)
    variables = b'{"tenant":17,"key":["globex","x"]}'
    stored = MutationRecord("acme/m", "anywhere", variables, "acme/s", 1, 0.0, 0.0, "g", [], awaits=["acme\0t"])
    home.queue.restore([stored], 0.0)
    assert home.sent() == []
    assert [code for code, _ in [home.queue.records["acme/m"].error or ("", "")]] == [ErrorCode.INVALID_VARIABLES]


def test_a_new_life_of_its_home_has_a_tenant_s_mutation_wait_on(declared: dict[str, DeclaredMutation]) -> None:
    """What it names is created by another home, which says later what became of it."""
    home = Home(declared)
    variables = b'{"id":"t1","name":"n","tenant":"acme"}'
    home.queue.laid(Lay("acme/m1", 1, [], "acme\0t1", name="create", variables=variables))
    home.begin("acme", "m2", "save", parent="t1")
    assert home.sent() == []
    later = Home(declared)
    later.queue.restore(list(home.queue.records.values()), 0.0)
    assert later.sent() == []
    later.queue.rename(Lift("acme/m1", [], [], "acme\0t1", 17), 0.0)
    assert [call.request.body for call in later.sent()] == [b'{"parent":17}']
