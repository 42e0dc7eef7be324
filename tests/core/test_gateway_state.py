"""The gateway machine against a shard played by hand: whole frames, whole effect lists."""

from typing import Any

import orjson
import pytest

from cluster.core import gateway_state, template
from cluster.core.degradation import CALM_MS, DRAIN_MS, LOOK_MS, STALL_MS, STEP_MS, Step
from cluster.core.gateway_state import IDS_PER_MS, Close, Concerns, Deliver, GatewayState, Respond
from cluster.core.grants import Grants, Principal
from cluster.core.messages import (
    Absent,
    Act,
    Announce,
    Answered,
    Answers,
    Change,
    ChangeSet,
    ChangeSetTaken,
    EntryView,
    Failure,
    Full,
    Header,
    Matched,
    Meta,
    Missed,
    MissedKeys,
    Noted,
    PresenceResume,
    Read,
    Ready,
    Rebalance,
    Refused,
    Removed,
    Requests,
    Reset,
    Send,
    ServiceState,
    Snapshot,
    SourceStates,
    Unwatch,
    Watch,
    Write,
    Written,
)
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.position import Tokens, scope_of
from cluster.core.presence_room import Pattern
from cluster.core.query_key import CanonicalKey
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError, UnavailableError
from tests.in_process import TOKENS

FIRST = 9 * IDS_PER_MS
"""The ids of requests of this life come after it."""
A, B = '["a"]', '["a","b"]'
EPOCH = 3


def view(key: str, version: int, data: Any, **more: Any) -> EntryView:
    return EntryView(key, version, None if data is None else orjson.dumps(data), 50, "success", "idle", **more)


class Played:
    """One shard, played by the test."""

    def __init__(self, concerns: Concerns | None = None, *, life: int = 9) -> None:
        self.now_ms = 1000.0
        self.state = GatewayState(
            "gateway-0", life, slots=SlotMap(1, (0,) * 1024), shards=1, tokens=TOKENS, concerns=concerns
        )
        self.sequence = 0
        self.life = 20
        self.offset = 100
        self.effects: list[Any] = []

    def note(self, effects: Any) -> list[Any]:
        self.effects.extend(effects)
        return list(effects)

    def requests(self) -> list[Any]:
        """Answer what the gateway has asked, and return it."""
        asked: list[Any] = []
        while sends := [effect for effect in self.effects if isinstance(effect, Send)]:
            self.effects = [effect for effect in self.effects if not isinstance(effect, Send)]
            (send,) = sends
            asked.extend(send.message.items)
            answer = Answers(self.life, EPOCH, [])
            self.note(self.state.answered("shard-0", send.message, answer, self.now_ms))
        return asked

    def send(self, *items: Any, offset: int | None = None, epoch: int = EPOCH) -> Any:
        self.sequence += 1
        self.offset += 1
        header = Header("shard-0", self.life, 0 if self.sequence == 1 else 9, self.sequence)
        message = ChangeSet(header, epoch, self.offset if offset is None else offset, 0.0, list(items))
        answer, effects = self.state.change_set(message, self.now_ms)
        self.note(effects)
        return answer

    def session(self, name: str = "s", **more: Any) -> Any:
        return self.state.open_session(name, **more)

    def subscribe(self, session: Any, name: bytes = b"1", key: str = A, **more: Any) -> None:
        options = {"prefix": False, "mode": "data", "since": None, **more}
        if options["since"] is not None:
            scope = session.scope or scope_of([(key, options["prefix"])])
            options["since"] = TOKENS.position(scope, options["since"].items()).decode()
        self.note(self.state.subscribe(session, name, key, now_ms=self.now_ms, **options))  # type: ignore[arg-type]

    def watch(self) -> int:
        return next(each.id for each in self.requests() if isinstance(each, Watch))

    def tick(self, ms: float = 20.0) -> None:
        self.now_ms += ms
        self.note(self.state.wake(self.now_ms))

    def read(self, session: Any) -> Any:
        frame, effects = self.state.take(session, self.now_ms)
        self.note(effects)
        self.state.written(session, self.now_ms)
        return frame if frame is None or session.server_sent else orjson.loads(frame)

    @property
    def token(self) -> str:
        """Of a subscription to A."""
        return self.token_of()

    def token_of(self, *interests: tuple[str, bool], offset: int | None = None) -> str:
        """Of these keys and prefixes, where the shard stands, or at an offset; 0: one that begins again."""
        positions = [] if offset == 0 else [(0, (EPOCH, self.offset if offset is None else offset))]
        return TOKENS.position(scope_of(interests or [(A, False)]), positions).decode()

    def live(self, **more: Any) -> Any:
        """A session with a subscription to A, at version 5."""
        session = self.session()
        self.subscribe(session, **more)
        self.send(Snapshot(self.watch(), view(A, 5, {"n": 5})))
        self.read(session)
        return session


def change(from_version: int, version: int, data: Any = None, patch: Any = None, key: str = A) -> Change:
    return Change(
        key,
        from_version,
        version,
        None if data is None else orjson.dumps(data),
        None if patch is None else orjson.dumps(patch),
        1,
        60,
    )


def test_the_first_subscription_watches_and_the_last_ends_it() -> None:
    played = Played()
    first, second = played.session("s1"), played.session("s2")
    played.subscribe(first)
    played.subscribe(second, b'"x"')
    assert played.requests() == [Watch(FIRST + 1, A, prefix=False)]
    played.send(Snapshot(FIRST + 1, view(A, 5, {"n": 5})))
    assert played.read(first) == [
        {
            "sub": 1,
            "type": "snapshot",
            "key": ["a"],
            "version": 5,
            "data": {"n": 5},
            "data_updated_at": 50,
            "status": "success",
            "is_stale": False,
            "is_offline": False,
        },
        {"sub": 1, "type": "snapshot_end", "position": played.token},
    ]
    played.state.unsubscribe(first, b"1", played.now_ms)
    assert played.requests() == []
    played.note(played.state.close_session("s2", played.now_ms))
    assert played.requests() == [Unwatch(FIRST + 1)]
    assert played.state.replicas == {}
    assert played.read(first) is None


def test_a_second_subscriber_is_served_from_the_replica() -> None:
    played = Played()
    played.live()
    late = played.session("late")
    played.subscribe(late)
    assert played.requests() == []
    assert [message["type"] for message in played.read(late)] == ["snapshot", "snapshot_end"]


def test_a_change_is_one_frame_after_the_tick() -> None:
    played = Played()
    session = played.live()
    played.send(change(5, 6, data={"n": 6}))
    played.send(change(6, 7, data={"n": 7}))
    assert played.read(session) is None
    assert played.state.deadline() == played.now_ms + gateway_state.SETTLE_MS
    played.tick()
    assert played.read(session) == [
        {"sub": 1, "type": "change", "key": ["a"], "from": 5, "version": 7, "data": {"n": 7}, "coalesced": 2},
        {"sub": 1, "type": "position", "token": played.token},
    ]


