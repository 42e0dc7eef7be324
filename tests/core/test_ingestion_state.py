"""Ingestion: frames become folded blobs, sent shortly before the window's close; what may be lost is numbered."""

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cluster.config import compile_config, load_mapping
from cluster.core import dead_letters, gathering, ingestion_state, unasked_channels
from cluster.core.committed_feeds import CommittedFeeds
from cluster.core.coordinator_state import CoordinatorState
from cluster.core.feed import OPENED, Repeats, feed_name, owner, profile_of, stem
from cluster.core.ingestion_line import AIM_MS, ASK_MS, CLAIM_AGAIN_MS, SPACING_MS
from cluster.core.ingestion_state import (
    CLAIM_WAIT_MS,
    HIGH_WATER_BYTES,
    LIMITED_MS,
    LOW_WATER_BYTES,
    MANY,
    RETRY_MS,
    AskMissed,
    IngestionState,
    Join,
    Leave,
    Reconnect,
    Resume,
    SourceTraits,
    Start,
)
from cluster.core.messages import (
    Announce,
    Blob,
    BlobTaken,
    Checkpoint,
    Claim,
    Claimed,
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
from cluster.core.overflow import Overflow
from cluster.core.placement import assign_slots
from cluster.core.rule import Envelope
from cluster.core.transaction import Unstored
from cluster.core.unasked_channels import SILENT_MS
from cluster.core.window import Profile

START = 1_000_000.0
LIFE = 3
FIRST = LIFE + 1
"""The first incarnation that this life gives a sequence."""
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


def state(
    shards: int = 1,
    mode: str = "window",
    *,
    claim: bool = True,
    cursors: Any = (),
    checkpoints: Any = (),
    streams: Any = DOCUMENT["streams"],
    **more: Any,
) -> IngestionState:
    """A machine whose claim was answered, unless `claim` is False, with what shard 0 has committed."""
    compiled = compile_config(load_mapping({**DOCUMENT, "streams": streams, "batching": {"mode": mode}}, {}))
    machine = IngestionState(
        "ingestor-0",
        LIFE,
        routers={"events": compiled.router("events")},
        always=[("events", "c:always")],
        slots=assign_slots(range(shards), 1),
        shards=shards,
        coordinators=1,
        profiles=compiled.profiles,
        **more,
    )
    for send in machine.wake(START - 100):
        machine.answered(send.to, send.message, Noted(1), START - 100)
        if isinstance(send.message, Blob):
            claims = [part.claim for part in send.message.parts]
            assert claims == [Claim("ingestor-0", LIFE + 1, ["events"])] * shards
            machine.answered(send.to, send.message, BlobTaken(9, 100.0), START - 100)
    if claim:
        effects = []
        for shard in range(shards):
            told = (list(cursors), list(checkpoints)) if not shard else ([], [])
            answer, effects = machine.claimed(Claimed(shard, LIFE + 1, *told), START - 100)
            assert answer == Noted(LIFE)
        assert effects == [Join("events", "c:always"), Start("events")]
    return machine


def frame(event: str, data: str, name: str = "a") -> bytes:
    return f'{{"event":"{event}","channel":"c:{name}","data":{data}}}'.encode()


def open_link(machine: IngestionState) -> None:
    """Open the source and have the first blob, with its marks, taken."""
    (sent,) = machine.opened("events", START)
    assert isinstance(sent, Send)
    assert sent.message.parts == [Part(0, 0, [FeedRange("events", FIRST, 1, 0, 0)], [], START)]
    machine.answered("coordinator-0", sent.message, BlobTaken(9, 100.0, 2), START)


def test_operations_fold_and_leave_shortly_before_the_windows_close() -> None:
    machine = state()
    open_link(machine)
    for n in range(3):
        assert machine.receive("events", [frame("set", str(n))], START + 110 + n)
    assert machine.receive("events", [frame("add", '{"id":1}')], START + 120)
    assert machine.receive("events", [frame("add", '{"id":2}')], START + 121)
    due = machine.deadline()
    assert due is not None
    assert START + 200 - AIM_MS - 5 <= due < START + 200
    assert machine.wake(due - 1) == []
    (sent,) = machine.wake(due)
    assert isinstance(sent, Send)
    assert sent.message.header == Header("ingestor-0", LIFE, 9, 3)
    assert sent.message.parts == [
        Part(
            0,
            0,
            [FeedRange("events/c:a", FIRST, 1, 5, 0)],
            [
                KeyOperations('["k","a"]', [Set(b"2")], 3, SET),
                KeyOperations('["list"]', [Append((b'{"id":1}', b'{"id":2}'))], 2, ADD),
            ],
            START + 110,
        )
    ]


def test_one_blob_is_in_flight_and_the_next_folds_meanwhile() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", [frame("set", "1")], START + 10)
    (first,) = machine.wake(START + 95)
    machine.receive("events", [frame("set", "2")], START + 150)
    machine.receive("events", [frame("set", "3")], START + 250)
    assert machine.wake(START + 290) == []
    assert isinstance(first, Send)
    (second,) = machine.answered("coordinator-0", first.message, BlobTaken(9, 8.0), START + 292)
    assert isinstance(second, Send)
    assert second.message.parts[0].keys == [KeyOperations('["k","a"]', [Set(b"3")], 2, SET)]
    assert second.message.parts[0].feeds == [FeedRange("events/c:a", FIRST, 2, 3, 1)]


def test_an_unanswered_blob_is_sent_again_as_it_was() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", [frame("set", "1")], START + 10)
    (sent,) = machine.wake(START + 95)
    assert isinstance(sent, Send)
    machine.unanswered(sent.to, sent.message, START + 96)
    assert machine.deadline() == START + 96 + RETRY_MS
    assert machine.wake(START + 96 + RETRY_MS) == [sent]


def sent_blob(machine: IngestionState, at: float) -> Send:
    (send,) = (effect for effect in machine.wake(at) if isinstance(effect, Send))
    assert isinstance(send.message, Blob)
    return send


def take(machine: IngestionState, send: Send, committed: int = 0, at: float = START + 97) -> list[Any]:
    return machine.answered(send.to, send.message, BlobTaken(9, 5.0, committed), at)


def test_what_a_dead_coordinator_had_is_sent_again_unless_it_was_committed() -> None:
    machine = state()
    open_link(machine)
    blobs = []
    for n in range(2):
        machine.receive("events", [frame("set", str(n))], START + 10 + 100 * n)
        blobs.append(sent_blob(machine, START + 95 + 100 * n))
        take(machine, blobs[-1], at=START + 97 + 100 * n)
    machine.receive("events", [frame("set", "2")], START + 210)
    third = sent_blob(machine, START + 295)
    (claim,) = machine.answered("coordinator-0", third.message, Refused(20), START + 300)
    assert claim.message.header == Header("ingestor-0", LIFE, 0, 1, 1)
    assert [part.claim for part in claim.message.parts] == [Claim("ingestor-0", LIFE + 2, ["events"])]
    take(machine, claim, at=START + 302)
    assert machine.wake(START + 400) == [], "nothing else goes before the claim is answered"
    assert machine.claimed(Claimed(0, LIFE + 1, [], []), START + 401)[1] == [], "an answer to an older claim"
    (again,) = machine.claimed(Claimed(0, LIFE + 2, [("events/c:a", FIRST, 1)], []), START + 410)[1]
    assert isinstance(again, Send)
    assert again.message.parts == blobs[1].message.parts
    third = next(iter(take(machine, again, at=START + 411)), None) or sent_blob(machine, START + 495)
    assert third.message.parts[0].feeds == [FeedRange("events/c:a", FIRST, 3, 3, 2)]


def test_blobs_are_kept_until_they_are_committed() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", [frame("set", "1")], START + 10)
    sent = sent_blob(machine, START + 95)
    assert machine.bytes_pending > 0
    assert take(machine, sent, committed=2) == []
    assert machine.bytes_pending > 0
    asked = sent_blob(machine, START + 95 + ASK_MS)
    assert asked.message.parts == []
    take(machine, asked, committed=3)
    assert machine.bytes_pending == 0
    assert machine.deadline() is None


def test_a_claim_that_nobody_answers_is_made_again_and_given_up() -> None:
    machine = state(claim=False)
    again = sent_blob(machine, START - 100 + CLAIM_AGAIN_MS)
    assert again.message.parts[0].claim == Claim("ingestor-0", LIFE + 1, ["events"])
    take(machine, again)
    assert Start("events") in machine.wake(START - 100 + CLAIM_WAIT_MS)


def test_a_shard_that_waits_for_its_store_is_waited_for_so_that_sequences_go_on() -> None:
    machine = state(2, claim=False, **SOURCE, streams=ANY_CHANNEL, claim_wait_ms=75_000.0)
    cursors = [("events/c:a", 2, 6)]
    machine.claimed(Claimed(0, LIFE + 1, cursors, [Checkpoint("events", 2, 4, 14)]), START)
    assert Start("events") not in machine.wake(START + 60_000)
    _, effects = machine.claimed(Claimed(1, LIFE + 1, cursors, []), START + 60_001)
    assert Start("events") in effects
    assert machine.resume_id("events") == 14


# --- what upstreams repeat -------------------------------------------------------------------------------------------


def numbered(n: int, name: str = "a", event: str = "add") -> bytes:
    return f'{{"event":"{event}","channel":"c:{name}","data":{n},"id":{n}}}'.encode()


def feeds(send: Send) -> list[FeedRange]:
    return [feed for part in send.message.parts for feed in part.feeds]


def added(send: Send) -> list[int]:
    """What the blob appends to the list."""
    return [
        int(item)
        for part in send.message.parts
        for key in part.keys
        for operation in key.operations
        if isinstance(operation, Append)
        for item in operation.items
    ]


ANY_CHANNEL = [{"source": "events", "on": {"add": {"append": {"key": ["list"], "item": "{data}"}}}}]
SOURCE: dict[str, Any] = {"traits": {"events": SourceTraits(Repeats.SOURCE)}}
CHANNEL: dict[str, Any] = {"traits": {"events": SourceTraits(Repeats.CHANNEL)}}
ASKS: dict[str, Any] = {"traits": {"events": SourceTraits(Repeats.SOURCE, asks=True)}}


def test_a_source_that_comes_back_goes_on_where_it_was() -> None:
    machine = state(**SOURCE)
    open_link(machine)
    assert machine.resume_id("events") is None
    for n in (1, 2):
        machine.receive("events", [numbered(n)], START + 10)
    assert machine.resume_id("events") == 2
    assert machine.opened("events", START + 20) == [], "nothing was lost"
    for n in (2, 3):
        machine.receive("events", [numbered(n)], START + 30)
    sent = sent_blob(machine, START + 95)
    assert feeds(sent) == [FeedRange("events/c:a", FIRST, 1, 3, 0)]
    assert added(sent) == [1, 2, 3]
    assert machine.events_dropped["events", "repeated"] == 1


def test_events_without_an_id_after_the_last_that_has_one_are_known_by_their_number() -> None:
    machine = state(**SOURCE)
    open_link(machine)
    bare = b'{"event":"add","channel":"c:a","data":7}'
    machine.receive("events", [numbered(1)], START + 10)
    machine.receive("events", [bare], START + 10)
    machine.opened("events", START + 20)
    machine.receive("events", [bare], START + 30)
    machine.receive("events", [numbered(8)], START + 30)
    assert added(sent_blob(machine, START + 95)) == [1, 7, 8]


PING = b'{"event":"ping"}'


@pytest.mark.parametrize("bare", [PING, b'{"event":"add","data":7}'], ids=["of no rule", "of a rule"])
def test_events_without_an_id_that_are_not_repeated_hide_none_that_are(bare: bytes) -> None:
    machine = state(**SOURCE, streams=ANY_CHANNEL)
    open_link(machine)
    machine.receive("events", [numbered(1), bare, bare], START + 10)
    assert machine.opened("events", START + 20) == []
    machine.receive("events", [numbered(n) for n in (2, 3, 4)], START + 30)
    assert added(sent_blob(machine, START + 95)) == [1, *([7, 7] if bare is not PING else []), 2, 3, 4]


def test_events_without_an_id_and_a_rule_do_not_count_towards_what_is_committed() -> None:
    before = state(**SOURCE, streams=ANY_CHANNEL)
    open_link(before)
    before.receive("events", [numbered(1), PING, PING, numbered(2)], START + 10)
    (committed,) = feeds(sent_blob(before, START + 95))
    cursors, checkpoints = [("events", FIRST, committed.last)], [Checkpoint("events", FIRST, 1, 1)]
    machine = state(**SOURCE, streams=ANY_CHANNEL, cursors=cursors, checkpoints=checkpoints)
    assert machine.opened("events", START) == []
    machine.receive("events", [numbered(n) for n in (2, 3, 4)], START + 10)
    assert added(sent_blob(machine, START + 95)) == [3, 4]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**40])
