"""An ingestor holds back what it takes while slots move, and goes on by another map."""

from typing import Any

import orjson

from cluster.config import compile_config, load_mapping
from cluster.core.feed import Feed, Repeats, Sequence
from cluster.core.ingestion_cut import inherit
from cluster.core.ingestion_state import AskMissed, IngestionState, Resume, SourceTraits
from cluster.core.messages import BlobTaken, Checkpoint, Claimed, FeedRange, Noted, Rebalance, Send
from cluster.core.placement import assign_slots

NOW = 1_000_000.0
BEFORE, AFTER = assign_slots([0], 1), assign_slots([0, 1], 2, 2)
DOCUMENT = {
    "sources": {
        "s": {"type": "websocket", "url": "ws://upstream", "envelope": {"event": "event", "data": "data", "id": "id"}}
    },
    "streams": [{"source": "s", "on": {"set": {"set": {"key": ["k", "{data.k}"], "value": "{data.n}"}}}}],
}
WHOLE = {
    **DOCUMENT,
    "streams": [{"source": "s", "on": {"set": {"set": {"key": ["k", "{data.k}"], "value": "{data}"}}}}],
}
"""Of events that each set a key to their data, of which reads gather."""


class Driven:
    """An ingestor whose coordinators take everything at once."""

    def __init__(
        self, traits: SourceTraits | None = None, claimed: Claimed | None = None, document: Any = DOCUMENT
    ) -> None:
        compiled = compile_config(load_mapping(document, {}))
        self.now = NOW
        self.blobs: list[Any] = []
        self.commits = True
        self.machine = IngestionState(
            "ingestor-0",
            7,
            routers={"s": compiled.router("s")},
            always=(),
            slots=BEFORE,
            shards=1,
            coordinators=1,
            profiles=compiled.profiles,
            traits={"s": traits or SourceTraits()},
        )
        self.resumed = 0
        self.run(self.machine.wake(self.now))
        self.run(self.machine.claimed(claimed or Claimed(0, 8, [], []), self.now)[1])
        self.run(self.machine.opened("s", self.now))

    def run(self, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, Resume):
                self.resumed += 1
            if not isinstance(effect, Send):
                continue
            message = effect.message
            if hasattr(message, "parts"):
                self.blobs.append(message)
                committed = message.header.sequence if self.commits else 0
                self.run(self.machine.answered(effect.to, message, BlobTaken(5, 50.0, committed), self.now))
            else:
                self.run(self.machine.answered(effect.to, message, Noted(5), self.now))

    def read(self, *numbers: int) -> bool:
        frames = [orjson.dumps({"event": "set", "data": {"k": n, "n": n}, "id": n}) for n in numbers]
        return self.machine.receive("s", frames, self.now)

    def say(self, phase: str, slots: Any = AFTER, attempt: int = 9) -> bool:
        standing, effects = self.machine.rebalance(Rebalance(phase, slots, attempt), self.now)
        self.run(effects)
        return standing.is_done

    def parts(self) -> list[Any]:
        return [part for blob in self.blobs for part in blob.parts if part.keys]


def test_what_was_taken_leaves_at_once_and_what_comes_then_waits_for_the_next_map() -> None:
    driven = Driven()
    assert driven.read(1, 2)
    assert driven.parts() == []
    driven.say("hold")
    assert driven.blobs[-1].closes
    assert sum(len(part.keys) for part in driven.parts()) == 2
    assert driven.say("hold"), "all is committed"
    assert not driven.read(*range(10, 30)), "and nothing more is read"
    driven.now += 500.0
    driven.run(driven.machine.wake(driven.now))
    assert sum(len(part.keys) for part in driven.parts()) == 2
    driven.say("release")
    driven.now += 200.0
    driven.run(driven.machine.wake(driven.now))
    placed = {
        key.key: part.shard for part in driven.parts() for key in part.keys if key.key not in ('["k",1]', '["k",2]')
    }
    assert placed == {f'["k",{n}]': AFTER.shard(f'["k",{n}]') for n in range(10, 30)}  # type: ignore[arg-type]
    assert driven.resumed == 1
    assert {blob.header.sender for blob in driven.blobs} == {"ingestor-0"}


def test_a_late_word_of_an_earlier_attempt_does_not_let_it_go_on() -> None:
    driven = Driven()
    assert driven.say("hold", attempt=8)
    driven.say("release", BEFORE, attempt=8)
    assert driven.say("hold", attempt=9)
    assert not driven.say("release", BEFORE, attempt=8)
    driven.read(1)
    assert driven.parts() == []
    assert driven.say("release", attempt=9)
    driven.now += 200.0
    driven.run(driven.machine.wake(driven.now))
    assert sum(len(part.keys) for part in driven.parts()) == 1


def test_it_is_quiet_only_when_shards_have_committed_all() -> None:
    driven = Driven()
    driven.commits = False
    driven.read(1)
    assert not driven.say("hold")
    assert not driven.say("hold")
    driven.commits = True
    driven.now += 20.0
    driven.run(driven.machine.wake(driven.now))  # an empty blob asks
    assert driven.say("hold")