def test_patches_join_until_they_are_longer_than_the_value() -> None:
    played = Played()
    session = played.live(mode="patch")
    add = {"op": "add", "path": "/m", "value": 1}
    played.send(change(5, 6, patch=[add]))
    played.send(change(6, 7, data={"n": 5, "m": 2, "filler": "x" * 100}))
    played.tick()
    (got, _) = played.read(session)
    assert got["patch"] == [{"op": "replace", "path": "", "value": {"n": 5, "m": 2, "filler": "x" * 100}}]
    step = {"op": "replace", "path": "/m", "value": 3}
    played.send(change(7, 8, patch=[step]))
    played.send(change(8, 9, patch=[add]))
    played.tick()
    (got, _) = played.read(session)
    assert (got["from"], got["version"], got["patch"]) == (7, 9, [step, add])
    for version in range(9, 30):
        played.send(change(version, version + 1, patch=[step]))
    played.tick()
    (got, _) = played.read(session)
    assert got["patch"][0]["path"] == ""
    assert got["coalesced"] == 21


def test_an_old_change_is_dropped_and_a_patch_onto_nothing_starts_over() -> None:
    played = Played()
    session = played.live(mode="patch")
    played.send(change(4, 5, patch=[{"op": "add", "path": "/m", "value": 1}]))
    played.tick()
    assert played.read(session) is None
    played.send(change(6, 7, patch=[{"op": "add", "path": "/m", "value": 1}]))
    assert played.read(session) is None
    (send,) = [effect for effect in played.effects if isinstance(effect, Send)]
    assert send.message.header == Header("gateway-0", 9, 0, 1, 1)
    assert send.message.items == [Watch(FIRST + 2, A, prefix=False)]


def test_a_split_change_set_is_applied_when_it_is_whole() -> None:
    played = Played()
    session = played.live()
    before = played.token
    played.send(change(5, 6, data=6), offset=-1)
    played.tick()
    assert played.read(session) is None
    assert played.state.replicas[A].version == 5
    played.send(change(6, 7, data=7))
    played.tick()
    (got, position) = played.read(session)
    assert (got["from"], got["version"]) == (5, 7)
    assert position["token"] == played.token != before


def test_a_repeated_set_is_not_applied_and_a_strangers_is_refused() -> None:
    played = Played()
    session = played.live()
    message = ChangeSet(Header("shard-0", 20, 9, 2), EPOCH, 102, 0.0, [change(5, 6, data=6)])
    for _ in range(2):
        assert played.state.change_set(message, played.now_ms)[0] == ChangeSetTaken(9)
    assert played.state.change_set(ChangeSet(Header("shard-0", 20, 8, 3), EPOCH, 103, 0.0, []), 0.0)[0] == Refused(9)
    played.tick()
    assert [message["type"] for message in played.read(session)] == ["change", "position"]
    played.tick()
    assert played.read(session) is None


def test_removal_and_what_comes_after_it() -> None:
    played = Played()
    session = played.live()
    played.send(Removed(A, 8))
    played.tick()
    assert played.read(session)[0] == {"sub": 1, "type": "removed", "key": ["a"], "version": 8}
    played.send(change(0, 9, data=1))
    played.tick()
    assert played.read(session)[0]["from"] == 0
    played.send(Removed(A, 11), change(0, 12, data=2))  # within one tick
    played.tick()
    (got, _) = played.read(session)
    assert (got["type"], got["from"], got["version"]) == ("change", 9, 12)


def test_an_absent_entry_has_only_an_end() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session)
    played.send(Absent(played.watch()))
    assert played.read(session) == [{"sub": 1, "type": "snapshot_end", "position": played.token}]


def test_a_pending_entry_and_its_failure() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session)
    played.send(Snapshot(played.watch(), EntryView(A, 0, None, 0, "pending", "fetching")))
    (snapshot, _) = played.read(session)
    assert (snapshot["version"], snapshot["status"], "data" in snapshot) == (0, "pending", False)
    played.send(Meta(A, "error", "idle", False, None, ("UPSTREAM_ERROR", "it is down"), False))
    played.tick()
    (snapshot, _) = played.read(session)
    assert (snapshot["type"], snapshot["status"]) == ("snapshot", "error")
    assert snapshot["error"] == {"code": "UPSTREAM_ERROR", "message": "it is down", "temporary": True}
    played.send(change(0, 9, data=1))
    played.tick()
    assert (played.read(session)[0]["from"], played.state.replicas[A].status) == (0, "success")


def test_invalidation_and_reset_of_an_entry_are_told() -> None:
    played = Played()
    session = played.live()
    played.send(Meta(A, "success", "fetching", True, 50, None, True))
    played.tick()
    assert played.read(session)[0] == {"sub": 1, "type": "invalidated", "key": ["a"]}
    played.send(Reset(view(A, 6, {"n": 6})))
    played.tick()
    messages = played.read(session)
    assert [message["type"] for message in messages] == ["reset", "snapshot", "position"]
    assert (messages[0]["key"], messages[1]["version"]) == (["a"], 6)


def test_a_prefix_is_complete_when_its_shard_is_ready() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session, prefix=True)
    watch = played.watch()
    played.send(Snapshot(watch, view(A, 5, 1)))
    assert played.read(session) is None
    played.send(Snapshot(watch, view(B, 6, 2)), Ready(watch, 100))
    assert [message["type"] for message in played.read(session)] == ["snapshot", "snapshot", "snapshot_end"]
    played.send(change(0, 9, data=3, key='["a","c"]'), change(0, 9, data=3, key='["other"]'))
    played.tick()
    assert [message.get("key") for message in played.read(session)] == [["a", "c"], None]


def test_a_change_for_an_ended_watch_does_not_leave_a_ghost() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session, prefix=True)
    watch = played.watch()
    played.send(change(0, 90, data="old", key=B))  # its removal was dropped with the watch before
    played.send(change(0, 120, data="new", key='["a","new"]'))
    played.send(Snapshot(watch, view(A, 5, 1)), Ready(watch, 100))
    assert [message.get("key") for message in played.read(session)] == [["a", "new"], ["a"], None]


def test_a_snapshot_comes_in_pieces_and_changes_of_what_was_sent_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "CHUNK_BYTES", 10)
    played = Played()
    session = played.session()
    played.subscribe(session, prefix=True)
    watch = played.watch()
    played.send(Snapshot(watch, view(A, 5, 1)), Snapshot(watch, view(B, 6, 2)), Ready(watch, 100))
    assert [message["key"] for message in played.read(session)] == [["a"]]
    played.send(change(5, 6, data=10), change(6, 7, data=20, key=B))
    first = played.read(session)
    assert [(message["type"], message["version"]) for message in first] == [("change", 6)]
    rest = played.read(session)
    assert [(message["type"], message.get("version")) for message in rest] == [("snapshot", 7), ("snapshot_end", None)]
    assert played.read(session) is None