def test_an_id_that_no_integer_of_messages_can_hold_is_its_digits(number: int) -> None:
    machine = state(**SOURCE)
    open_link(machine)
    frame = b'{"event":"add","channel":"c:a","data":7,"id":%d}'
    machine.receive("events", [numbered(1), frame % (2**63), frame % number], START + 10)
    assert machine.resume_id("events") == str(number)
    sent = sent_blob(machine, START + 95)
    assert added(sent) == [1, 7, 7]
    take(machine, sent, committed=3)
    (told,) = (each for part in sent_blob(machine, START + 2_000).message.parts for each in part.checkpoints)
    assert told.id == str(number)
    assert machine.opened("events", START + 2_100) == []
    machine.receive("events", [frame % number], START + 2_110)
    assert machine.events_dropped["events", "repeated"] == 1


@pytest.mark.parametrize("id_", ["a\\r\\nb", "x" * 1025])
def test_an_id_that_no_request_can_hold_is_not_gone_on_after(id_: str) -> None:
    machine = state(**SOURCE)
    open_link(machine)
    machine.receive("events", [numbered(1)], START + 10)
    machine.receive("events", [b'{"event":"add","channel":"c:a","data":7,"id":"%b"}' % id_.encode()], START + 10)
    assert machine.resume_id("events") is None
    (sent,) = machine.opened("events", START + 20)
    assert isinstance(sent, Send)
    assert FeedRange("events", FIRST + 1, 1, 0, 0) in feeds(sent), "what it feeds is reset"


def counted_up(machine: IngestionState) -> float:
    """Have ids count up from 1 to 201, so that they are known to; return the time."""
    open_link(machine)
    at = START
    for n in range(1, 202):
        machine.receive("events", [numbered(n)], at + 10)
        if not n % 100:
            at += 100
            take(machine, sent_blob(machine, at), committed=99, at=at + 1)
    return at


def test_ids_that_count_up_show_a_gap() -> None:
    machine = state(**SOURCE)
    at = counted_up(machine)
    machine.opened("events", at + 20)
    machine.receive("events", [numbered(230)], at + 30)
    assert machine.events_dropped["events", "id_out_of_order"] == 1
    assert FeedRange("events", FIRST + 1, 1, 0, 0) in feeds(sent_blob(machine, at + 95))


def test_shards_notice_a_gap_that_events_follow_at_once() -> None:
    machine, coordinator = state(streams=ANY_CHANNEL), CoordinatorState("coordinator-0", 9, profiles=[Profile()])
    shard = CommittedFeeds(0, 1, Unstored(keeps=False), lambda _: True)
    (opened,) = machine.opened("events", START)
    take(machine, opened, at=START + 1)
    machine.receive("events", [b'{"event":"add","data":1}'], START + 5)
    for number, send in enumerate((opened, sent_blob(machine, START + 95)), start=1):
        coordinator.blob(Blob(Header("ingestor-0", LIFE, 9 * (number > 1), number), send.message.parts), START + 50)
    (batch,) = coordinator.wake(START + 100)
    assert [each for each in batch.message.feeds if shard.advance(each)] == [FeedRange("events", FIRST, 1, 0, 0)]
    assert machine.gaps == {"events": 1}


def test_a_life_begins_at_the_checkpoint_and_leaves_out_what_is_committed() -> None:
    machine = state(
        **SOURCE, cursors=[("events/c:a", 2, 6), ("!events", 2, 0)], checkpoints=[Checkpoint("events", 2, 4, 14)]
    )
    assert machine.resume_id("events") == 14
    assert machine.opened("events", START) == []
    for n in range(15, 19):
        machine.receive("events", [numbered(n)], START + 10)
    sent = sent_blob(machine, START + 95)
    assert added(sent) == [17, 18]
    assert feeds(sent) == [FeedRange("events/c:a", 2, 7, 8, 6)]


@pytest.mark.parametrize("newer", [("!events", 3, 0), ("events/c:a", 3, 1)])
def test_a_checkpoint_from_before_a_loss_is_void(newer: tuple[str, int, int]) -> None:
    machine = state(**SOURCE, cursors=[newer], checkpoints=[Checkpoint("events", 2, 4, 14)])
    assert machine.resume_id("events") is None
    (sent,) = machine.opened("events", START)
    assert isinstance(sent, Send)
    (lost,) = feeds(sent)
    assert (lost.feed, lost.first, lost.last, lost.previous) == ("events", 1, 0, 0)
    assert lost.incarnation > 3