def test_a_cut_that_was_given_up_leaves_the_map_and_a_late_word_of_it_holds_nothing() -> None:
    driven = Driven()
    driven.say("hold")
    driven.read(1)
    driven.say("release", BEFORE)
    assert not driven.say("hold", attempt=9), "that attempt is over"
    assert driven.read(2)
    driven.now += 200.0
    driven.run(driven.machine.wake(driven.now))
    assert {key.key for part in driven.parts() for key in part.keys} == {'["k",1]', '["k",2]'}
    assert {part.shard for part in driven.parts()} == {0}


def test_a_mark_that_is_made_meanwhile_goes_to_all_shards_of_the_next_map() -> None:
    driven = Driven()
    driven.say("hold")
    driven.run(driven.machine.opened("s", driven.now))
    before = len(driven.blobs)
    driven.say("release")
    driven.now += 200.0
    driven.run(driven.machine.wake(driven.now))
    marked = {part.shard for blob in driven.blobs[before:] for part in blob.parts if part.feeds}
    assert marked == {0, 1}


def test_what_it_asked_by_an_earlier_map_is_asked_anew_before_it_begins() -> None:
    driven = Driven(claimed=Claimed(1, 8, [], []))  # of another shard: it has not begun
    driven.say("release")
    asked = [part.shard for blob in driven.blobs[1:] for part in blob.parts if part.claim is not None]
    assert sorted(asked) == [0, 1]


def test_while_it_repeats_what_shards_have_in_part_it_does_not_hold() -> None:
    claimed = Claimed(0, 8, [("s", 5, 9)], [Checkpoint("s", 5, 3, 3)])
    driven = Driven(SourceTraits(Repeats.SOURCE, has_ids=True), claimed)
    driven.read(4, 5)
    assert not driven.say("hold")
    assert driven.read(6, 7, 8), "it goes on reading"
    driven.read(9)
    driven.say("hold")
    assert driven.say("hold")
    assert driven.parts() == [], "the shard had all of it"


def test_it_does_not_hold_while_it_asks_for_what_was_missed() -> None:
    driven = Driven(SourceTraits(Repeats.SOURCE, asks=True, has_ids=True))
    driven.read(1, 2)
    (asked,) = (each for each in driven.machine.opened("s", driven.now) if isinstance(each, AskMissed))
    driven.now += 3_600_000.0
    assert not driven.say("hold")
    assert driven.machine.awaits(asked)
    (again,) = (each for each in driven.machine.opened("s", driven.now) if isinstance(each, AskMissed))
    assert (driven.machine.awaits(asked), driven.machine.awaits(again)) == (False, True)
    driven.run(driven.machine.missed(again, [], driven.now))
    driven.say("hold")
    assert driven.say("hold")
    assert driven.machine.events_dropped["s", "history_gone"] == 0


def test_what_was_read_meanwhile_is_not_taken_where_it_comes_again() -> None:
    driven = Driven(SourceTraits(Repeats.SOURCE, has_ids=True))
    driven.read(1)
    driven.say("hold")
    driven.read(2, 3)
    driven.machine.closed("s")
    assert driven.machine.resume_id("s") == 1
    driven.say("release")
    driven.run(driven.machine.opened("s", driven.now))
    driven.read(2, 3)
    driven.now += 200.0
    driven.run(driven.machine.wake(driven.now))
    assert [each.last for part in driven.parts() for each in part.feeds] == [1, 3]


def test_what_is_sent_to_a_receiver_follows_on_what_the_sender_had() -> None:
    feed = Feed("s", Sequence("s", 1))
    feed.sent = {0: 9, 2: 12}
    feed.committed = {0: 7, 2: 3}
    inherit([feed], [(0, 1), (0, 2)])
    assert feed.sent == {0: 9, 1: 9, 2: 12}
    assert feed.committed == {0: 7, 1: 7, 2: 7}, "so what it repeats is not counted again"
    assert FeedRange("s", 1, 13, 13, feed.sent[2]).previous == 12


def test_frames_that_have_gathered_leave_before_the_cut_and_none_gather_in_it() -> None:
    driven = Driven(document=WHOLE)

    def read(number: int) -> bool:
        frames = [
            orjson.dumps({"event": "set", "data": {"k": n % 3, "n": number}, "id": 64 * number + n}) for n in range(64)
        ]
        return driven.machine.receive("s", frames, driven.now)

    def numbers(parts: list[Any]) -> set[int]:
        return {orjson.loads(bytes(each.operations[0].value))["n"] for part in parts for each in part.keys}

    for number in range(3):
        assert read(number)
    assert driven.machine._gathering, "else this tests nothing"
    driven.say("hold")
    assert driven.say("hold")
    assert not driven.machine._gathering
    assert numbers(driven.parts()) == {2}
    sent = len(driven.parts())
    assert not read(3)
    assert not driven.machine._gathering
    driven.now += 100.0
    driven.run(driven.machine.wake(driven.now))
    assert len(driven.parts()) == sent
    driven.say("release")
    driven.now += 200.0
    driven.run(driven.machine.wake(driven.now))
    assert numbers(driven.parts()[sent:]) == {3}
    assert driven.machine.events_received == {"s": 256}