def test_a_socket_that_is_full_folds_and_is_in_step_again() -> None:
    played = Played()
    session = played.live()
    played.send(change(5, 6, data=6))
    played.tick()
    frame, _ = played.state.take(session, played.now_ms)  # and it is not written
    assert frame is not None
    for version in range(6, 9):
        played.send(change(version, version + 1, data=version + 1))
        played.tick()
    played.state.written(session, played.now_ms)
    (got, position) = played.read(session)
    assert (got["from"], got["version"], got["coalesced"]) == (6, 9, 3)
    assert position["token"] == played.token


class Slow:
    """A session whose socket has a frame that it does not take."""

    def __init__(self, **more: Any) -> None:
        self.played = Played()
        self.session = self.played.live(**more)
        self.version = 5
        self.change()
        self.frame = self.take()
        assert self.frame

    def change(self) -> None:
        self.played.send(change(self.version, self.version + 1, data=self.version + 1))
        self.version += 1
        self.played.tick()

    def take(self) -> Any:
        frame, effects = self.played.state.take(self.session, self.played.now_ms)
        self.played.note(effects)
        return None if frame is None else orjson.loads(frame)

    def written(self) -> None:
        self.played.note(self.played.state.written(self.session, self.played.now_ms))

    def look(self, ms: float, unsent: int = 5_000) -> list[Any]:
        effects: list[Any] = []
        for _ in range(round(ms / LOOK_MS)):
            self.played.now_ms += LOOK_MS
            effects.extend(self.played.state.look(self.played.now_ms, lambda _: unsent))
        return effects


def test_a_socket_that_takes_nothing_folds_then_keeps_nothing_then_is_closed() -> None:
    slow = Slow()
    state = slow.played.state
    assert state.is_slowed
    slow.look(LOOK_MS + STEP_MS)
    slow.change()
    assert state.degraded() == {"250ms": 1, "1000ms": 0, "drain": 0}
    assert state.outbox_bytes() > slow.session.frame_bytes > 0
    slow.look(STEP_MS)
    assert state.degraded() == {"250ms": 0, "1000ms": 1, "drain": 0}
    assert slow.look(DRAIN_MS - 2 * STEP_MS) == [Deliver("s")]
    assert state.degraded() == {"250ms": 0, "1000ms": 0, "drain": 1}
    slow.change()
    assert state.outbox_bytes() == slow.session.frame_bytes, "nothing waits but the fact"
    assert slow.look(STALL_MS - DRAIN_MS - LOOK_MS) == []
    assert slow.look(LOOK_MS) == [Close("s", 3008, "too slow")]
    slow.played.note(state.close_session("s", slow.played.now_ms))
    assert state.degraded() == {"250ms": 0, "1000ms": 0, "drain": 0}
    assert not state.is_slowed
    assert state.outbox_bytes() == 0


def test_who_drains_gets_a_reset_and_a_new_snapshot_and_then_exact_changes() -> None:
    slow = Slow()
    slow.look(LOOK_MS + DRAIN_MS)
    slow.change()
    slow.written()
    notice, reset, snapshot, end = slow.take()
    assert (notice["code"], notice["level"], notice["window_ms"], notice["step"]) == ("degraded", "warning", 1_000, 2)
    assert (reset["type"], snapshot["type"], snapshot["version"]) == ("reset", "snapshot", 7)
    assert end["position"] == slow.played.token
    slow.written()
    slow.change()
    assert slow.take() is None, "a second has to pass"
    assert slow.played.state.deadline() is not None
    slow.played.effects.clear()
    slow.played.tick(1_000.0)
    assert Deliver("s") in slow.played.effects
    (got, _) = slow.take()
    assert (got["from"], got["version"]) == (7, 8)
    slow.written()
    slow.look(CALM_MS)
    (notice,) = slow.take()
    assert (notice["window_ms"], notice["step"]) == (250, 1)
    slow.written()
    assert Deliver("s") in slow.look(CALM_MS)
    (notice,) = slow.take()
    assert (notice["level"], notice["window_ms"], notice["step"]) == ("success", 100, 0)
    slow.written()
    assert not slow.played.state.is_slowed
    slow.change()
    assert [each["type"] for each in slow.take()] == ["change", "position"]


def test_answers_do_not_wait_for_a_degraded_sessions_window() -> None:
    slow = Slow()
    slow.look(LOOK_MS + STEP_MS)
    slow.written()
    slow.take()
    slow.written()
    slow.change()
    slow.take()
    slow.written()
    slow.change()
    slow.played.note(slow.played.state.say(slow.session, b'{"type":"pong"}'))
    assert slow.take() == [{"type": "pong"}]


def test_a_subscription_made_while_nothing_is_kept_begins_when_the_socket_drains() -> None:
    slow = Slow()
    slow.look(LOOK_MS + DRAIN_MS)
    slow.played.subscribe(slow.session, b"2", B)
    slow.played.send(Snapshot(slow.played.watch(), view(B, 3, 3)))
    slow.written()
    kinds = [(each.get("sub"), each["type"]) for each in slow.take()]
    assert kinds[1:] == [(1, "reset"), (1, "snapshot"), (1, "snapshot_end"), (2, "snapshot"), (2, "snapshot_end")]


def test_an_event_stream_is_degraded_too() -> None:
    played = Played()
    session = played.session(server_sent=True, scope=scope_of([(A, False)]))
    played.subscribe(session, b"0", A)
    played.send(Snapshot(played.watch(), view(A, 5, 1)))
    assert played.state.take(session, played.now_ms)[0]
    for _ in range(40):
        played.now_ms += LOOK_MS
        played.state.look(played.now_ms, lambda _: 7)
    played.note(played.state.written(session, played.now_ms))
    text = played.read(session)
    assert text.startswith(b'event: notice\ndata: {"level":"warning","code":"degraded"')
    assert b"event: reset\ndata: {}\n\nevent: snapshot\n" in text
    assert text.endswith(b"id: %b\n\n" % played.token.encode())


def test_a_degraded_event_stream_is_told_at_once_that_it_ends() -> None:
    played = Played()
    ann = Principal("ann", Grants(read=[[]]), expires_ms=played.now_ms + 20_000.0)
    session = played.session(server_sent=True, scope=scope_of([(A, False)]), principal=ann, now_ms=played.now_ms)
    played.subscribe(session, b"0", A)
    played.send(Snapshot(played.watch(), view(A, 5, 1)))
    assert played.state.take(session, played.now_ms)[0]
    for _ in range(5):
        played.now_ms += LOOK_MS
        played.state.look(played.now_ms, lambda _: 7)
    played.note(played.state.written(session, played.now_ms))
    played.send(change(5, 6, data=6))
    played.tick()
    assert b"event: change" in played.read(session)
    session.due_ms = ann.expires_ms + 1_000.0
    played.send(change(6, 7, data=7))
    played.now_ms = ann.expires_ms
    played.tick(0.0)
    assert Close("s", 3500, "the token has expired") in played.effects
    text = played.read(session)
    assert b"the token has expired" in text
    assert b"event: change" not in text
    assert played.state.say(session, b'{"type":"drain"}') == []