def test_checkpoints_never_pass_what_is_not_committed() -> None:
    machine = state(**SOURCE)
    open_link(machine)
    machine.receive("events", [numbered(5)], START + 10)
    first = sent_blob(machine, START + 95)
    take(machine, first)
    machine.receive("events", [numbered(6)], START + 110)
    second = sent_blob(machine, START + 195)
    assert not any(part.checkpoints for part in second.message.parts)
    take(machine, second, committed=3, at=START + 197)
    machine.receive("events", [numbered(7)], START + 210)
    third = sent_blob(machine, START + 295)
    assert [part.checkpoints for part in third.message.parts if part.checkpoints] == [
        [Checkpoint("events", FIRST, 1, 5)]
    ]


def test_a_channel_goes_on_by_itself() -> None:
    machine = state(**CHANNEL, cursors=[("events/c:a", 2, 3)], checkpoints=[Checkpoint("events/c:a", 2, 3, 30)])
    assert machine.resume_id("events", "c:a") == 30
    assert machine.resume_id("events", "c:b") is None
    known, fresh = ("events", "c:a"), ("events", "c:b")
    (opened,) = machine.opened("events", START)
    assert isinstance(opened, Send)
    _, effects = machine.demand(Demand(Header("shard-0", 1, 0, 1), 1, True, [known, fresh], []), START)
    assert effects == [Join(*known), Join(*fresh)]
    machine.receive("events", [numbered(31)], START + 10)
    (sent,) = take(machine, opened)
    ranges = [*feeds(opened), *feeds(sent)]
    assert FeedRange("events/c:a", 2, 4, 4, 3) in ranges
    assert {each.feed for each in ranges if not each.previous} == {"events/c:always", "events/c:b"}


def test_a_channel_that_was_left_begins_anew() -> None:
    machine = state(**CHANNEL)
    machine.opened("events", START)
    channel = ("events", "c:a")
    machine.demand(Demand(Header("shard-0", 1, 0, 1), 1, False, [channel], []), START)
    machine.receive("events", [numbered(31)], START + 10)
    assert machine.resume_id(*channel) == 31
    machine.demand(Demand(Header("shard-0", 1, LIFE, 2), 1, False, [], [channel]), START + 20)
    assert machine.resume_id(*channel) is None


@pytest.mark.parametrize(
    ("frame", "lost"),
    [(b'{"event":"add","data":1,"id":1}', "events"), (numbered(1, "b"), "events/c:b")],
    ids=["without a channel", "on one that nobody joined"],
)
def test_what_no_channels_joining_asks_for_may_be_lost_with_a_connection(frame: bytes, lost: str) -> None:
    machine = state(**CHANNEL, streams=[*DOCUMENT["streams"], *ANY_CHANNEL])
    (opened,) = machine.opened("events", START)
    take(machine, opened, at=START)
    machine.receive("events", [frame, numbered(1, "always")], START + 10)
    take(machine, sent_blob(machine, START + 95))
    (again,) = machine.opened("events", START + 200)
    begun = {each.feed for each in feeds(again) if each.is_beginning}
    assert lost in begun
    assert "events/c:always" not in begun, "which is repeated"


def missing(*numbers: int) -> list[Envelope]:
    return [Envelope("add", str(n).encode(), "c:a", n) for n in numbers]


def test_what_was_missed_comes_first_and_once() -> None:
    machine = state(**ASKS)
    open_link(machine)
    machine.receive("events", [numbered(1)], START + 10)
    (asked,) = machine.opened("events", START + 20)
    assert asked == AskMissed("events", 1, 1)
    assert isinstance(asked, AskMissed)
    assert machine.receive("events", [numbered(3)], START + 30) is False, "nothing is read meanwhile"
    effects = machine.missed(asked, missing(2, 3), START + 40)
    assert effects == [Resume("events")]
    for n in (3, 4):
        machine.receive("events", [numbered(n)], START + 50)
    assert added(sent_blob(machine, START + 95)) == [1, 2, 3, 4]
    assert machine.events_dropped["events", "repeated"] == 2


def asked_after(machine: IngestionState, at: float) -> AskMissed:
    (ask,) = (effect for effect in machine.opened("events", at) if isinstance(effect, AskMissed))
    return ask


def test_what_comes_after_nothing_was_missed_may_still_be_the_last_event_again() -> None:
    machine = state(**ASKS)
    open_link(machine)
    machine.receive("events", [numbered(1), numbered(2)], START + 10)
    machine.missed(asked_after(machine, START + 20), [], START + 30)
    machine.receive("events", [numbered(2), numbered(3)], START + 40)
    assert added(sent_blob(machine, START + 95)) == [1, 2, 3]
    assert machine.events_dropped["events", "repeated"] == 1


def test_an_answer_that_ends_too_soon_leaves_a_gap_that_ids_show() -> None:
    machine = state(**ASKS)
    at = counted_up(machine)
    machine.missed(asked_after(machine, at + 20), missing(202, 203), at + 30)
    machine.receive("events", [numbered(230)], at + 40)
    assert machine.events_dropped["events", "id_out_of_order"] == 1
    assert FeedRange("events", FIRST + 1, 1, 0, 0) in feeds(sent_blob(machine, at + 95))


def test_an_upstream_that_has_forgotten_loses_everything() -> None:
    machine = state(**ASKS)
    open_link(machine)
    machine.receive("events", [numbered(1)], START + 10)
    (asked,) = machine.opened("events", START + 20)
    assert isinstance(asked, AskMissed)
    (sent,) = machine.missed(asked, None, START + 40)
    assert isinstance(sent, Send)
    assert FeedRange("events", FIRST + 1, 1, 0, 0) in feeds(sent)
    assert machine.events_dropped["events", "history_gone"] == 1


def test_an_answer_to_an_older_question_is_not_taken() -> None:
    machine = state(**ASKS)
    open_link(machine)
    machine.receive("events", [numbered(1)], START + 10)
    (first,) = machine.opened("events", START + 20)
    (second,) = machine.opened("events", START + 30)
    assert isinstance(first, AskMissed)
    assert isinstance(second, AskMissed)
    machine.missed(first, missing(2), START + 40)
    machine.missed(second, missing(2, 3), START + 50)
    assert added(sent_blob(machine, START + 95)) == [1, 2, 3]


def test_a_shard_that_lives_anew_is_told_what_it_should_have() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", [frame("set", "1")], START + 10)
    take(machine, sent_blob(machine, START + 95), committed=3)
    answer, (mark,) = machine.announce(Announce("shard-0", 20), START + 500)
    assert answer == Noted(LIFE)
    assert feeds(mark) == [FeedRange("events/c:a", FIRST, 2, 1, 1)]


def test_leading_mode_sends_at_once() -> None:
    machine = state(mode="leading")
    open_link(machine)
    machine.receive("events", [frame("set", "1")], START + 310)
    assert machine.rearm
    assert machine.deadline() == START + SPACING_MS
    assert len(machine.wake(START + 310)) == 1


def test_a_prefix_invalidation_goes_to_every_shard() -> None:
    machine = state(shards=3)
    machine.opened("events", START)
    machine.receive("events", [frame("old", "null")], START + 10)
    for line in machine._lines:
        parts = [pending for pending in line.pending.values() if pending.folds]
        assert {pending.shard for pending in parts} == {0, 1, 2}
        assert [pending.folds['#u["k"]'].operations() for pending in parts] == [[Invalidate()]] * 3


