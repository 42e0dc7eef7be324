"""Ingestion: frames become folded blobs, sent shortly before the window's close; what may be lost is numbered."""

import pytest

from cluster.config import compile_config, load_mapping
from cluster.core.ingestion_state import (
    AIM_MS,
    HIGH_WATER_BYTES,
    LOW_WATER_BYTES,
    RETRY_MS,
    SPACING_MS,
    IngestionState,
    Join,
    Leave,
    Resume,
)
from cluster.core.messages import (
    Announce,
    BlobTaken,
    Demand,
    DemandMet,
    FeedRange,
    Header,
    KeyOperations,
    Noted,
    Part,
    Refused,
    Send,
)
from cluster.core.operation import Append, Invalidate, Set
from cluster.core.placement import assign_slots
from cluster.core.rule import FrameFault

START = 1_000_000.0
SET, ADD = 0, 1
"""Numbers of the rules, as origins."""
DOCUMENT = {
    "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
    "streams": [
        {
            "source": "events",
            "channel": "c:{name}",
            "on": {
                "set": {"set": {"key": ["k", "{name}"], "value": "{data}"}},
                "add": {"append": {"key": ["list"], "item": "{data}"}},
                "old": {"invalidate": {"key": ["k"]}},
            },
        }
    ],
}


def state(shards: int = 1, mode: str = "window") -> IngestionState:
    compiled = compile_config(load_mapping({**DOCUMENT, "batching": {"mode": mode}}, {}))
    machine = IngestionState(
        "ingestor-0",
        3,
        routers={"events": compiled.router("events")},
        always=[("events", "c:always")],
        slots=assign_slots(range(shards), 1),
        shards=shards,
        coordinators=1,
        profiles=compiled.profiles,
    )
    for send in machine.wake(START):
        machine.answered(send.to, send.message, Noted(1), START)
    return machine


def frame(event: str, data: str, name: str = "a") -> bytes:
    return f'{{"event":"{event}","channel":"c:{name}","data":{data}}}'.encode()


def open_link(machine: IngestionState) -> None:
    """Open the source and have the first blob, with its marks, taken."""
    (sent,) = machine.opened("events", START)
    assert isinstance(sent, Send)
    assert sent.message.parts == [Part(0, 0, [FeedRange("events", int(START), 1, 0, 0)], [], START)]
    machine.answered("coordinator-0", sent.message, BlobTaken(9, 100.0), START)


def test_operations_fold_and_leave_shortly_before_the_windows_close() -> None:
    machine = state()
    open_link(machine)
    for n in range(3):
        assert machine.receive("events", frame("set", str(n)), START + 110 + n)
    assert machine.receive("events", frame("add", '{"id":1}'), START + 120)
    assert machine.receive("events", frame("add", '{"id":2}'), START + 121)
    due = machine.deadline()
    assert due is not None
    assert START + 200 - AIM_MS - 5 <= due < START + 200
    assert machine.wake(due - 1) == []
    (sent,) = machine.wake(due)
    assert isinstance(sent, Send)
    assert sent.message.header == Header("ingestor-0", 3, 9, 2)
    assert sent.message.parts == [
        Part(
            0,
            0,
            [FeedRange("events/c:a", int(START), 1, 5, 0)],
            [
                KeyOperations('["k","a"]', [Set(b"2")], 3, SET),
                KeyOperations('["list"]', [Append((b'{"id":1}', b'{"id":2}'))], 2, ADD),
            ],
            START + 110,
        )
    ]
    assert machine.bytes_pending == 0


def test_one_blob_is_in_flight_and_the_next_folds_meanwhile() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", frame("set", "1"), START + 10)
    (first,) = machine.wake(START + 95)
    machine.receive("events", frame("set", "2"), START + 150)
    machine.receive("events", frame("set", "3"), START + 250)
    assert machine.wake(START + 290) == []
    assert isinstance(first, Send)
    (second,) = machine.answered("coordinator-0", first.message, BlobTaken(9, 8.0), START + 292)
    assert isinstance(second, Send)
    assert second.message.parts[0].keys == [KeyOperations('["k","a"]', [Set(b"3")], 2, SET)]
    assert second.message.parts[0].feeds == [FeedRange("events/c:a", int(START), 2, 3, 1)]


def test_an_unanswered_blob_is_sent_again_as_it_was() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", frame("set", "1"), START + 10)
    (sent,) = machine.wake(START + 95)
    assert isinstance(sent, Send)
    machine.unanswered(sent.to, sent.message, START + 96)
    assert machine.deadline() == START + 96 + RETRY_MS
    assert machine.wake(START + 96 + RETRY_MS) == [sent]