def test_a_session_ends_as_soon_as_the_wall_clock_is_seen_to_be_past_its_token() -> None:
    played = Played()
    ann = Principal("ann", Grants(read=[[]]), expires_ms=played.now_ms + 3_600_000.0)
    played.session(principal=ann, now_ms=played.now_ms)
    assert [
        each for each in played.state.set_wall(played.now_ms + 3_599_999.0, played.now_ms) if isinstance(each, Close)
    ] == []
    assert played.state.deadline() == played.now_ms + 1.0
    assert Close("s", 3500, "the token has expired") in played.state.set_wall(
        played.now_ms + 3_600_000.0, played.now_ms
    )
    assert played.state.ended == {"expired": 1}


def test_what_waits_for_a_session_is_bounded() -> None:
    slow = Slow()
    slow.played.state.outbox_limit = 2_000
    for key in (chr(ord("b") + n) for n in range(20)):
        slow.played.subscribe(slow.session, b'"%b"' % key.encode(), f'["{key}"]')
        slow.played.send(Snapshot(slow.played.watch(), view(f'["{key}"]', 5, 1)))
    slow.written()
    while slow.take():
        slow.written()
    slow.change()
    assert slow.take()
    slow.look(2 * LOOK_MS)
    for key in (chr(ord("b") + n) for n in range(20)):
        slow.played.send(change(5, 6, data=2, key=f'["{key}"]'))
        slow.played.tick()
        assert slow.session.waiting_bytes() < 4_000 + slow.session.frame_bytes
    assert slow.session.step is Step.ON_DRAIN
    assert slow.session.waiting_bytes() == slow.session.frame_bytes
    slow.written()
    kinds = {each["type"] for each in slow.take()}
    assert kinds == {"notice", "reset", "snapshot", "snapshot_end"}


def test_what_is_paused_for_long_begins_anew_when_it_would_take_too_much() -> None:
    played = Played()
    session = played.live(mode="patch")
    played.state.outbox_limit = 1_000
    played.note(played.state.pause(session, b"1", played.now_ms))
    for version in range(5, 60):
        played.send(change(version, version + 1, patch=[{"op": "replace", "path": "/n", "value": "x" * 40}]))
        played.tick()
        assert session.waiting_bytes() <= 1_100
    played.note(played.state.resume(session, b"1", played.now_ms))
    assert [each["type"] for each in played.read(session)] == ["reset", "snapshot", "snapshot_end"]


def test_more_than_a_frame_holds_comes_in_pieces_of_which_none_can_be_gone_on_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_state, "PIECE_BYTES", 1)
    monkeypatch.setattr(gateway_state, "CHUNK_BYTES", 1)
    played = Played()
    session = played.session()
    played.subscribe(session, prefix=True)
    played.send(Snapshot(watch := played.watch(), view(A, 5, 1)), Snapshot(watch, view(B, 5, 1)), Ready(watch, 100))
    while played.read(session):
        pass
    played.state.outbox_limit = 200
    played.send(change(5, 6, data="x" * 150), change(5, 6, data="x" * 150, key=B))
    played.tick()
    scope = (A, True)
    assert [(each["type"], each.get("token")) for each in played.read(session)] == [
        ("change", None),
        ("position", played.token_of(scope, offset=0)),
    ]
    assert [(each["type"], each.get("token")) for each in played.read(session)] == [
        ("change", None),
        ("position", played.token_of(scope)),
    ]
    assert played.read(session) is None


def test_pause_and_resume() -> None:
    played = Played()
    session = played.live()
    played.note(played.state.pause(session, b"1", played.now_ms))
    played.send(change(5, 6, data=6))
    played.send(change(6, 7, data=7))
    played.tick()
    assert played.read(session) is None
    played.note(played.state.resume(session, b"1", played.now_ms))
    (got, _) = played.read(session)
    assert (got["from"], got["version"]) == (5, 7)


def test_subscribers_in_step_share_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played()
    sessions = [played.live()]
    for n in range(3):
        sessions.append(played.session(f"s{n}"))
        played.subscribe(sessions[-1])
        played.read(sessions[-1])
    encoded: list[Any] = []
    encode = gateway_state.encode
    monkeypatch.setattr(gateway_state, "encode", lambda *args: encoded.append(args) or encode(*args))
    played.send(change(5, 6, data=6))
    played.tick()
    assert len(encoded) == 1
    texts = [session.out[0] for session in sessions]
    assert all(text is texts[0] for text in texts)


def test_a_client_that_comes_back_is_told_what_it_missed() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session, prefix=True, since={0: (EPOCH, 90)})
    watch = played.watch()
    played.send(Snapshot(watch, view(A, 7, 1)), Snapshot(watch, view(B, 8, 2)), Ready(watch, 100))
    (missed,) = played.requests()
    assert missed == Missed(missed.id, A, True, EPOCH, 90)
    played.send(change(8, 9, data=3, key=B))  # the client has this one: it comes from a gateway that was ahead
    played.send(MissedKeys(missed.id, reset=False, keys=[(A, 5), ('["a","gone"]', 4), ('["a","brief"]', 0)]))
    messages = played.read(session)
    assert [(m["type"], m.get("from"), m.get("version")) for m in messages] == [
        ("change", 5, 7),
        ("removed", None, 5),
        ("position", None, None),
    ]
    assert played.state.resumes == {"resumed": 1}


def test_a_client_that_missed_nothing_gets_a_position() -> None:
    played = Played()
    played.live()
    again = played.session("again")
    played.subscribe(again, since={0: (EPOCH, 90)})
    (missed,) = played.requests()
    played.send(MissedKeys(missed.id, reset=False, keys=[]))
    assert played.read(again) == [{"sub": 1, "type": "position", "token": played.token}]


def test_a_client_that_missed_too_much_is_reset() -> None:
    played = Played()
    played.live()
    again = played.session("again")
    played.subscribe(again, since={})
    (missed,) = played.requests()
    assert (missed.epoch, missed.offset) == (-1, 0)
    played.send(MissedKeys(missed.id, reset=True, keys=[]))
    assert [message["type"] for message in played.read(again)] == ["reset", "snapshot", "snapshot_end"]


def test_only_a_token_for_this_very_key_or_prefix_is_gone_on_from() -> None:
    played = Played()
    session = played.session()
    given = played.token_of((A, False))
    flipped = given[:-5] + ("A" if given[-5] != "A" else "B") + given[-4:]
    wrong = [
        flipped,
        played.token_of((B, False)),
        played.token_of((A, True)),
        "p1.0-3-64",
        Tokens("a secret of the tests", "x").position(b"").decode(),
    ]
    for token in wrong:
        with pytest.raises(HarborError, match="not a position token") as refused:
            played.state.subscribe(session, b"1", CanonicalKey(A), prefix=False, mode="data", since=token, now_ms=1.0)
        assert refused.value.code == "BAD_REQUEST"
    assert played.effects == []
    assert session.subscriptions == {}
    assert played.state.subscribe(session, b"1", CanonicalKey(A), prefix=False, mode="data", since=given, now_ms=1.0)