def test_reading_stops_at_the_high_water_mark_and_goes_on_below_the_low_one() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", [frame("set", "0")], START + 10)
    (sent,) = machine.wake(START + 95)
    item = '"' + "x" * 100_000 + '"'
    taken = [
        machine.receive("events", [frame("add", item)], START + 100) for _ in range(HIGH_WATER_BYTES // 100_000 + 2)
    ]
    assert taken[0] is True
    assert taken[-1] is False
    assert machine.bytes_pending > HIGH_WATER_BYTES
    assert isinstance(sent, Send)
    (full,) = machine.answered("coordinator-0", sent.message, BlobTaken(9, 5.0), START + 130)
    assert isinstance(full, Send)
    assert machine.bytes_pending > LOW_WATER_BYTES, "it is sent, but not committed"
    effects = machine.answered("coordinator-0", full.message, BlobTaken(9, 5.0, 4), START + 230)
    assert effects == [Resume("events")]
    assert machine.bytes_pending <= LOW_WATER_BYTES


@pytest.mark.parametrize(("raw", "reason"), [(b"{", "not_json"), (b"7", "not_object"), (b"{}", "no_event")])
def test_a_bad_frame_is_counted_and_told(raw: bytes, reason: str) -> None:
    machine = state()
    assert machine.receive("events", [raw], START)
    assert [(source, fault.reason) for source, fault in machine.frame_faults] == [("events", reason)]
    assert machine.events_dropped == {("events", reason): 1}


def test_channels_are_joined_once_however_many_shards_ask_and_left_after_the_last() -> None:
    machine = state()
    machine.opened("events", START)
    channel = ("events", "c:a")

    def demand(shard: int, sequence: int, add: list[tuple[str, str]], drop: list[tuple[str, str]]) -> Demand:
        return Demand(Header(f"shard-{shard}", 1, 0 if sequence == 1 else 3, sequence), 1, False, add, drop)

    assert machine.demand(demand(0, 1, [channel], []), START) == (DemandMet(3, [channel]), [Join(*channel)])
    assert machine.demand(demand(1, 1, [channel], []), START) == (DemandMet(3, [channel]), [])
    assert machine.demand(demand(0, 2, [], [channel]), START) == (DemandMet(3, []), [])
    assert machine.demand(demand(1, 2, [], [channel]), START) == (DemandMet(3, []), [Leave(*channel)])
    always = ("events", "c:always")
    assert machine.demand(demand(0, 3, [always], []), START) == (DemandMet(3, [always]), [])


def test_a_whole_demand_replaces_what_the_shard_said_before() -> None:
    machine = state()
    one, other = ("events", "c:1"), ("events", "c:2")
    machine.demand(Demand(Header("shard-0", 1, 0, 1), 1, False, [one], []), START)
    answer, effects = machine.demand(Demand(Header("shard-0", 9, 0, 1), 1, True, [other], []), START)
    assert answer == DemandMet(3, [])
    assert effects == [Join(*other), Leave(*one)]


def test_a_channels_text_may_hold_what_names_of_feeds_do() -> None:
    machine = state()
    open_link(machine)
    machine.receive("events", [frame("set", "1", name="x#1/y#z")], START + 10)
    take(machine, sent_blob(machine, START + 95), committed=3)
    _, (mark,) = machine.announce(Announce("shard-0", 20), START + 500)
    assert [(part.profile, part.feeds) for part in mark.message.parts] == [
        (0, [FeedRange("events/c:x#1/y#z", FIRST, 2, 1, 1)])
    ]


@pytest.mark.parametrize("profile", [0, 3])
@pytest.mark.parametrize("channel", ["", "/a", "/a#1", "/a#b/c"])
def test_names_of_feeds_are_read_as_they_are_made(channel: str, profile: int) -> None:
    name = feed_name(f"events{channel}", profile)
    assert (stem(name), owner(name), profile_of(name)) == (f"events{channel}", "events", profile)
    assert stem(OPENED + name) == f"events{channel}"


BIG = b'{"event":"add","channel":"c:%b","data":"%b"%b}'


def fill(machine: IngestionState, names: str = "a", *, size: int = 100_000, until: int = 200) -> int:
    """Receive big events until reading stops. Returns how many."""
    for n in range(until):
        frame = BIG % (names[n % len(names)].encode(), b"x" * size, b"")
        if not machine.receive("events", [frame], START + 10):
            return n + 1
    return until


def relieve(machine: IngestionState, at: float, effects: Any = ()) -> Any:
    """Send what waits and have it committed. Returns the effects of the last answer."""
    for _ in range(10):
        blobs = [each for each in machine.wake(at) if isinstance(each, Send)] or [
            each for each in effects if isinstance(each, Send)
        ]
        if not blobs:
            return effects
        for each in blobs:
            effects = machine.answered(each.to, each.message, BlobTaken(9, 100.0, each.message.header.sequence), at)
        at += 300
    return effects


class TestOverflow:
    def started(self, overflow: Overflow, **more: Any) -> IngestionState:
        machine = state(traits={"events": SourceTraits(overflow=overflow, **more)})
        open_link(machine)
        return machine

    def test_a_source_that_may_not_be_paused_has_its_oldest_events_given_up(self) -> None:
        machine = self.started(Overflow.DROP_OLDEST)
        assert fill(machine, until=600) == 600, "it is read on"
        dropped = machine.events_dropped["events", "overflow_drop_oldest"]
        assert 150 < dropped < 450
        assert machine.bytes_pending < HIGH_WATER_BYTES + 200_000
        gaps = machine.gaps["events"]
        relieve(machine, START + 100)
        assert machine.gaps["events"] == gaps + 1, "shards are told, once"
        relieve(machine, START + 5_000)
        assert fill(machine, size=10, until=1) == 1
        assert machine.events_dropped["events", "overflow_drop_oldest"] == dropped

    def test_only_the_latest_of_what_changes_the_same_is_kept(self) -> None:
        machine = self.started(Overflow.KEEP_LATEST)
        gaps = machine.gaps["events"]
        assert fill(machine, "ab", until=600) == 600
        assert 300 < machine.events_dropped["events", "overflow_keep_latest"] < 500
        relieve(machine, START + 100)
        assert machine.gaps["events"] == gaps, "what was replaced is not missed"

    def test_another_connection_takes_the_place_of_one_that_overflows_once_there_is_room(self) -> None:
        machine = self.started(Overflow.DISCONNECT)
        assert fill(machine, until=600) < 600
        assert machine.events_dropped["events", "overflow_disconnect"] == 1
        assert Reconnect("events") not in machine.wake(START + 10), "it would bring more of what cannot be taken"
        assert relieve(machine, START + 100) == [Reconnect("events")]

    def test_a_connection_that_was_lost_as_it_overflowed_is_not_given_up_once_more(self) -> None:
        machine = self.started(Overflow.DISCONNECT)
        fill(machine, until=600)
        machine.closed("events")
        assert relieve(machine, START + 100, machine.opened("events", START + 20)) == [Resume("events")]

    def test_what_waits_is_forgotten_when_it_comes_again(self) -> None:
        machine = self.started(Overflow.DROP_OLDEST, repeats=Repeats.SOURCE)
        machine.receive("events", [numbered(1)], START + 10)
        fill(machine, until=200)
        received = machine.events_received["events"]
        machine.receive("events", [numbered(2)], START + 20)
        machine.closed("events")
        assert machine.resume_id("events") == 1
        relieve(machine, START + 100)
        machine.opened("events", START + 5_000)
        machine.receive("events", [numbered(2)], START + 9_000)
        assert machine.resume_id("events") == 2
        assert machine.events_received["events"] == received + 1
        assert machine.gaps["events"] == 1, "the first connection's"

    def test_a_source_stops_at_its_own_limit(self) -> None:
        machine = self.started(Overflow.PAUSE, max_buffer=1_000_000)
        assert fill(machine) == 10

    def test_a_source_faster_than_it_may_be_pauses(self) -> None:
        machine = self.started(Overflow.PAUSE, max_rate=10.0)
        assert fill(machine, size=1) == 11
        assert Resume("events") not in machine.wake(START + 109)
        assert machine.deadline() == START + 110
        assert Resume("events") in machine.wake(START + 110)


def test_the_source_that_makes_the_most_stops_first() -> None:
    document = {
        "sources": {name: {"type": "websocket", "url": "ws://u"} for name in ("loud", "quiet")},
        "streams": [
            {"source": name, "on": {"add": {"append": {"key": [name], "item": "{data}"}}}} for name in ("loud", "quiet")
        ],
    }
    compiled = compile_config(load_mapping(document, {}))
    machine = IngestionState(
        "ingestor-0",
        LIFE,
        routers={name: compiled.router(name) for name in ("loud", "quiet")},
        always=[],
        slots=assign_slots(range(1), 1),
        shards=1,
        coordinators=1,
        profiles=compiled.profiles,
    )
    machine.wake(START)
    machine.claimed(Claimed(0, LIFE + 1, [], []), START)
    frame = b'{"event":"add","data":"%b"}' % (b"x" * 100_000)
    machine.receive("quiet", [b'{"event":"add","data":1}'], START)
    for n in range(20):
        machine.receive("loud", [frame], START + n)
    machine.wake(START + 1_500)
    while machine.receive("loud", [frame], START + 1_600):
        pass
    assert machine.bytes_pending > HIGH_WATER_BYTES
    assert machine.receive("quiet", [b'{"event":"add","data":1}'], START + 1_700), "it is read on"
    while machine.bytes_pending < 2 * HIGH_WATER_BYTES:
        machine.receive("loud", [frame], START + 1_800)
    machine.receive("quiet", [b'{"event":"add","data":1}'], START + 1_800)
    assert not machine.receive("quiet", [b'{"event":"add","data":1}'], START + 1_900), "nothing is without bounds"


def test_a_channel_with_too_many_events_is_told_to_be_fetched_and_others_are_not() -> None:
    stream = {**DOCUMENT["streams"][0], "max_rate": 5}  # type: ignore[dict-item]
    compiled = compile_config(load_mapping({**DOCUMENT, "streams": [stream]}, {}))
    machine = IngestionState(
        "ingestor-0",
        LIFE,
        routers={"events": compiled.router("events")},
        always=[],
        slots=assign_slots(range(1), 1),
        shards=1,
        coordinators=1,
        profiles=compiled.profiles,
    )
    machine.wake(START)
    machine.claimed(Claimed(0, LIFE + 1, [], []), START)
    for n in range(12):
        machine.receive("events", [frame("set", str(n), name="busy")], START + 10)
    for n in range(5):
        machine.receive("events", [frame("set", str(n), name="calm")], START + 10)
    assert machine.events_dropped["events", "rate_limited"] == 7
    relieve(machine, START + 100)
    machine.wake(START + 10 + LIMITED_MS)
    assert machine.gaps["events"] == 1
    marked = {mark.feed for marks in machine._lines[0].marks.values() for mark in marks}
    assert marked == {"events#1/c:busy"}, "there is one profile, so no feed has this name"


def limited(*streams: Any) -> IngestionState:
    """A machine with streams of which some may only have so many events a second."""
    machine = state(streams=list(streams))
    open_link(machine)
    return machine


def test_a_streams_limit_is_its_own_on_channels_that_others_take_too() -> None:
    few = {"source": "events", "channel": "c:{name}", "on": {"few": {"invalidate": {"key": ["k"]}}}, "max_rate": 1}
    many = {**few, "on": {"many": {"invalidate": {"key": ["k"]}}, "more": {"invalidate": {"key": ["k"]}}}}
    machine = limited(few, {**many, "max_rate": 10})
    for name in ["few"] * 3 + ["many", "more"] * 7:
        machine.receive("events", [frame(name, "0")], START + 10)
    assert machine.events_dropped["events", "rate_limited"] == 2 + 4


def test_limits_of_channels_without_end_begin_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion_state, "KNOWN_KEYS", 20)
    machine = limited({"source": "events", "on": {"old": {"invalidate": {"key": ["k"]}}}, "max_rate": 1})
    for n in range(100):
        machine.receive("events", [frame("old", "0", name=str(n))], START + 10)
    assert len(machine._sources["events"].buckets) <= 20