def test_a_lost_coordinator_is_told_what_should_have_come() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", frame("set", "1"), START + 10)
    (sent,) = machine.wake(START + 95)
    assert isinstance(sent, Send)
    machine.answered("coordinator-0", sent.message, BlobTaken(9, 5.0), START + 97)
    answer, (marks,) = machine.announce(Announce("coordinator-0", 20), START + 500)
    assert answer == Noted(3)
    assert marks.message.header == Header("ingestor-0", 4, 0, 1)
    assert marks.message.parts[0].feeds == [
        FeedRange("events/c:a", int(START), 2, 1, 1),
        FeedRange("events", int(START), 1, 0, 0),
    ]


def test_a_refused_blob_is_dropped_and_its_numbers_told() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", frame("set", "1"), START + 10)
    (sent,) = machine.wake(START + 95)
    assert isinstance(sent, Send)
    (marks,) = machine.answered("coordinator-0", sent.message, Refused(20), START + 97)
    assert isinstance(marks, Send)
    assert marks.message.parts[0].keys == []
    assert marks.message.parts[0].feeds[0] == FeedRange("events/c:a", int(START), 2, 1, 1)


def test_leading_mode_sends_at_once() -> None:
    machine = state(mode="leading")
    open_link(machine)
    machine.receive("events", frame("set", "1"), START + 310)
    assert machine.rearm
    assert machine.deadline() == START + SPACING_MS
    assert len(machine.wake(START + 310)) == 1


def test_a_prefix_invalidation_goes_to_every_shard() -> None:
    machine = state(shards=3)
    machine.opened("events", START)
    machine.receive("events", frame("old", "null"), START + 10)
    for line in machine._lines:
        parts = [pending for pending in line.pending.values() if pending.folds]
        assert {pending.shard for pending in parts} == {0, 1, 2}
        assert [pending.folds['#u["k"]'].operations() for pending in parts] == [[Invalidate()]] * 3


def test_reading_stops_at_the_high_water_mark_and_goes_on_below_the_low_one() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", frame("set", "0"), START + 10)
    (sent,) = machine.wake(START + 95)
    item = '"' + "x" * 100_000 + '"'
    taken = [machine.receive("events", frame("add", item), START + 100) for _ in range(HIGH_WATER_BYTES // 100_000 + 2)]
    assert taken[0] is True
    assert taken[-1] is False
    assert machine.bytes_pending > HIGH_WATER_BYTES
    assert isinstance(sent, Send)
    effects = machine.answered("coordinator-0", sent.message, BlobTaken(9, 5.0), START + 130)
    assert [type(effect) for effect in effects] == [Send, Resume]
    assert machine.bytes_pending <= LOW_WATER_BYTES


@pytest.mark.parametrize(("raw", "reason"), [(b"{", "not_json"), (b"7", "not_object"), (b"{}", "no_event")])
def test_a_bad_frame_is_counted_and_raised(raw: bytes, reason: str) -> None:
    machine = state()
    with pytest.raises(FrameFault, match=reason):
        machine.receive("events", raw, START)
    assert machine.events_dropped == {("events", reason): 1}


def test_channels_are_joined_once_however_many_shards_ask_and_left_after_the_last() -> None:
    machine = state()
    machine.opened("events", START)
    channel = ("events", "c:a")

    def demand(shard: int, sequence: int, add: list[tuple[str, str]], drop: list[tuple[str, str]]) -> Demand:
        return Demand(Header(f"shard-{shard}", 1, 0 if sequence == 1 else 3, sequence), False, add, drop)

    assert machine.demand(demand(0, 1, [channel], [])) == (DemandMet(3, [channel]), [Join(*channel)])
    assert machine.demand(demand(1, 1, [channel], [])) == (DemandMet(3, [channel]), [])
    assert machine.demand(demand(0, 2, [], [channel])) == (DemandMet(3, []), [])
    assert machine.demand(demand(1, 2, [], [channel])) == (DemandMet(3, []), [Leave(*channel)])
    always = ("events", "c:always")
    assert machine.demand(demand(0, 3, [always], [])) == (DemandMet(3, [always]), [])


def test_a_whole_demand_replaces_what_the_shard_said_before() -> None:
    machine = state()
    one, other = ("events", "c:1"), ("events", "c:2")
    machine.demand(Demand(Header("shard-0", 1, 0, 1), False, [one], []))
    answer, effects = machine.demand(Demand(Header("shard-0", 9, 0, 1), True, [other], []))
    assert answer == DemandMet(3, [])
    assert effects == [Join(*other), Leave(*one)]