def test_who_may_not_read_learns_nothing_of_his_token() -> None:
    played = Played()
    session = played.session(principal=Principal("bob", Grants()))
    for token in (played.token, "p1.0-3-64"):
        with pytest.raises(HarborError, match="read") as refused:
            played.state.subscribe(session, b"1", CanonicalKey(A), prefix=False, mode="data", since=token, now_ms=1.0)
        assert refused.value.code == "FORBIDDEN"


def renewed(played: Played, *, since: int = 30) -> int:
    """Have the shard live anew; the gateway's new watch."""
    answer, effects = played.state.announce(Announce("shard-0", since), played.now_ms)
    assert answer == Noted(9)
    played.note(effects)
    played.life, played.sequence, played.offset = since, 0, 500
    return played.watch()


def test_clients_go_on_over_a_new_life_of_a_shard() -> None:
    played = Played()
    session = played.live()
    watch = renewed(played)
    assert played.read(session) is None
    assert played.state.replicas == {}
    played.send(Snapshot(watch, view(A, 501, 1)))
    change_, _ = played.read(session)
    assert (change_["type"], change_["from"], change_["version"], change_["data"]) == ("change", 5, 501, 1)
    assert played.state.announce(Announce("shard-0", 30), played.now_ms)[1] == []  # heard before
    played.send(change(501, 502, data=2))
    played.tick()
    assert [message.get("from") for message in played.read(session)] == [501, None]


def test_a_shard_that_has_what_it_had_is_no_news() -> None:
    played = Played()
    session = played.live(mode="patch")
    watch = renewed(played)
    played.send(Snapshot(watch, view(A, 5, {"n": 5})))
    played.tick()
    assert played.read(session) is None
    played.send(change(5, 6, patch=[{"op": "add", "path": "/m", "value": 1}]))
    played.tick()
    (got, _) = played.read(session)
    assert (got["from"], got["version"]) == (5, 6)


def test_what_waited_to_be_written_still_is() -> None:
    played = Played()
    session = played.live(mode="patch")
    played.state.pause(session, b"1", played.now_ms)
    played.send(change(5, 6, patch=[{"op": "add", "path": "/m", "value": 1}]))
    played.tick()
    watch = renewed(played)
    played.send(Snapshot(watch, view(A, 7, {"m": 2})))
    played.note(played.state.resume(session, b"1", played.now_ms))
    (got, _) = played.read(session)
    assert (got["from"], got["version"]) == (5, 7)
    assert got["patch"] == [{"op": "replace", "path": "", "value": {"m": 2}}]


@pytest.mark.parametrize("now", [4, 0, None], ids=["older", "without data", "gone"])
def test_a_shard_that_lost_what_it_had_resets_whom_it_concerns(now: int | None) -> None:
    played = Played()
    session = played.live()
    watch = renewed(played)
    played.send(Absent(watch) if now is None else Snapshot(watch, view(A, now, 4)))
    assert next(message["type"] for message in played.read(session)) == "reset"


def test_a_shard_that_dies_again_meanwhile_changes_nothing() -> None:
    played = Played()
    session = played.live()
    renewed(played)
    watch = renewed(played, since=40)
    played.send(Snapshot(watch, view(A, 501, 1)))
    assert [message.get("from") for message in played.read(session)] == [5, None]


def test_who_comes_back_while_a_shard_is_away_goes_on_with_its_next_life() -> None:
    played = Played()
    played.live()
    again = played.session("again")
    played.subscribe(again, since={0: (EPOCH, 90)})
    (asked,) = played.requests()
    watch = renewed(played)
    late = MissedKeys(asked.id, reset=False, keys=[])  # of the life before
    played.send(Snapshot(watch, view(A, 501, 1)), late)
    missed = next(each for each in played.requests() if isinstance(each, Missed))
    assert missed == Missed(missed.id, A, False, EPOCH, 90)
    assert played.read(again) is None
    played.send(MissedKeys(missed.id, reset=False, keys=[(A, 4)]))
    got = [(message["type"], message.get("from"), message.get("version")) for message in played.read(again)]
    assert got == [("change", 4, 501), ("position", None, None)]


def test_a_shard_that_starts_its_link_over_unasked_is_watched_anew() -> None:
    played = Played()
    session = played.live()
    played.sequence, played.life = 0, 21
    played.send(change(6, 7, data=7))
    assert played.read(session) is None
    played.sequence, played.life = 0, 22  # its answer to the gateway's starting over
    watch = played.watch()
    played.send(Snapshot(watch, view(A, 7, 7)))
    assert [message["type"] for message in played.read(session)] == ["change", "position"]


def test_a_silent_shard_is_asked_whether_it_knows_us() -> None:
    played = Played()
    played.live()
    assert played.state.deadline() == played.now_ms + gateway_state.SILENCE_MS
    played.tick(gateway_state.SILENCE_MS)
    (send,) = [effect for effect in played.effects if isinstance(effect, Send)]
    assert send.message.items == []
    played.effects.clear()
    played.note(played.state.answered("shard-0", send.message, Refused(30), played.now_ms))
    (send,) = [effect for effect in played.effects if isinstance(effect, Send)]
    assert send.message.items == [Watch(FIRST + 2, A, prefix=False)]


def test_requests_gather_while_one_call_is_in_flight() -> None:
    played = Played()
    played.note(played.state.request(1, A, lambda n: Read(n, A), played.now_ms))  # type: ignore[arg-type]
    for ticket in (2, 3):
        played.note(played.state.request(ticket, A, lambda n: Read(n, A), played.now_ms))  # type: ignore[arg-type]
    (send,) = played.effects
    assert send.message.items == [Read(FIRST + 1, A)]
    effects = played.state.answered(
        "shard-0", send.message, Answers(20, EPOCH, [(FIRST + 1, view(A, 1, 1))]), played.now_ms
    )
    assert effects[0] == Respond(1, [view(A, 1, 1)])
    assert effects[1].message.items == [Read(FIRST + 2, A), Read(FIRST + 3, A)]
    played.note(effects)
    played.send(Answered(FIRST + 3, Failure("NOT_FOUND", "no")))
    assert played.effects[-1] == Respond(3, [Failure("NOT_FOUND", "no")])


def test_what_a_life_before_asked_for_answers_nothing_of_this_one() -> None:
    before, played = Played(life=8), Played()
    (asked,) = before.note(before.state.request(1, A, lambda n: Read(n, A), before.now_ms))  # type: ignore[arg-type]
    played.note(played.state.request(1, A, lambda n: Read(n, A), played.now_ms))  # type: ignore[arg-type]
    played.effects.clear()
    played.send(Answered(asked.message.items[0].id, view('["another"]', 1, "of somebody else")))
    assert played.effects == []


def test_a_call_without_an_answer_is_sent_again_as_it_was() -> None:
    played = Played()
    played.note(played.state.request(1, A, lambda n: Read(n, A), played.now_ms))  # type: ignore[arg-type]
    (send,) = played.effects
    assert played.state.unanswered("shard-0", send.message, played.now_ms) == []
    played.effects.clear()
    played.tick(gateway_state.RETRY_MS)
    assert played.effects == [send]
    assert played.state.answered("shard-0", send.message, Full(40.0), played.now_ms) == []
    assert played.state.deadline() == played.now_ms + 40.0