@pytest.mark.parametrize("sequence", ["events", "events/c:a"])
def test_events_that_were_left_out_void_no_checkpoint(sequence: str) -> None:
    repeats = Repeats.CHANNEL if "/" in sequence else Repeats.SOURCE
    left_out = OPENED + feed_name(sequence, 1)
    machine = state(
        traits={"events": SourceTraits(repeats)},
        cursors=[("events/c:a", 2, 4), (OPENED + sequence, 2, 0), (left_out, 3, 0)],
        checkpoints=[Checkpoint(sequence, 2, 4, 14)],
    )
    assert machine.resume_id("events", "c:a") == 14


# --- channels and names without end ------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set how many channels may be heard on that nobody has joined."""
    monkeypatch.setattr(unasked_channels, "MAX_CHANNELS", 20)
    return 20


def sets(machine: IngestionState, at: float) -> set[str]:
    """Send what waits, have it committed, and return the keys that it sets."""
    due = machine.deadline()
    assert due is not None
    sent = sent_blob(machine, max(at, due))
    take(machine, sent, committed=sent.message.header.sequence, at=at + 1)
    return {key.key for part in sent.message.parts for key in part.keys}


@pytest.mark.parametrize("traits", [{}, SOURCE, CHANNEL, {"traits": {"events": SourceTraits(is_spread=True)}}])
def test_channels_that_nobody_joined_are_bounded(few: int, traits: dict[str, Any]) -> None:
    machine = state(**traits)
    (opened,) = machine.opened("events", START)
    assert isinstance(opened, Send)
    assert take(machine, opened, committed=2, at=START) == []
    source = machine._sources["events"]
    for n in range(500):
        machine.receive("events", [frame("set", "1", name=f"new{n}")], START + 10)
    assert len(source.feeds) == few
    assert len(source.sequences) <= few + 2
    assert len(source.memo) <= few + 1
    assert machine.events_dropped == {("events", "too_many_channels"): 480}
    assert letters(machine) == [
        ("too_many_channels", f"c:new{n}", "set", "1") for n in range(few, few + dead_letters.PER_SECOND)
    ]
    machine.receive("events", [frame("set", "2", name="new3"), frame("set", "2", name="always")], START + 11)
    assert sets(machine, START + 95) == {f'["k","new{n}"]' for n in range(few)} | {'["k","always"]'}
    assert machine.events_dropped.total() == 480, "those that are known go on, and joined ones always"


def test_events_of_refused_channels_count_in_their_sequence(few: int) -> None:
    machine = state(**SOURCE)
    open_link(machine)
    for n in range(few + 5):
        machine.receive("events", [frame("set", "1", name=f"new{n}")], START + 10)
    machine.receive("events", [numbered(7, name="always")], START + 10)
    (last,) = [feed for feed in feeds(sent_blob(machine, START + 95)) if feed.feed == "events/c:always"]
    assert (last.first, last.last) == (few + 6, few + 6), "so that a replay gives the same numbers"


def test_a_channel_works_from_when_it_is_joined_and_gives_room_when_it_is_left(few: int) -> None:
    machine = state()
    open_link(machine)
    for n in range(few):
        machine.receive("events", [frame("set", "1", name=f"new{n}")], START + 10)
    wanted = ("events", "c:wanted")
    machine.receive("events", [frame("set", "1", name="wanted")], START + 10)
    assert machine.events_dropped["events", "too_many_channels"] == 1
    machine.demand(Demand(Header("shard-0", 1, 0, 1), 1, False, [wanted], []), START + 20)
    machine.receive("events", [frame("set", "2", name="wanted")], START + 30)
    assert '["k","wanted"]' in sets(machine, START + 95)
    known = ("events", "c:new0")
    machine.demand(Demand(Header("shard-0", 1, LIFE, 2), 1, False, [known], []), START + 100)
    machine.receive("events", [frame("set", "1", name="in-its-place")], START + 110)
    assert machine.events_dropped["events", "too_many_channels"] == 1
    machine.demand(Demand(Header("shard-0", 1, LIFE, 3), 1, False, [], [wanted, known]), START + 120)
    source = machine._sources["events"]
    assert not {"events/c:wanted", "events/c:new0"} & source.feeds.keys()
    assert not {"c:wanted", "c:new0"} & source.memo.keys()
    machine.receive("events", [frame("set", "1", name="wanted")], START + 130)
    assert machine.events_dropped["events", "too_many_channels"] == 2, "it is one of the others now"


def test_channels_that_are_silent_make_room(few: int) -> None:
    machine = state()
    open_link(machine)
    for n in range(few):
        machine.receive("events", [frame("set", "1", name=f"new{n}")], START + 10)
    relieve(machine, START + 95)
    later = START + SILENT_MS + 1_000
    for n in range(0, few, 2):
        machine.receive("events", [frame("set", "1", name=f"new{n}")], later)
    relieve(machine, later + 95)
    for n in range(few):
        machine.receive("events", [frame("set", "1", name=f"newer{n}")], later + 500)
    source = machine._sources["events"]
    assert len(source.feeds) == few
    stems = set(source.feeds)
    assert {f"events/c:new{n}" for n in range(0, few, 2)} <= stems, "these were not silent"
    assert {f"events/c:newer{n}" for n in range(9)} <= stems
    assert machine.events_dropped["events", "too_many_channels"] == 10


def test_rules_for_any_channel_take_events_of_all(few: int) -> None:
    anywhere = {"source": "events", "on": {"set": {"set": {"key": ["last"], "value": "{data}"}}}}
    machine = state(streams=[*DOCUMENT["streams"], anywhere])  # type: ignore[misc]
    open_link(machine)
    for n in range(few + 5):
        machine.receive("events", [frame("set", str(n), name=f"new{n}")], START + 10)
    assert machine.events_dropped["events", "too_many_channels"] == 5
    sent = sent_blob(machine, START + 95)
    (last,) = [key for part in sent.message.parts for key in part.keys if key.key == '["last"]']
    assert last.operations == [Set(b"24")]
    only = state(streams=[anywhere])
    open_link(only)
    for n in range(few + 5):
        only.receive("events", [frame("set", str(n), name=f"new{n}")], START + 10)
    assert not only.events_dropped, "nothing is kept of channels"


