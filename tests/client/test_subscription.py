"""Messages in, changes out; first one by one, then whole conversations with a model of a server."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.client import subscription as subscriptions
from cluster.client.subscription import Change, Course, Fit, Subscription
from cluster.core import json_patch
from tests.client.consumer import Consumer

A, B = ["a"], ["b"]


def snapshot(key: Any, version: int, data: Any = None, **more: Any) -> dict[str, Any]:
    has = {"data": data} if version else {}
    return {
        "type": "snapshot",
        "sub": 1,
        "key": key,
        "version": version,
        **has,
        "data_updated_at": 5,
        "status": "success" if version else "pending",
        "is_stale": False,
        "is_offline": False,
        **more,
    }


def change(key: Any, since: int, version: int, *, coalesced: int = 1, **content: Any) -> dict[str, Any]:
    return {
        "type": "change",
        "sub": 1,
        "key": key,
        "from": since,
        "version": version,
        "coalesced": coalesced,
        **content,
    }


def removed(key: Any, version: int) -> dict[str, Any]:
    return {"type": "removed", "sub": 1, "key": key, "version": version}


def invalidated(key: Any) -> dict[str, Any]:
    return {"type": "invalidated", "sub": 1, "key": key}


def end(token: str) -> dict[str, Any]:
    return {"type": "snapshot_end", "sub": 1, "position": token}


def position(token: str) -> dict[str, Any]:
    return {"type": "position", "sub": 1, "token": token}


RESET: dict[str, Any] = {"type": "reset", "sub": 1}


def add(path: str, value: Any) -> list[dict[str, Any]]:
    return [{"op": "add", "path": path, "value": value}]


def told(subscription: Subscription, *messages: dict[str, Any]) -> list[Change]:
    for message in messages:
        assert subscription.receive(message)
    return taken(subscription)


def taken(subscription: Subscription) -> list[Change]:
    changes = []
    while (change := subscription.take()) is not None:
        changes.append(change)
    return changes


def begun(mode: Any = "data", **options: Any) -> Subscription:
    """A prefix with A at version 3, taken."""
    subscription = Subscription([], prefix=True, mode=mode, **options)
    subscription.request(1)
    told(subscription, snapshot(A, 3, {"list": [1]}), end("t1"))
    return subscription


# --- the course --------------------------------------------------------------------------------------------------


def test_it_subscribes_from_the_start_then_from_its_last_token() -> None:
    course = Course(A, prefix=False, mode="patch")
    assert course.request(1) == {"type": "subscribe", "id": 1, "key": A, "mode": "patch"}
    course.receive(end("t1"))
    assert course.request(2) == {"type": "subscribe", "id": 2, "key": A, "mode": "patch", "since": "t1"}
    course.receive(position("t2"))
    assert course.request(3)["since"] == "t2"
    assert Course(A, prefix=True, mode="data").request(1) == {
        "type": "subscribe",
        "id": 1,
        "prefix": A,
        "mode": "data",
    }


def test_a_token_too_long_to_hand_back_is_not_kept() -> None:
    course = Course(A, prefix=False, mode="data")
    course.receive(end("t" * 2049))
    assert course.lost
    assert "since" not in course.request(1)


@pytest.mark.parametrize(
    ("message", "fit"),
    [
        (change(A, 3, 4, data=1), Fit.TAKE),
        (change(B, 0, 9, data=1), Fit.TAKE),
        (change(A, 2, 3, data=1), Fit.DROP),
        (change(A, 0, 3, data=1), Fit.DROP),
        (change(A, 2, 4, data=1), Fit.MISFIT),
        (change(A, 0, 4, data=1), Fit.MISFIT),
        (change(A, 4, 5, data=1), Fit.MISFIT),
        (change(B, 1, 2, data=1), Fit.MISFIT),
        (removed(A, 4), Fit.TAKE),
        (removed(B, 4), Fit.DROP),
        (invalidated(A), Fit.TAKE),
        ({"type": "of a later version"}, Fit.TAKE),
    ],
)
def test_each_message_fits_or_not(message: dict[str, Any], fit: Fit) -> None:
    course = Course([], prefix=True, mode="data")
    course.receive(snapshot(A, 3, 0))
    course.receive(end("t1"))
    assert course.receive(message) is fit
    assert course.lost == (fit is Fit.MISFIT)
    assert ("since" in course.request(2)) == (fit is not Fit.MISFIT)


def test_a_snapshot_that_broke_off_begins_anew() -> None:
    course = Course([], prefix=True, mode="data")
    course.request(1)
    assert not course.lost
    course.receive(snapshot(A, 3, 0))
    assert course.lost
    course.request(2)
    assert not course.lost
    assert course.receive(change(A, 0, 4, data=1)) is Fit.TAKE


# --- kinds -------------------------------------------------------------------------------------------------------


def test_each_message_gives_one_change() -> None:
    subscription = Subscription([], prefix=True)
    subscription.request(1)
    changes = told(
        subscription,
        snapshot(A, 3, None),
        snapshot(B, 0, error={"code": "UPSTREAM_ERROR", "message": "down", "temporary": True}, status="error"),
        end("t1"),
        change(A, 3, 7, data={"n": 1}, coalesced=4),
        invalidated(A),
        removed(A, 8),
        position("t2"),
        {"type": "reset", "sub": 1, "key": B},
        snapshot(B, 9, "x", is_offline=True),
    )
    fault = {"code": "UPSTREAM_ERROR", "message": "down", "temporary": True}
    assert changes == [
        Change(kind="snapshot", key=A, data=None, version=3, status="success", data_updated_at=5),
        Change(kind="snapshot", key=B, status="error", data_updated_at=5, error=fault),
        Change(kind="ready"),
        Change(kind="change", key=A, data={"n": 1}, version=7, from_version=3, coalesced=4, status="success"),
        Change(kind="invalidated", key=A, data={"n": 1}, version=7, from_version=7, is_stale=True),
        Change(kind="removed", key=A, version=8, from_version=7),
        Change(kind="reset", key=B),
        Change(kind="snapshot", key=B, data="x", version=9, status="success", is_offline=True, data_updated_at=5),
    ]


def test_a_reset_of_everything_drops_what_waits() -> None:
    subscription = begun()
    changes = told(subscription, change(A, 3, 4, data=1), RESET, position("p1.0-0-0"), snapshot(A, 2, 0), end("t2"))
    assert [(each.kind, each.version) for each in changes] == [("reset", 0), ("snapshot", 2), ("ready", 0)]
    assert subscription.request(2)["since"] == "t2"


def test_a_connection_lost_after_a_reset_comes_back_with_the_token_that_begins_again() -> None:
    subscription = begun()
    told(subscription, RESET, position("p1.0-0-0"), snapshot(A, 2, 0))
    assert subscription.request(2)["since"] == "p1.0-0-0"
    assert taken(subscription) == []


def test_what_does_not_fit_is_reset_and_asked_for_anew() -> None:
    subscription = begun()
    assert not subscription.receive(change(A, 4, 5, data=1))
    assert "since" not in subscription.request(2)
    changes = told(subscription, snapshot(A, 5, 1), end("t9"))
    assert [each.kind for each in changes] == ["reset", "snapshot", "ready"]


def test_what_was_never_told_needs_no_reset() -> None:
    subscription = Subscription(A)
    subscription.request(1)
    subscription.request(2)
    assert taken(subscription) == []


def test_what_is_held_already_is_dropped() -> None:
    subscription = begun()
    assert told(subscription, change(A, 2, 3, data="older"), removed(B, 7)) == []


# --- patches -----------------------------------------------------------------------------------------------------


def test_patches_are_applied_and_nothing_handed_out_is_edited() -> None:
    subscription = begun("patch")
    consumer = Consumer("patch")
    consumer.take(Change(kind="snapshot", key=A, data={"list": [1]}, version=3))
    for changes in (
        told(subscription, change(A, 3, 4, patch=add("/list/-", {"deep": []}))),
        told(
            subscription,  # two wait at a time, the second edits what the first added
            change(A, 4, 5, patch=add("/list/-", {"deep": [2]})),
            invalidated(A),
            change(A, 5, 6, patch=add("/list/2/deep/-", 3)),
        ),
        told(subscription, change(A, 6, 7, patch=add("/list/1/deep/-", 4)), change(B, 0, 9, data=1)),
    ):
        for each in changes:
            consumer.take(each)
    assert consumer.entries == {'["a"]': (7, {"list": [1, {"deep": [4]}, {"deep": [2, 3]}]}), '["b"]': (9, 1)}
    consumer.check_nothing_was_edited()


def test_a_consumer_that_edits_what_it_was_handed_harms_only_itself() -> None:
    subscription = begun("patch")
    (first,) = told(subscription, change(A, 3, 4, patch=add("/list/-", {"x": 0})))
    first.data["list"].clear()
    first.patch[0]["value"]["x"] = "mine"  # type: ignore[index]
    (second,) = told(subscription, change(A, 4, 5, patch=add("/list/-", 6)))
    assert second.data == {"list": [1, {"x": 0}, 6]}


def test_what_folds_edits_nothing_that_waits_before_it() -> None:
    subscription = begun("patch", backlog=2)
    before, after = told(
        subscription,
        change(A, 3, 4, patch=add("/list/-", 2)),
        invalidated(A),
        change(A, 4, 5, patch=add("/list/-", 3)),
        change(A, 5, 6, patch=add("/list/-", 4)),
    )
    assert (before.kind, before.version, before.data) == ("change", 4, {"list": [1, 2]})
    assert (after.kind, after.version, after.data) == ("change", 6, {"list": [1, 2, 3, 4]})
    assert after.patch == [*add("/list/-", 3), *add("/list/-", 4)]


def test_a_patch_that_cannot_be_applied_begins_anew() -> None:
    subscription = begun("patch")
    assert not subscription.receive(change(A, 3, 4, patch=add("/nowhere/1", 2)))
    assert "since" not in subscription.request(2)
    assert [each.kind for each in taken(subscription)] == ["reset"]


# --- a slow consumer ---------------------------------------------------------------------------------------------


def test_what_a_slow_consumer_leaves_folds_per_key() -> None:
    subscription = begun(backlog=2)
    changes = told(
        subscription,
        change(A, 3, 4, data=1),
        change(B, 0, 5, data=1, coalesced=2),
        change(A, 4, 6, data=2, coalesced=3),
        change(B, 5, 7, data=2),
        invalidated(B),
        change(["c"], 0, 8, data=0),
        change(A, 6, 9, data=3),
    )
    assert [(each.kind, each.key, each.from_version, each.version, each.data, each.coalesced) for each in changes] == [
        ("change", A, 3, 9, 3, 5),
        ("change", B, 0, 7, 2, 3),
        ("change", ["c"], 0, 8, 0, 1),
    ]
    assert [each.is_stale for each in changes] == [False, True, False]


def test_the_mutations_of_changes_fold_too() -> None:
    subscription = begun(backlog=1)
    (folded,) = told(
        subscription,
        change(A, 3, 4, data=1, mutations=["b", "a"]),
        change(A, 4, 5, data=1),
        change(A, 5, 6, data=2, mutations=["a", "c"]),
    )
    assert folded.mutations == ("b", "a", "c")
    (alone,) = told(subscription, change(A, 6, 7, data=2))
    assert alone.mutations == ()


@pytest.mark.parametrize(
    ("messages", "kinds"),
    [
        ([removed(A, 4)], [("removed", 3, 4)]),
        ([change(A, 3, 4, data=1), removed(A, 5)], [("removed", 3, 5)]),
        ([removed(A, 4), change(A, 0, 5, data=1)], [("change", 3, 5)]),
        ([removed(A, 4), change(A, 0, 5, data=1), removed(A, 6)], [("removed", 3, 6)]),
        ([removed(A, 4), snapshot(A, 0)], [("snapshot", 3, 0)]),
        ([invalidated(A), change(A, 3, 4, data=1)], [("change", 3, 4)]),
        ([invalidated(A), invalidated(A)], [("invalidated", 3, 3)]),
        ([{"type": "reset", "key": A}, snapshot(A, 9, 1)], [("snapshot", 3, 9)]),
        ([change(A, 3, 4, data=1), {"type": "reset", "key": A}, snapshot(A, 9, 1)], [("snapshot", 3, 9)]),
        ([change(B, 0, 4, data=1), removed(B, 5)], []),
        ([change(B, 0, 4, data=1), removed(B, 5), change(B, 0, 6, data=1)], [("change", 0, 6)]),
        ([snapshot(B, 0), change(B, 0, 6, data=1)], [("snapshot", 0, 6)]),
    ],
)
def test_what_kinds_fold_to(messages: list[dict[str, Any]], kinds: list[Any]) -> None:
    changes = told(begun(backlog=1), *messages)
    assert [(each.kind, each.from_version, each.version) for each in changes] == kinds


def test_what_was_told_without_data_is_told_to_be_gone() -> None:
    subscription = begun(backlog=1)
    assert [each.kind for each in told(subscription, snapshot(B, 0))] == ["snapshot"]
    (gone,) = told(subscription, change(B, 0, 4, data=1), removed(B, 5))
    assert (gone.kind, gone.key, gone.from_version, gone.version) == ("removed", B, 0, 5)
    assert told(subscription, snapshot(["c"], 0), removed(["c"], 6)) == []


def test_patches_join_while_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_FOLDED_BYTES", 150)
    subscription = begun("patch", backlog=1)
    first, second = add("/list/-", "x" * 20), add("/list/-", "y" * 20)
    (joined,) = told(subscription, change(A, 3, 4, patch=first), change(A, 4, 5, patch=second))
    assert joined.patch == [*first, *second]
    longer = [change(A, version, version + 1, patch=add("/list/-", "z" * 20)) for version in range(5, 9)]
    (whole,) = told(subscription, *longer)
    assert whole.patch == [{"op": "replace", "path": "", "value": whole.data}]
    assert whole.data == {"list": [1, "x" * 20, "y" * 20, *["z" * 20] * 4]}


# --- whole conversations -----------------------------------------------------------------------------------------


class Server:
    """A model: entries, what the client was told, and messages between the two as the protocol has them."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.entries: dict[str, tuple[int, Any]] = {}
        self.held: dict[str, int] = {}
        self.out: list[dict[str, Any]] = []
        self.connected = True
        self.tokens = 0

    def begin(self) -> None:
        self.held = {}
        for name, (version, data) in self.entries.items():
            self.out.append(snapshot([name], version, data))
            self.held[name] = version
        self.tokens += 1
        self.out.append(end(f"t{self.tokens}"))

    def tell(self, name: str, patch: list[dict[str, Any]] | None = None) -> None:
        """Bring the client up to date with one entry."""
        if not self.connected:
            return
        since = self.held.get(name, 0)
        if name not in self.entries:
            if name in self.held:
                del self.held[name]
                self.out.append(removed([name], since + 1))
        else:
            version, data = self.entries[name]
            content = {"data": data}
            if self.mode == "patch" and since:
                content = {"patch": patch or [{"op": "replace", "path": "", "value": data}]}
            if version != since:
                self.held[name] = version
                self.out.append(change([name], since, version, **content))
        self.position()

    def position(self) -> None:
        self.tokens += 1
        self.out.append(position(f"t{self.tokens}"))

    def serve(self, request: dict[str, Any]) -> None:
        """Answer a `subscribe`."""
        if "since" not in request:
            self.begin()
            return
        for name in sorted({*self.held, *self.entries}):
            self.tell(name)
        self.position()

    def edit(self, version: int, name: str, *, inside: bool) -> None:
        """Append to an entry's list, or to the list that is its last item."""
        data = orjson.loads(orjson.dumps(self.entries[name][1]))
        items = data["list"]
        inside = inside and isinstance(items[-1], list)
        patch = add(f"/list/{len(items) - 1}/-" if inside else "/list/-", version if inside else [version])
        self.entries[name] = (version, json_patch.apply(data, orjson.loads(orjson.dumps(patch))))
        self.tell(name, patch)

    def act(self, act: str, name: str, version: int) -> None:
        """Something happens to an entry."""
        match act:
            case "write":
                self.entries[name] = (version, {"list": [version]})
                self.tell(name)
            case "append" | "nest" if name in self.entries:
                self.edit(version, name, inside=act == "nest")
            case "erase":
                self.entries.pop(name, None)
                self.tell(name)
            case "invalidate" if self.connected and name in self.held:
                self.out += [invalidated([name])]
                self.position()
            case "reset" if self.connected and name in self.entries:
                self.out += [{"type": "reset", "key": [name]}, snapshot([name], *self.entries[name])]
                self.held[name] = self.entries[name][0]
                self.position()