def test_requests_that_a_refusal_lost_are_asked_again() -> None:
    played = Played()
    played.note(played.state.request(1, A, lambda n: Write(n, "w", A, b"1"), played.now_ms))  # type: ignore[arg-type]
    (send,) = played.effects
    (again,) = played.state.answered("shard-0", send.message, Refused(30), played.now_ms)
    assert again.message.items == [Write(FIRST + 1, "w", A, b"1")]
    assert again.message.header.receiver == 0


def test_a_request_is_given_up_in_time() -> None:
    played = Played()
    played.note(played.state.request(1, A, lambda n: Read(n, A), played.now_ms))  # type: ignore[arg-type]
    played.effects.clear()
    played.tick(gateway_state.REQUEST_MS)
    assert played.effects == [Respond(1, [Failure("TIMEOUT", "the shard did not answer in time")])]


def test_reads_come_from_the_replica_but_not_from_before_a_write() -> None:
    played = Played()
    played.live()
    now_ms = played.now_ms
    assert played.state.local(A, now_ms) is played.state.replicas[A]
    played.note(played.state.request(1, A, lambda n: Write(n, "w", A, b"6"), now_ms))  # type: ignore[arg-type]
    (send,) = [effect for effect in played.effects if isinstance(effect, Send)]
    played.note(played.state.answered("shard-0", send.message, Answers(20, EPOCH, [(FIRST + 2, Written(6))]), now_ms))
    assert played.state.local(A, now_ms) is None
    played.send(change(5, 6, data=6))
    assert played.state.local(A, now_ms) is not None
    played.send(Meta(A, "success", "idle", True, 50, None, True))
    assert played.state.local(A, now_ms) is None


def test_reads_do_not_come_from_before_an_invalidation() -> None:
    played = Played()
    played.live()
    now_ms = played.now_ms
    played.note(played.state.request(1, None, lambda n: Act(n, "invalidate", "[]"), now_ms))
    (send,) = [effect for effect in played.effects if isinstance(effect, Send)]
    played.note(played.state.answered("shard-0", send.message, Answers(20, EPOCH, [(FIRST + 2, Matched(1))]), now_ms))
    assert played.state.local(A, now_ms) is None
    played.send()
    played.send()
    assert played.state.local(A, now_ms) is not None


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "MAX_REQUESTS", 1)
    monkeypatch.setattr(gateway_state, "MAX_SESSIONS", 1)
    played = Played()
    session = played.session()
    played.state.request(1, A, lambda n: Read(n, A), 0.0)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError):
        played.state.request(2, A, lambda n: Read(n, A), 0.0)  # type: ignore[arg-type]
    with pytest.raises(LimitError) as full:
        played.session("another")
    assert (full.value.code, full.value.details) == (ErrorCode.UNAVAILABLE, {"limit": "sessions", "value": 1})
    for n in range(128):
        played.subscribe(session, str(n).encode())
    with pytest.raises(RequestError) as error:
        played.subscribe(session, b"128")
    assert error.value.code is ErrorCode.TOO_MANY
    with pytest.raises(RequestError) as error:
        played.subscribe(session, b"0")
    assert error.value.code is ErrorCode.CONFLICT


def test_an_event_stream_has_one_id_for_all_it_carries() -> None:
    played = Played()
    both = lambda: played.token_of((A, False), (B, False))  # noqa: E731 - of where it stands by then
    session = played.session(server_sent=True, scope=scope_of([(A, False), (B, False)]))
    played.subscribe(session, b"0", A)
    played.subscribe(session, b"1", B)
    first, second = [each.id for each in played.requests()]
    played.send(Snapshot(first, view(A, 5, 1)))
    assert b"id:" not in played.read(session)  # the other snapshot is yet to come
    played.send(Absent(second))
    assert played.read(session) == (
        b'event: snapshot_end\ndata: {"position":"%b"}\nid: %b\n\n'
        % (played.token_of((B, False)).encode(), both().encode())
    )
    played.send(change(5, 6, data=6))
    played.tick()
    assert played.read(session) == (
        b'event: change\ndata: {"key":["a"],"from":5,"version":6,"data":6,"coalesced":1}\nid: %b\n\n' % both().encode()
    )
    played.note(played.state.announce(Announce("shard-0", 30), played.now_ms)[1])
    first, second = [each.id for each in played.requests()]
    played.life, played.sequence = 30, 0
    played.send(Absent(first), Absent(second))
    played.tick()
    assert played.read(session).startswith(b"event: reset\ndata: {}\n\n")


def test_ids_of_watches_that_ended_mean_nothing() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session)
    old = played.watch()
    played.note(played.state.unsubscribe(session, b"1", played.now_ms))
    played.subscribe(session)
    played.send(Snapshot(old, view(A, 5, 1)))
    assert played.read(session) is None
    assert played.state.replicas == {}


def test_who_is_told_to_take_what_is_ready() -> None:
    played = Played()
    played.live()
    played.effects.clear()
    played.send(change(5, 6, data=6))
    assert played.effects == []
    played.tick()
    assert played.effects == [Deliver("s")]


def test_no_message_is_sent_without_need() -> None:
    played = Played()
    played.live()
    played.send()
    assert not any(isinstance(effect, Send) and isinstance(effect.message, Requests) for effect in played.effects)


def test_an_event_streams_id_never_runs_ahead_of_what_was_written() -> None:
    played = Played()
    session = played.session(server_sent=True, scope=scope_of([(A, False), (B, False)]))
    played.subscribe(session, b"0", A)
    played.subscribe(session, b"1", B)
    first, second = [each.id for each in played.requests()]
    played.send(Snapshot(first, view(A, 5, 1)), Snapshot(second, view(B, 5, 1)))
    played.send(change(5, 6, data=6), change(5, 6, data=6, key=B))  # before the tick, while the snapshots wait
    text = played.read(session)
    assert text.count(b"id: ") == 1
    assert text.endswith(b"id: %b\n\n" % played.token_of((A, False), (B, False)).encode())
    assert text.count(b'"version":6') == 2


def kinds(text: bytes) -> list[tuple[str, Any]]:
    """What a piece of an event stream says, of which key; an id is a word of its own."""
    said = []
    for event in text.strip().split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n"))
        said.append((fields[b"event"].decode(), orjson.loads(fields[b"data"]).get("key")))
        if b"id" in fields:
            said.append(("id", None))
    return said


def streamed(played: Played, **more: Any) -> tuple[Any, int, int]:
    """An event stream of A and B, and the watches it has."""
    session = played.session(server_sent=True, scope=scope_of([(A, False), (B, False)]))
    played.subscribe(session, b"0", A, **more)
    played.subscribe(session, b"1", B, **more)
    first, second = [each.id for each in played.requests() if isinstance(each, Watch)]
    return session, first, second