def test_channels_that_nobody_joined_have_no_checkpoints() -> None:
    machine = state(**CHANNEL)
    (opened,) = machine.opened("events", START)
    assert isinstance(opened, Send)
    take(machine, opened, committed=2, at=START)
    told = set()
    for n in range(1, 40):
        machine.receive("events", [numbered(n), numbered(n, name="always")], START + n * 100)
        sent = sent_blob(machine, START + n * 100 + 95)
        told |= {each.sequence for part in sent.message.parts for each in part.checkpoints}
        take(machine, sent, committed=sent.message.header.sequence, at=START + n * 100 + 97)
    assert told == {"events/c:always"}, "nobody could ask for what came after them"


def test_what_comes_back_with_a_claim_counts_among_channels_that_nobody_joined(few: int) -> None:
    cursors = [(f"events/c:old{n}", 2, 4) for n in range(few)]
    machine = state(**SOURCE, cursors=cursors, checkpoints=[Checkpoint("events", 2, 4, 14)])
    machine.opened("events", START)
    machine.receive("events", [numbered(15, name="new"), numbered(16, name="old1")], START + 10)
    assert machine.events_dropped == {("events", "too_many_channels"): 1}
    machine.receive("events", [numbered(17, name="new")], START + SILENT_MS)
    assert machine.events_dropped.total() == 1
    assert len(machine._sources["events"].feeds) == few


def test_made_up_names_of_events_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion_state, "KNOWN_NAMES", 10)
    machine = state()
    open_link(machine)
    source = machine._sources["events"]
    machine.receive("events", [frame("set", "1", name="other")], START + 10)
    for n in range(95):
        machine.receive("events", [frame(f"made-up{n}", "1")], START + 10)
        assert len(source.memo["c:a"]) <= 10
        assert len(source.names) <= 10
        assert source.remembered == sum(map(len, source.memo.values()))
    assert source.memo["c:other"].keys() == {"set"}
    machine.receive("events", [frame("set", "2")], START + 10)
    assert machine.events_dropped == {("events", "no_rule"): 95}


def test_routes_that_are_remembered_are_bounded_and_forgotten_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion_state, "KNOWN_KEYS", 50)
    monkeypatch.setattr(ingestion_state, "FORGET_ROUTES", 5)
    machine = state()
    open_link(machine)
    source = machine._sources["events"]
    for n in range(200):
        machine.receive("events", [frame("set", "1", name=f"new{n}")], START + 10)
        assert source.remembered == sum(map(len, source.memo.values())) <= 50
        assert n < 50 or source.remembered > 45
    machine.receive("events", [frame("set", "2", name="new0")], START + 10)
    assert len(sets(machine, START + 95)) == 200
    for n in range(300):
        machine.receive("events", [frame(f"made-up{n}", "1", name=f"new{n % 3}")], START + 100)
        assert source.remembered == sum(map(len, source.memo.values())) <= 50
    assert len(source.memo) > 1, "the newest stay"


# --- dead letters ------------------------------------------------------------------------------------------------


def letters(machine: IngestionState) -> list[tuple[Any, ...]]:
    """(reason, channel, event, sample), oldest first."""
    newest = machine.dead_letters.newest()
    return [(letter.reason, letter.channel, letter.event, letter.sample) for letter in reversed(newest)]


def test_ill_shaped_events_leave_letters() -> None:
    machine = state(
        streams=[
            {
                "source": "events",
                "channel": "c:{name}",
                "on": {
                    "put": {"set": {"key": ["k", "{data.id}"], "value": "{data}"}},
                    "picked": {"set": {"key": ["k"], "value": "{data}"}},
                    "each": {"each": "{data}", "set": {"key": ["k", "{item.id}"], "value": "{item}"}},
                },
                "transform": {"event": {"theirs": "picked"}, "rename": {"a": "b"}},
            },
            {"source": "events", "on": {"each": {"each": "{data}", "set": {"key": ["i", "{item.id}"], "value": 1}}}},
        ]
    )
    open_link(machine)
    for bad in (b"{nonsense", b"17", b"\xff{"):
        machine.receive("events", [bad], START)
    machine.receive("events", [b'[{"event":7},{"event":""},5]'], START)
    machine.receive("events", [frame("put", '{"n":1}')], START + 1)
    machine.receive("events", [frame("put", '{"id":{"not":"text"}}')], START + 1)
    machine.receive("events", [frame("theirs", "[1]")], START + 2)
    machine.receive("events", [frame("each", '[{"id":1},{"no":1}]')], START + 3)
    machine.receive("events", [frame("unheard", "1")], START + 4)
    assert letters(machine) == [
        ("not_json", None, None, "{nonsense"),
        ("not_object", None, None, "17"),
        ("not_json", None, None, "\\xff{"),
        ("no_event", None, None, '{"event":7}'),
        ("no_event", None, None, '{"event":""}'),
        ("not_object", None, None, "5"),
        ("missing_capture", "c:a", "put", '{"n":1}'),
        ("transform_failed", "c:a", "theirs", "[1]"),
        ("transform_failed", "c:a", "each", '[{"id":1},{"no":1}]'),
        ("missing_capture", "c:a", "each", '{"no":1}'),
    ]
    assert machine.dead_letters.newest()[0].time == int(START + 3)
    before = machine.bytes_pending
    machine.receive("events", [frame("put", '{"id":1}')], START + 5)
    assert machine.bytes_pending > before


def test_what_is_filtered_or_has_no_rule_leaves_none() -> None:
    rules = {"put": {"set": {"key": ["k"], "value": "{data}"}}}
    machine = state(streams=[{"source": "events", "on": rules, "transform": {"when": {"/a": 1}}}])
    open_link(machine)
    machine.receive("events", [frame("put", '{"a":2}')], START)
    machine.receive("events", [frame("unheard", '{"a":1}')], START)
    assert letters(machine) == []
    assert machine.events_dropped == {("events", "no_rule"): 1}
    assert machine.bytes_pending == 0


def test_ill_shaped_server_sent_events_and_missed_ones_leave_letters() -> None:
    rules = {"put": {"set": {"key": ["k", "{data.id}"], "value": "{data}"}}}
    streams = [{"source": "events", "on": rules}]
    machine = state(**ASKS, streams=streams)
    machine.opened("events", START)
    machine.receive_events(
        "events", [Envelope("put", b"{nonsense", None, "1"), Envelope("put", b"[]", None, "2")], START
    )
    (asked,) = [effect for effect in machine.opened("events", START) if isinstance(effect, AskMissed)]
    machine.missed(asked, [Envelope("put", b"{}", None, "3"), Envelope("put", b'{"id":1}', None, "4")], START)
    assert letters(machine) == [
        ("not_json", None, "put", "{nonsense"),
        ("bad_data", None, "put", "[]"),
        ("missing_capture", None, "put", "{}"),
    ]


FRAMES = st.one_of(
    st.builds(
        lambda n, event, name: numbered(n, name, event),
        st.integers(0, 9),
        st.sampled_from(["set", "add", "old", "unheard", ""]),
        st.sampled_from(["a", "b"]),
    ),
    st.lists(st.builds(numbered, st.integers(0, 9)), max_size=3).map(lambda items: b"[%b]" % b",".join(items)),
    st.sampled_from(
        [b"", b" ", b"{", b"7", b"{}", b"{}{}", b"\xff", b"[", b'[{"event":7},5]', b'"\xc3"', frame("set", "1")[:-3]]
    ),
)


def wire(machine: IngestionState) -> Any:
    """What is sent, and what was counted and kept of faults."""
    parts = [part for send in machine.wake(START + 200) if isinstance(send, Send) for part in send.message.parts]
    faults = sorted((fault.reason, bytes(fault.sample)) for _, fault in machine.frame_faults)
    return parts, machine.events_dropped, machine.events_received, faults


@given(st.lists(FRAMES, min_size=1, max_size=12))
def test_frames_of_a_read_do_what_they_do_one_by_one(frames: list[bytes]) -> None:
    together, apart = state(), state()
    for machine in (together, apart):
        open_link(machine)
        machine.receive("events", [frame("set", '"first"')], START + 10)
    together.receive("events", frames, START + 10)
    for each in frames:
        apart.receive("events", [each], START + 10)
    assert wire(together) == wire(apart)