NAMES = st.sampled_from(["a", "b", "c"])
ACTS = st.one_of(
    st.tuples(st.sampled_from(["write", "append", "nest", "erase", "invalidate", "reset"]), NAMES),
    st.tuples(st.sampled_from(["reset all", "misfit", "cut", "back"]), st.just("")),
    st.tuples(st.just("take"), st.sampled_from(["1", "2", "4"])),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["data", "patch"]), st.integers(1, 4), st.lists(ACTS, max_size=60))
def test_a_consumer_ends_with_what_the_server_holds(mode: Any, backlog: int, acts: list[tuple[str, str]]) -> None:
    server = Server(mode)
    subscription = Subscription([], prefix=True, mode=mode, backlog=backlog)
    consumer = Consumer(mode)

    def deliver() -> None:
        # A frame is text: what one side edits the other does not see.
        out, server.out = orjson.loads(orjson.dumps(server.out)), []
        for message in out:
            assert subscription.receive(message)
        # Bounded by the backlog, one for each key beyond, and the two that concern none.
        assert len(subscription) <= backlog + 3 + 2

    server.serve(subscription.request(1))
    deliver()
    for version, (act, argument) in enumerate([*acts, ("back", "")], start=10):
        match act:
            case "reset all" if server.connected:
                server.out += [RESET, position("void")]
                server.begin()
            case "misfit" if server.connected:
                assert not subscription.receive(change(["a"], 1, 1_000_000, data=0))
                server.serve(subscription.request(1))
            case "cut":
                server.connected = False
            case "back" if not server.connected:
                server.connected = True
                server.serve(subscription.request(1))
            case "take":
                for _ in range(int(argument)):
                    if (taken_one := subscription.take()) is not None:
                        consumer.take(taken_one)
            case _:
                server.act(act, argument, version)
        deliver()
    for each in taken(subscription):
        consumer.take(each)
    assert consumer.entries == {f'["{name}"]': entry for name, entry in server.entries.items()}
    consumer.check_nothing_was_edited()