ALL_ANEW = [
    ("reset", None),
    ("snapshot", ["a"]),
    ("snapshot_end", None),
    ("snapshot", ["a", "b"]),
    ("snapshot_end", None),
    ("id", None),
]


def test_an_event_stream_is_told_everything_anew_after_its_one_reset() -> None:
    played = Played()
    session, first, second = streamed(played, since={0: (EPOCH, 50)})
    played.send(Snapshot(first, view(A, 5, 1)), Snapshot(second, view(B, 5, 1)))
    one, other = [each.id for each in played.requests() if isinstance(each, Missed)]
    played.send(MissedKeys(one, reset=True, keys=[]), MissedKeys(other, reset=False, keys=[]))
    assert kinds(played.read(session)) == ALL_ANEW
    assert played.read(session) is None


def test_an_event_stream_that_was_told_one_key_forgets_it_with_the_other() -> None:
    played = Played()
    session, first, second = streamed(played, since={0: (EPOCH, 50)})
    played.send(Snapshot(first, view(A, 5, 1)), Snapshot(second, view(B, 5, 1)))
    one, other = [each.id for each in played.requests() if isinstance(each, Missed)]
    played.send(MissedKeys(one, reset=False, keys=[(A, 4)]))
    assert kinds(played.read(session)) == [("change", ["a"])]
    played.send(MissedKeys(other, reset=True, keys=[]))
    told = kinds(played.read(session))
    assert told[0] == ("reset", None)
    assert sorted(told[1:], key=str) == sorted(ALL_ANEW[1:], key=str)
    played.send(change(5, 6, data=6))
    played.tick()
    assert kinds(played.read(session)) == [("change", ["a"]), ("id", None)]


def test_an_event_stream_waits_with_what_is_whole_for_a_shard_that_lost_its_data() -> None:
    played = Played()
    session, first, second = streamed(played)
    played.send(Snapshot(first, view(A, 5, 1)), Snapshot(second, view(B, 5, 1)))
    played.read(session)
    played.note(played.state.announce(Announce("shard-0", 30), played.now_ms)[1])
    first, second = [each.id for each in played.requests() if isinstance(each, Watch)]
    played.life, played.sequence = 30, 0
    played.send(Snapshot(first, view(A, 2, 2)))
    told = kinds(played.read(session))
    played.send(Snapshot(second, view(B, 2, 2)))
    told += kinds(played.read(session))
    assert told == ALL_ANEW


def test_a_snapshot_that_is_given_up_while_it_is_written_begins_with_its_reset() -> None:
    played = Played()
    session = played.session()
    played.subscribe(session, key="[]", prefix=True)
    watch = played.watch()
    keys = [f'["k",{n}]' for n in range(4)]
    played.send(*(Snapshot(watch, view(key, 5, "x" * 40_000)) for key in keys), Ready(watch, 90))
    assert [message["type"] for message in played.read(session)] == ["snapshot"] * 2
    played.state.outbox_limit = 300
    played.send(*(change(5, 6, data="y", key=key) for key in keys))
    told = [message["type"] for message in played.read(session)]
    assert told == ["reset", *["snapshot"] * 4, "snapshot_end"]


# --- upstreams ---------------------------------------------------------------------------------------------------


class Stub:
    """What begins with "a" depends on the source `events`, what begins with "b" on the service `api`."""

    def source(self, source: str, key: list[Any], *, prefix: bool) -> bool:
        return source == "events" and (key[:1] == ["a"] or (prefix and not key))

    def service(self, service: str, key: list[Any], *, prefix: bool) -> bool:
        return service == "api" and (key[:1] == ["b"] or (prefix and not key))