KEYED = [
    {
        "source": "events",
        "channel": "c:{name}",
        "on": {
            "put": {"set": {"key": ["m", "{data.id}"], "value": "{data}"}},
            "put_here": {"set": {"key": ["m", "{name}", "{data.id}"], "value": "{data}"}},
            "add": {"append": {"key": ["m", "{data.id}"], "item": "{data}"}},
        },
    }
]


def keyed(n: int, id_: str, event: str, name: str, event_id: str) -> bytes:
    return f'{{"event":"{event}","channel":"c:{name}","data":{{"n":{n}{id_}}}{event_id}}}'.encode()


def driven(reads: list[list[bytes]], *, apart: bool = False, **more: Any) -> IngestionState:
    """A machine that has taken reads, or their frames one by one."""
    machine = state(4, streams=KEYED, **more)
    (opening,) = (each for each in machine.opened("events", START) if isinstance(each, Send))
    machine.answered("coordinator-0", opening.message, BlobTaken(9, 100.0, 2), START)
    for read in reads:
        for frames in [[each] for each in read] if apart else [read]:
            machine.receive("events", frames, START + 10)
    return machine


@settings(max_examples=40)
@given(st.data())
def test_many_events_that_each_set_a_key_do_together_what_they_do_one_by_one(data: st.DataObject) -> None:
    ids = data.draw(
        st.sampled_from([[',"id":1', ',"id":2', ',"id":"1"', ',"id":"b"'], ["", ',"id":1.0', ',"id":[1]', ',"id":1']])
    )
    events = data.draw(st.sampled_from([["put"], ["put", "put_here"], ["put", "put_here", "add"]]))
    names = data.draw(st.sampled_from([["a"], ["a", "b"]]))
    has_ids = data.draw(st.sampled_from([(True,), (False,), (True, False)]))
    pick = st.tuples(*map(st.sampled_from, (ids, events, names, has_ids)))
    frames = [
        keyed(n, id_, event, name, f',"id":{n}' if has_id else "")
        for n, (id_, event, name, has_id) in enumerate(data.draw(st.lists(pick, min_size=MANY, max_size=60)), 1)
    ]
    together, apart = (driven([frames], apart=True) for _ in range(2))  # so that routes and keys are known
    sent = []
    for machine in (together, apart):
        for send in machine.wake(START + 95):
            assert isinstance(send, Send)
            machine.answered("coordinator-0", send.message, BlobTaken(9, 100.0, 3), START + 100)
        twice = [frames, frames]  # the second time it is known what they have in common
        for read in twice if machine is together else [[each] for reads in twice for each in reads]:
            machine.receive("events", read, START + 110)
        sent.append(wire(machine))
    (parts, *counted), (parts_apart, *counted_apart) = sent
    assert counted == counted_apart
    assert [sorted(part.keys, key=repr) for part in parts] == [sorted(part.keys, key=repr) for part in parts_apart]
    for part, other in zip(parts, parts_apart, strict=True):
        assert part.shard == other.shard
        for feed in other.feeds:
            (same,) = (each for each in part.feeds if each.feed == feed.feed)
            assert same.first <= feed.first
            assert same.last >= feed.last
    assert [together.resume_id("events"), together.backlog(START)] == [apart.resume_id("events"), apart.backlog(START)]


ALIKE = [keyed(n, f',"id":{n % 5}', "put", "a", f',"id":{n}') for n in range(1, 41)]
"""Of which a read is known to be of one kind after the first twenty."""


def test_events_without_an_id_among_others_count_as_they_do_one_by_one() -> None:
    reads = [ALIKE[:1], ALIKE[1:20], [*ALIKE[20:], keyed(41, ',"id":1', "put", "a", "")]]
    traits = {"events": SourceTraits(repeats=Repeats.SOURCE)}
    together, apart = (driven(reads, apart=apart, traits=traits) for apart in (False, True))
    assert wire(together)[1:] == wire(apart)[1:]
    assert together.resume_id("events") == apart.resume_id("events") == 40


def test_events_of_a_source_that_waits_wait_too() -> None:
    traits = {"events": SourceTraits(overflow=Overflow.DROP_OLDEST, max_buffer=100)}
    machine = driven([ALIKE[:1], ALIKE[1:20], ALIKE[20:]], traits=traits)
    assert machine.events_received == {"events": 20}


def test_data_goes_to_the_key_that_it_names_also_where_frames_are_broken_at_commas() -> None:
    a, b, d, e, f = (keyed(n, f',"id":"{id_}"', "put", "a", "") for n, id_ in enumerate("abdef"))
    half = b'{"event":"put","channel":"c:a"'
    halves = [[half, b'"data":{"n":%d,"id":"%b"}}' % (n, id_)] for n, id_ in enumerate((b"c", b"f"))]
    broken = [b"%b,%b" % (a, b), *halves[0], b"%b,%b" % (d, e), *halves[1], a, e, f]
    machine = driven([ALIKE[:1], [keyed(n, f',"id":{n % 5}', "put", "a", "") for n in range(20)], broken + [a] * MANY])
    sets = {key.key: key.operations for part in wire(machine)[0] for key in part.keys}
    assert {'["m","b"]', '["m","c"]', '["m","d"]'} <= sets.keys()
    for key, (operation,) in sets.items():
        assert isinstance(operation, Set)
        assert orjson.loads(operation.value)["id"] == orjson.loads(key)[1]


def same_but_for_time(parts: list[Part], apart: list[Part]) -> None:
    """What gathered says the same, and may count as older and in longer ranges."""
    assert len(parts) == len(apart)
    for part, other in zip(
        sorted(parts, key=lambda each: each.shard), sorted(apart, key=lambda each: each.shard), strict=True
    ):
        assert (part.shard, part.profile, part.checkpoints, part.claim) == (
            other.shard,
            other.profile,
            other.checkpoints,
            other.claim,
        )
        assert sorted(part.keys, key=repr) == sorted(other.keys, key=repr)
        assert part.oldest_ms <= other.oldest_ms
        marks, others = ([each for each in of.feeds if each.first > each.last] for of in (part, other))
        assert [(each.feed, each.incarnation) for each in marks] == [(each.feed, each.incarnation) for each in others]
        for feed in other.feeds:
            assert any(
                each.feed == feed.feed
                and each.incarnation == feed.incarnation
                and (each.first <= feed.first or feed.first > feed.last)
                and each.last >= feed.last
                for each in part.feeds
            )


ODD = st.one_of(
    st.sampled_from(
        [b"", b"{", b"7", b"{}", b"\xff", b'[{"event":7},5]', frame("put", '{"id":1}')[:-3], frame("unheard", "1")]
    ),
    st.sampled_from([frame("put", data) for data in ("[]", '{"id":[1]}', "{}", '{"id":1.0}')]),
    st.sampled_from([frame("add", '{"id":1}'), frame("put_here", '{"id":1}'), frame("put", '{"id":2}', "b")]),
    st.just(b"[%b]" % b",".join([frame("put", '{"id":1}'), frame("put", '{"id":2}')])),
)
READ = st.tuples(st.integers(1, 40), st.integers(1, 5), st.one_of(st.none(), st.none(), st.none(), ODD))
"""(events, keys, an odd one among them)"""
STEPS = st.lists(
    st.one_of(
        READ,
        READ,
        READ,
        st.sampled_from(["deadline", "wait", "refused", "look", "received", "idle", "event", "demand", "begun_anew"]),
        st.sampled_from(["deadline", "open", "open_at_once"]),
    ),
    min_size=1,
    max_size=25,
)


