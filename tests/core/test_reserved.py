"""Reserved entries: who sees them, and how a gateway keeps them."""

from typing import Any

import pytest

from cluster.core.grants import ANYBODY, Grants, Principal
from cluster.core.messages import Rebalance, Requests, Send
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.query_key import CanonicalKey, canonical
from cluster.core.reserved import KEYS, NAMES
from cluster.core.tenant import Tenant
from cluster.errors import ErrorCode, HarborError
from tests.core.test_gateway_state import Played

OVERVIEW = KEYS["overview"]
LONG = "x" * 200
"""So that a patch is the shorter way to say what changed."""
ALL = {"read": [[]], "write": [[]]}


def watched(mode: str = "patch", **more: Any) -> tuple[Played, Any]:
    played = Played()
    session = played.session()
    played.subscribe(session, key=OVERVIEW, mode=mode, **more)
    return played, session


def said(played: Played, session: Any) -> list[Any]:
    return [
        {name: value for name, value in each.items() if name not in ("token", "position")}
        for each in played.read(session) or []
    ]


def report(played: Played, data: Any) -> None:
    played.note(played.state.report("overview", data, played.now_ms))


@pytest.mark.parametrize(
    ("principal", "may"),
    [
        (ANYBODY, True),
        (Principal("o", Grants(admin=True)), True),
        (Principal("u", Grants(**ALL)), False),
        (Principal("u", Grants(read=[["$harbor"]], write=[["$harbor"]])), False),
        (Principal("t", Grants(**ALL, admin=True), tenant=Tenant("acme")), False),
    ],
)
def test_only_operators_read_and_nobody_writes(principal: Principal, may: bool) -> None:
    for name in (*KEYS.values(), '["$harbor"]'):
        assert principal.may("read", CanonicalKey(name)) is may
        assert not principal.may("write", CanonicalKey(name))


def test_nobody_writes_them_inside_a_tenant_either() -> None:
    """Else a console of the tenant would show what somebody there made up."""
    tenant = Tenant("acme")
    principal = Principal("u", Grants(read=[[]], write=[[]], admin=True), tenant=tenant)
    for name in KEYS.values():
        assert not principal.may("write", tenant.inside(name))
        assert not principal.may("read", tenant.inside(name))
    assert principal.may("write", tenant.inside(canonical(["orders", "$harbor"])))


def test_a_watched_one_is_kept_and_told_in_patches() -> None:
    played, session = watched()
    assert played.state.reported() == ["overview"]
    assert played.read(session) is None  # nobody has said anything yet
    report(played, {"a": [1, 2, 3], "b": {"c": 1}, "long": LONG})
    snapshot, end = said(played, session)
    assert (snapshot["type"], snapshot["key"], snapshot["data"]) == (
        "snapshot",
        ["$harbor", "overview"],
        {"a": [1, 2, 3], "b": {"c": 1}, "long": LONG},
    )
    assert end["type"] == "snapshot_end"
    played.now_ms += 1_000.0
    report(played, {"a": [1, 2, 3, 4], "b": {"c": 2}, "long": LONG})
    played.tick()
    change = said(played, session)[0]
    assert (change["type"], change["from"], change["version"]) == ("change", snapshot["version"], 2_000)
    assert change["patch"] == [
        {"op": "add", "path": "/a/3", "value": 4},
        {"op": "replace", "path": "/b/c", "value": 2},
    ]
    report(played, {"a": [1, 2, 3, 4], "b": {"c": 2}, "long": LONG})
    played.tick()
    assert played.read(session) is None  # it is as it was


def test_shards_hear_nothing_of_it_and_prefixes_do_not_show_it() -> None:
    played, session = watched()
    assert not [each for each in played.effects if isinstance(each, Send)]
    report(played, {"a": 1})
    played.read(session)
    other = played.session("other")
    played.subscribe(other, key="[]", prefix=True)
    (send,) = [each for each in played.effects if isinstance(each, Send)]
    assert isinstance(send.message, Requests)
    assert not played.state.replicas
    played.now_ms += 60_000.0
    report(played, {"a": 2})
    played.tick()
    assert said(played, session)[0]["type"] == "change"
    assert played.read(other) is None


def test_it_goes_on_when_slots_have_moved() -> None:
    played, session = watched()
    report(played, {"a": 1, "long": LONG})
    said(played, session)
    slots = SlotMap(2, assign_slots(range(4), 2).owners, 4, 1)
    _, effects = played.state.rebalance(Rebalance("release", slots, 1), played.now_ms)
    assert effects == []  # no shard is asked for it
    played.now_ms += 1_000.0
    report(played, {"a": 2, "long": LONG})
    played.tick()
    assert said(played, session)[0]["type"] == "change"


def test_nobody_watches_nothing_is_reported() -> None:
    played, session = watched()
    report(played, {"a": 1})
    played.read(session)
    played.note(played.state.pause(session, b"1", played.now_ms))
    assert played.state.reported() == []
    played.note(played.state.resume(session, b"1", played.now_ms))
    assert played.state.reported() == ["overview"]
    played.note(played.state.unsubscribe(session, b"1", played.now_ms))
    assert played.state.reported() == []
    report(played, {"a": 2})
    assert not played.state.replicas
    played.subscribe(session, key=OVERVIEW)
    assert played.read(session) is None  # what was said before is forgotten


def test_who_comes_back_begins_again() -> None:
    played, session = watched(since={})
    report(played, {"a": 1})
    assert [each["type"] for each in said(played, session)] == ["reset", "snapshot", "snapshot_end"]
    second = played.session("second")
    played.subscribe(second, key=OVERVIEW, since={0: (3, 100)})
    assert [each["type"] for each in said(played, second)] == ["reset", "snapshot", "snapshot_end"]


@pytest.mark.parametrize(
    ("key", "prefix", "code"),
    [
        ('["$harbor","nothing"]', False, ErrorCode.NOT_FOUND),
        ('["$harbor"]', True, ErrorCode.UNSUPPORTED),
        (OVERVIEW, True, ErrorCode.UNSUPPORTED),
    ],
)
def test_there_is_nothing_else_of_them(key: str, prefix: bool, code: ErrorCode) -> None:
    played = Played()
    with pytest.raises(HarborError) as caught:
        played.subscribe(played.session(), key=key, prefix=prefix)
    assert caught.value.code == code
    assert set(KEYS) == set(NAMES)