class TestNotices:
    """What clients are told of sources and services that they depend on."""

    @pytest.fixture
    def played(self) -> Played:
        return Played(Stub())

    def session(self, played: Played, name: str, *keys: str, **more: Any) -> Any:
        session = played.session(name, **more)
        for number, key in enumerate(keys):
            played.subscribe(session, str(number).encode(), key, prefix=key == "[]")
        self.notices(played, session)
        return session

    def notices(self, played: Played, session: Any) -> list[str]:
        """The codes of the notices a session gets."""
        frame = played.read(session)
        if session.server_sent:
            events = [] if frame is None else [event.split(b"\n") for event in frame.strip().split(b"\n\n")]
            lines = [event[1] for event in events if event[0] == b"event: notice"]
            return [orjson.loads(line.removeprefix(b"data: "))["code"] for line in lines]
        return [message["code"] for message in frame or [] if message["type"] == "notice"]

    def say(self, played: Played, number: int, sender: str = "ingestor-0", **states: str) -> list[Any]:
        message = SourceStates(sender, number, list(states.items()))
        answer, effects = played.state.source_states(message, played.now_ms)
        assert answer == Noted(9)
        return played.note(effects)

    def test_of_a_source_are_for_those_it_feeds_and_come_once_each(self, played: Played) -> None:
        concerned = self.session(played, "one", A, B, "[]")
        other = self.session(played, "other", '["b"]')
        streamed = self.session(played, "streamed", A, B, server_sent=True)
        self.say(played, 1, events="connected", prices="connected")
        effects = self.say(played, 2, events="reconnecting", prices="failed")
        assert effects == [Deliver("one"), Deliver("streamed")]
        assert self.notices(played, concerned) == ["source_disconnected"]
        assert self.notices(played, other) == []
        assert self.notices(played, streamed) == ["source_disconnected"]
        assert self.say(played, 3, events="reconnecting") == []
        assert self.say(played, 4, events="connected") == [Deliver("one"), Deliver("streamed")]
        assert [self.notices(played, each) for each in (concerned, streamed)] == [["source_restored"]] * 2

    def test_how_one_looks(self, played: Played) -> None:
        session = self.session(played, "one", A)
        streamed = self.session(played, "streamed", A, server_sent=True)
        self.say(played, 1, events="connected")
        self.say(played, 2, events="failed")
        notice = {
            "level": "error",
            "code": "source_failed",
            "message": "the stream events cannot be reached; it is tried again",
            "source": "events",
        }
        assert played.read(session) == [{"type": "notice", **notice}]
        assert played.read(streamed) == b"event: notice\ndata: " + orjson.dumps(notice) + b"\n\n"

    @pytest.mark.parametrize(
        ("states", "codes"),
        [
            (["connecting", "connected"], []),
            (["connecting", "reconnecting"], []),
            (["connected", "disconnected"], ["source_disconnected"]),
            (["connecting", "failed"], ["source_failed"]),
            (["connected", "reconnecting", "failed", "connected"],
             ["source_disconnected", "source_failed", "source_restored"]),
            (["connected", "connecting", "connected"], []),
            (["connected", "failed", "connecting", "connected"], ["source_failed", "source_restored"]),
            (["failed", "connected"], ["source_failed", "source_restored"]),
        ],
    )  # fmt: skip
    def test_which_changes_are_told(self, played: Played, states: list[str], codes: list[str]) -> None:
        session = self.session(played, "one", A)
        for number, state in enumerate(states):
            self.say(played, number + 1, events=state)
        assert self.notices(played, session) == codes

    def test_what_comes_late_or_again_is_not_told(self, played: Played) -> None:
        session = self.session(played, "one", A)
        self.say(played, 5, events="connected")
        self.say(played, 7, events="reconnecting")
        self.say(played, 6, events="connected")
        self.say(played, 7, events="connected")
        assert self.notices(played, session) == ["source_disconnected"]

    def test_ingestors_count_for_themselves(self, played: Played) -> None:
        session = self.session(played, "one", A)
        self.say(played, 900, prices="connected")
        self.say(played, 5, "ingestor-1", events="connected")
        self.say(played, 6, "ingestor-1", events="failed")
        assert self.notices(played, session) == ["source_failed"]

    def test_of_a_service_are_for_those_it_answers_and_come_once_each(self, played: Played) -> None:
        concerned = self.session(played, "one", '["b"]', '["b",1]')
        other = self.session(played, "other", A)
        streamed = self.session(played, "streamed", "[]", server_sent=True)
        played.effects.clear()
        for is_offline in (True, True, False, False):
            played.send(ServiceState("api", is_offline))
        assert [effect for effect in played.effects if isinstance(effect, Deliver)] == [
            Deliver("one"),
            Deliver("streamed"),
        ] * 2
        told = ["service_offline", "service_online"]
        assert [self.notices(played, each) for each in (concerned, other, streamed)] == [told, [], told]

    def test_of_a_service_that_nobody_depends_on_go_to_nobody(self, played: Played) -> None:
        session = self.session(played, "one", A, '["b"]')
        played.send(ServiceState("other", True))
        assert self.notices(played, session) == []

    def test_one_who_has_unsubscribed_is_not_told(self, played: Played) -> None:
        session = self.session(played, "one", A, '["b"]')
        self.say(played, 1, events="connected")
        for name in (b"0", b"1"):
            played.note(played.state.unsubscribe(session, name, played.now_ms))
        self.say(played, 2, events="failed")
        played.send(ServiceState("api", True))
        assert self.notices(played, session) == []

    @pytest.mark.parametrize("server_sent", [False, True])
    def test_a_new_subscriber_is_warned_of_what_is_down(self, played: Played, server_sent: bool) -> None:
        self.session(played, "earlier", A, '["b"]')
        self.say(played, 1, events="connected", prices="failed")
        self.say(played, 2, events="reconnecting", prices="failed")
        played.send(ServiceState("api", True), ServiceState("other", True))
        warned = [("one", A, ["source_disconnected"]), ("two", '["b"]', ["service_offline"]), ("three", '["c"]', [])]
        for name, key, codes in warned:
            session = played.session(name, server_sent=server_sent)
            played.subscribe(session, b"1", key)
            assert self.notices(played, session) == codes
        self.say(played, 3, events="failed")
        session = played.session("four", server_sent=server_sent)
        played.subscribe(session, b"1", "[]", prefix=True)
        assert self.notices(played, session) == ["source_failed", "service_offline"]
        self.say(played, 4, events="connected")
        played.send(ServiceState("api", False))
        session = played.session("five", server_sent=server_sent)
        played.subscribe(session, b"1", "[]", prefix=True)
        assert self.notices(played, session) == []

    def test_without_concerns_nobody_is_told(self) -> None:
        played = Played()
        session = self.session(played, "one", A, '["b"]')
        self.say(played, 1, events="connected")
        self.say(played, 2, events="failed")
        played.send(ServiceState("api", True))
        assert self.notices(played, session) == []

    def test_the_first_shard_that_loses_a_service_and_the_last_that_has_it_back_are_told_of(self) -> None:
        state = GatewayState("gateway-0", 9, slots=SlotMap(1, (0,) * 1024), shards=2, tokens=TOKENS, concerns=Stub())
        session = state.open_session("one")
        state.subscribe(session, b"1", "[]", prefix=True, mode="data", since=None, now_ms=1_000.0)  # type: ignore[arg-type]
        sequences = [0, 0]

        def send(shard: int, *, is_offline: bool) -> list[Any]:
            sequences[shard] += 1
            header = Header(f"shard-{shard}", 20, 0 if sequences[shard] == 1 else 9, sequences[shard])
            state.change_set(ChangeSet(header, EPOCH, 100, 0.0, [ServiceState("api", is_offline)]), 1_000.0)
            frame, _ = state.take(session, 1_000.0)
            state.written(session, 1_000.0)
            return [message["code"] for message in orjson.loads(frame or b"[]")]

        assert send(0, is_offline=True) == ["service_offline"]
        assert send(1, is_offline=True) == []
        assert send(0, is_offline=False) == []
        assert send(1, is_offline=False) == ["service_online"]
        assert send(1, is_offline=True) == ["service_offline"]
        _, effects = state.rebalance(Rebalance("release", assign_slots([0], 9), 0), 1_000.0)
        assert Deliver("one") in effects, "whoever said it is no more"
        frame, _ = state.take(session, 1_000.0)
        assert [message.get("code") for message in orjson.loads(frame or b"[]")] == ["service_online"]

    def test_a_shard_that_lives_anew_has_its_services_back(self, played: Played) -> None:
        session = self.session(played, "one", '["b"]')
        played.requests()
        played.send(ServiceState("api", True))
        assert self.notices(played, session) == ["service_offline"]
        played.note(played.state.announce(Announce("shard-0", 40), played.now_ms)[1])
        played.life, played.sequence = 40, 0
        watch = played.watch()
        played.send(Absent(watch), epoch=EPOCH + 1)
        assert self.notices(played, session) == ["service_online"]

    def test_a_shard_that_starts_over_and_still_misses_a_service_is_not_told_of_again(self, played: Played) -> None:
        session = self.session(played, "one", '["b"]')
        played.requests()
        played.send(ServiceState("api", True))
        assert self.notices(played, session) == ["service_offline"]
        played.note(played.state.announce(Announce("shard-0", 40), played.now_ms)[1])
        played.life, played.sequence = 40, 0
        watch = played.watch()
        played.send(ServiceState("api", True), Absent(watch), epoch=EPOCH + 1)
        assert self.notices(played, session) == []


def test_a_home_that_ends_before_it_says_what_it_knew_of_a_session_is_not_waited_for() -> None:
    two, one = assign_slots(range(2), 1), assign_slots([0], 2)
    topics = [Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0)]
    state = GatewayState("gateway-0", 9, slots=two, shards=2, tokens=TOKENS, patterns=topics)
    session = state.open_session("s", principal=Principal("p", Grants(presence=["*"])))
    effects = state.resume_session(session, TOKENS.session("secret", session.owner), 1.0)
    attendance = session.attendance
    assert attendance is not None
    assert len(attendance.restoring) == 2
    state.rebalance(Rebalance("release", one, 0), 2.0)
    assert attendance.restoring == {
        each.id
        for effect in effects
        if isinstance(effect, Send) and effect.to == "shard-0" and isinstance(effect.message, Requests)
        for each in effect.message.items
        if isinstance(each, PresenceResume)
    }