class Both:
    """Two machines that hear the same, one of them event by event; what they have done is compared at every step."""

    def __init__(self, *, has_ids: bool, room: int) -> None:
        repeats = Repeats.SOURCE if has_ids else Repeats.NOTHING
        traits = {"events": SourceTraits(repeats=repeats, has_ids=has_ids, max_buffer=room)}
        self.together, self.apart = self.machines = [state(4, streams=KEYED, traits=traits) for _ in range(2)]
        self.has_ids = has_ids
        self.now = START
        self.number = self.demands = self.gathered = 0
        self.do("open")

    def same(self, ask: Callable[[IngestionState], Any]) -> Any:
        """Return what both say."""
        ours, theirs = map(ask, self.machines)
        assert ours == theirs
        return ours

    def effects(self, step: Callable[[IngestionState], list[Any]], *, refuse: bool = False) -> None:
        """Compare what is to be done, and have it done."""
        ours, theirs = map(step, self.machines)
        assert [each for each in ours if not isinstance(each, Send)] == [
            each for each in theirs if not isinstance(each, Send)
        ]
        sent, others = ([each for each in some if isinstance(each, Send)] for some in (ours, theirs))
        for one, other in zip(sent, others, strict=True):
            assert (one.to, type(one.message)) == (other.to, type(other.message))
            answer: Any = Noted(1)
            if isinstance(one.message, Blob):
                same_but_for_time(one.message.parts, other.message.parts)
                answer = Refused(10) if refuse else BlobTaken(9, 60.0, one.message.header.sequence)
            messages = {id(self.together): one.message, id(self.apart): other.message}
            self.effects(partial(self._answered, one.to, messages, answer))

    def _answered(self, to: str, messages: dict[int, Any], answer: Any, machine: IngestionState) -> list[Any]:
        effects = machine.answered(to, messages[id(machine)], answer, self.now)
        line = machine._lines[0]
        if line.claim_at is not None and isinstance(answer, BlobTaken):
            for shard in line.unanswered_shards():
                effects.extend(machine.claimed(Claimed(shard, line.claim, [], []), self.now)[1])
        return effects

    def read(self, count: int, keys: int, odd: bytes | None) -> None:
        """Read events that each set one of some keys, and maybe an odd one."""
        frames = []
        for _ in range(count):
            self.number += 1
            event_id = f',"id":{self.number}' if self.has_ids else ""
            frames.append(keyed(self.number, f',"id":{self.number % keys}', "put", "a", event_id))
        if odd is not None:
            frames.insert(count // 2, odd)
        goes_on = self.together.receive("events", frames, self.now)
        assert goes_on == [self.apart.receive("events", [each], self.now) for each in frames][-1]
        self.gathered += bool(self.together._gathering)

    def do(self, step: str) -> None:
        """Do what is not reading."""
        match step:
            case "deadline" | "refused":
                due, due_apart = (machine.deadline() for machine in self.machines)
                assert (due is None) == (due_apart is None)
                if due is not None and due_apart is not None:
                    assert due <= due_apart
                    self.now = max(self.now, due_apart)
                self.effects(lambda machine: machine.wake(self.now), refuse=step == "refused")
            case "wait":
                self.now += 37
                self.effects(lambda machine: machine.wake(self.now))
            case "look":
                self.same(lambda machine: machine.backlog(self.now))
                self.same(lambda machine: (machine.bytes_pending, machine.events_received, machine.status()))
            case "received":
                self.same(lambda machine: machine.events_received)
            case "open":
                self.same(lambda machine: machine.resume_id("events"))
                self.effects(lambda machine: machine.opened("events", self.now))
            case "open_at_once":
                self.effects(lambda machine: machine.opened("events", self.now))
            case "begun_anew":
                self.effects(lambda machine: machine.announce(Announce("shard-0", 7), self.now)[1])
            case "event":
                self.number += 1
                said = [Envelope("put", b'{"id":1}', "c:a", self.number if self.has_ids else None)]
                self.same(lambda machine: machine.receive_events("events", said, self.now))
            case "demand":
                self.demands += 1
                header = Header("shard-1", 1, 0 if self.demands == 1 else LIFE, self.demands)
                channel = [("events", "c:a")]
                add, drop = (channel, []) if self.demands % 2 else ([], channel)
                self.effects(lambda machine: machine.demand(Demand(header, 1, False, add, drop), self.now)[1])
            case "idle":
                self.same(lambda machine: machine.is_idle)
            case _:
                raise AssertionError(step)


@pytest.mark.parametrize(("most", "room"), [(60, 100_000), (2_000, 6_000), (2_000, 100_000)])
@pytest.mark.parametrize("has_ids", [False, True])
@settings(max_examples=40)
@given(STEPS)
def test_reads_that_gather_do_what_their_events_do_one_by_one(
    has_ids: bool, most: int, room: int, steps: list[Any]
) -> None:
    both = Both(has_ids=has_ids, room=room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "MOST_FRAMES", most)
        for step in [(40, 2, None), (40, 2, None), *steps]:  # the first two teach what is common
            both.now += 3
            if isinstance(step, str):
                both.do(step)
            else:
                both.read(*step)
        for _ in range(3):
            both.now += 200
            both.do("deadline")
    both.do("look")
    both.same(lambda machine: sorted(letters(machine), key=repr))
    both.same(lambda machine: (wire(machine), machine.resume_id("events")))
    event(f"gathered: {both.gathered > 0}")


def taught(machine: IngestionState, *reads: list[bytes]) -> IngestionState:
    """Return a machine that has read enough to know what is common."""
    machine.opened("events", START)
    for read in reads:
        machine.receive("events", read, START)
        machine.receive("events", read, START)
        machine.receive("events", read, START)
    return machine


def test_reads_gather_and_are_taken_before_they_are_too_many() -> None:
    machine = taught(state(streams=KEYED), [keyed(n, ',"id":1', "put", "a", "") for n in range(600)])
    assert len(machine._gathering.take()) == 600, "what the first two had in common was not known before"
    machine = taught(state(streams=KEYED), [keyed(n, ',"id":1', "put", "a", "") for n in range(gathering.MOST_FRAMES)])
    assert not machine._gathering


@pytest.mark.parametrize(
    ("mode", "traits", "ids"),
    [
        ("leading", SourceTraits(), 2),
        ("window", SourceTraits(max_rate=1e6), 2),
        ("window", SourceTraits(), 1_000_000),
    ],
    ids=["what leaves at once", "what has a rate", "what does not fold"],
)
def test_reads_that_are_to_be_seen_at_once_do_not_gather(mode: str, traits: SourceTraits, ids: int) -> None:
    machine = state(mode=mode, streams=KEYED, traits={"events": traits})
    machine.opened("events", START)
    for first in range(0, 400, 100):
        frames = [keyed(n, f',"id":{n % ids}', "put", "a", "") for n in range(first, first + 100)]
        machine.receive("events", frames, START)
        assert not machine._gathering
        assert machine.events_received == {"events": first + 100}


def test_two_sources_that_gather_keep_the_order_of_what_they_say_about_a_key() -> None:
    put = {"put": {"set": {"key": ["m", "{data.id}"], "value": "{data}"}}}
    document = {
        "sources": {name: {"type": "websocket", "url": "ws://upstream"} for name in ("one", "two")},
        "streams": [{"source": name, "channel": "c:{name}", "on": put} for name in ("one", "two")],
    }
    compiled = compile_config(load_mapping(document, {}))
    machine = IngestionState(
        "ingestor-0",
        LIFE,
        routers={name: compiled.router(name) for name in ("one", "two")},
        always=[],
        slots=assign_slots(range(1), 1),
        shards=1,
        coordinators=1,
        profiles=compiled.profiles,
    )
    number, gathered = 0, set()
    for source in [*["one"] * 3, *["two"] * 3, *["one", "two"] * 4, "one"]:
        frames = [keyed(n, ',"id":1', "put", "a", "") for n in range(number, number + MANY)]
        number += MANY
        machine.receive(source, frames, START)
        gathered.add(machine._gathering.source)
    assert gathered >= {"one", "two"}
    assert machine.backlog(START)[0] == number
    ((fold,),) = (pending.folds.values() for line in machine._lines for pending in line.pending.values())
    assert fold.operations() == [Set(f'{{"n":{number - 1},"id":1}}'.encode())]


def test_a_frame_that_is_cut_at_a_comma_is_not_pieced_together_unnoticed() -> None:
    machine = state()
    open_link(machine)
    whole = frame("set", "1")
    cut = whole.index(b",")
    machine.receive("events", [whole[:cut], whole[cut + 1 :], whole], START + 10)
    assert machine.events_received == {"events": 1}
    assert machine.events_dropped.total() == 2


def test_the_backlog_is_what_is_not_committed_and_its_age() -> None:
    machine = state()
    open_link(machine)
    assert machine.backlog(START + 5) == (0, {"events": 0.0})
    machine.receive("events", [frame("set", "1"), frame("set", "2")], START + 10)
    assert machine.backlog(START + 25) == (2, {"events": 15.0}), "folded, they are still two"
    (sent,) = machine.wake(START + 95)
    assert isinstance(sent, Send)
    machine.receive("events", [frame("set", "3")], START + 100)
    assert machine.backlog(START + 110) == (3, {"events": 100.0})
    machine.answered("coordinator-0", sent.message, BlobTaken(9, 100.0, 3), START + 120)
    assert machine.backlog(START + 130) == (1, {"events": 30.0})


def test_a_source_is_as_late_as_it_is_not_read() -> None:
    machine = state(traits={"events": SourceTraits(max_rate=1.0)})
    open_link(machine)
    machine.receive("events", [frame("unheard", "1")] * 50, START)
    assert not machine.receive("events", [frame("unheard", "1")], START + 10)
    assert machine.backlog(START + 2_010) == (0, {"events": 2_000.0})
