"""The supervisor's machine for moves of slots: who is told what, and when it goes on, gives up, or goes on where the last life stopped."""

from collections.abc import Callable

import pytest

from cluster.core.messages import Progress, Rebalance
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.slot_move import AGAIN_MS, CUT_MS, LOOK_MS, MAX_AGAIN_MS, Phase, SlotMoves

NOW = 1_000_000.0
MAPS = {count: assign_slots(range(count), 5) for count in (1, 2, 4)}
EVERYBODY = ["shard-0", "shard-1", "shard-2", "shard-3", "coordinator-0", "coordinator-1"]


def done(name: str, ask: Rebalance) -> Progress | None:
    return Progress(ask.map, True)


class Played:
    """A machine and those it talks to, who answer as they are told to."""

    def __init__(self, moves: SlotMoves) -> None:
        self.moves = moves
        self.now = NOW
        self.ingestors = ["ingestor-0"]
        self.said: list[tuple[str, list[str]]] = []
        """(phase, who was told), each step."""

    def step(self, answer: Callable[[str, Rebalance], Progress | None] = done, ms: float = 10.0) -> None:
        self.now += ms
        self.moves.begin(EVERYBODY, self.now)
        asks = self.moves.asks(self.ingestors, ["gateway-0"])
        if asks:
            self.said.append((self.moves.phase.value, sorted({f"{name} {ask.phase}" for name, ask in asks.items()})))
        self.moves.heard(asks, {name: answer(name, ask) for name, ask in asks.items()}, self.now)

    def until(self, phase: Phase, answer: Callable[[str, Rebalance], Progress | None] = done) -> None:
        for _ in range(20):
            if self.moves.phase is phase:
                return
            self.step(answer)
        raise AssertionError(f"it is at {self.moves.phase}")


def settled(shards: int = 2) -> Played:
    """A machine that has found a map of so many shards."""
    played = Played(SlotMoves(shards, 1, NOW))
    played.step(lambda *_: Progress(MAPS[shards], True))
    played.until(Phase.IDLE)
    played.said.clear()
    return played


def test_a_new_cluster_gets_the_map_that_is_configured() -> None:
    moves = SlotMoves(2, 1, NOW)
    assert moves.actors == ["shard-0", "shard-1", "coordinator-0"]
    assert not moves.is_settled
    played = Played(moves)
    played.step(lambda *_: Progress(None, True))
    assert moves.map == assign_slots(range(2), 1)
    played.until(Phase.IDLE)
    assert moves.is_done
    assert played.said == [
        ("look", ["shard-0 look", "shard-1 look"]),
        (
            "release",
            ["coordinator-0 release", "gateway-0 release", "ingestor-0 release", "shard-0 release", "shard-1 release"],
        ),
    ]


def test_shards_are_added_part_by_part() -> None:
    played = settled()
    moves = played.moves
    moves.want(4, 2)
    assert moves.actors == EVERYBODY
    assert not moves.is_done
    played.until(Phase.RELEASE)
    played.until(Phase.IDLE)
    shards = ["shard-0", "shard-1", "shard-2", "shard-3"]
    assert [(phase, who) for phase, who in played.said if phase != "release"] == [
        ("copy", [f"{each} copy" for each in shards]),
        ("hold", ["ingestor-0 hold"]),
        ("seal", ["ingestor-0 hold", *(f"{each} seal" for each in shards)]),
        ("send", ["ingestor-0 hold", *(f"{each} send" for each in shards)]),
        ("decide", ["shard-0 decide"]),
        ("adopt", ["shard-0 send", "shard-1 send", "shard-2 adopt", "shard-3 adopt"]),
        ("drop", ["shard-0 drop", "shard-1 drop"]),
    ]
    assert moves.map is not None
    assert (moves.map.epoch, moves.map.shards, moves.map.coordinators) == (6, 4, 2)
    assert moves.map.owners == assign_slots(range(4), 0).owners
    (moved,) = moves.finished
    assert moved.slots == sum(owner > 1 for owner in moves.map.owners)
    assert moved.pause_ms == 70.0


def test_shard_0_gets_the_histories_of_those_that_go_and_they_are_told_until_all_have_the_map() -> None:
    played = settled(4)
    played.moves.want(2, 1)
    played.until(Phase.ADOPT)
    assert "shard-0" in played.moves.receivers
    played.until(Phase.RELEASE)
    played.step()
    assert "shard-3 release" in played.said[-1][1]
    assert played.moves.actors == ["shard-0", "shard-1", "coordinator-0"]


def test_a_move_waits_for_those_it_needs() -> None:
    played = settled()
    played.moves.want(4, 1)
    played.moves.begin(["shard-0", "shard-1", "coordinator-0"], played.now)
    assert played.moves.phase is Phase.IDLE


def test_a_cut_that_takes_too_long_is_given_up_and_tried_again() -> None:
    played = settled()
    moves = played.moves
    moves.want(4, 1)
    played.until(Phase.SEAL)
    silent = lambda name, ask: None if name == "shard-1" else done(name, ask)  # noqa: E731
    played.step(silent)
    assert moves.phase is Phase.SEAL
    played.step(silent, CUT_MS)
    assert (moves.phase, moves.given_up, moves.map) == (Phase.RELEASE, 1, MAPS[2])
    played.until(Phase.IDLE)
    assert moves.finished == []
    played.step()
    assert moves.phase is Phase.IDLE
    played.step(ms=AGAIN_MS)
    played.until(Phase.RELEASE)
    assert moves.map.epoch == 6


def repeating(name: str, ask: Rebalance) -> Progress | None:
    """Its upstream is away, so it cannot hold; the other does at once."""
    return Progress(ask.map, ask.phase != "hold" or name != "ingestor-1")


def test_the_longer_it_is_given_up_in_a_row_the_later_it_is_tried_again() -> None:
    played = settled()
    moves = played.moves
    silent = lambda name, ask: None if name == "shard-1" and ask.phase == "seal" else done(name, ask)  # noqa: E731

    def pause() -> float:
        """Have a cut given up. Returns after how long the next try begins."""
        played.until(Phase.SEAL, silent)
        played.step(silent, CUT_MS)
        assert moves.phase is Phase.RELEASE
        given_up = played.now
        played.step()
        while moves.phase is Phase.IDLE:
            played.step(silent, 100.0)
        return round((played.now - given_up) / 1000.0)

    moves.want(4, 1)
    assert [pause() for _ in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    moves.want(4, 2)
    assert [pause() for _ in range(2)] == [2, 4], "other numbers"
    played.until(Phase.RELEASE)
    played.until(Phase.IDLE)
    assert (moves.moves, moves.map and moves.map.coordinators) == (1, 2)
    moves.want(2, 1)
    assert pause() == 2, "one came through"


def test_who_could_not_hold_is_waited_for_before_others_are_held_again() -> None:
    played = settled()
    played.ingestors = ["ingestor-0", "ingestor-1"]
    moves = played.moves
    moves.want(4, 1)
    played.until(Phase.HOLD)
    assert not moves.is_settled
    played.step(repeating)
    assert played.said[-1] == ("hold", ["ingestor-0 hold", "ingestor-1 hold"])
    for _ in range(2):
        played.step(repeating, CUT_MS)
        assert moves.phase is Phase.RELEASE
        played.until(Phase.IDLE)
        played.step(ms=MAX_AGAIN_MS)
        played.until(Phase.HOLD)
        played.step(repeating)
        assert played.said[-1] == ("hold", ["ingestor-1 hold"])
    assert moves.phase is Phase.HOLD
    played.step()
    assert moves.phase is Phase.HOLD, "now the others"
    played.step()
    assert played.said[-1] == ("hold", ["ingestor-0 hold", "ingestor-1 hold"])
    assert moves.phase is Phase.SEAL
    played.until(Phase.RELEASE)
    assert moves.map is not None
    assert moves.map.shards == 4


def test_who_could_not_hold_and_is_no_more_is_not_waited_for() -> None:
    played = settled()
    played.ingestors = ["ingestor-0", "ingestor-1"]
    moves = played.moves
    moves.want(4, 1)
    played.until(Phase.HOLD)
    played.step(repeating, 2 * CUT_MS)
    played.until(Phase.IDLE)
    played.ingestors = ["ingestor-0"]
    played.step(ms=MAX_AGAIN_MS)
    played.until(Phase.RELEASE)
    assert moves.map is not None
    assert moves.map.shards == 4


def test_once_it_is_decided_a_move_is_completed_however_long_it_takes() -> None:
    played = settled()
    moves = played.moves
    moves.want(4, 1)
    played.until(Phase.ADOPT)
    assert not moves.is_settled
    played.step(lambda name, ask: None if name == "shard-2" else done(name, ask), 10 * CUT_MS)
    assert moves.phase is Phase.ADOPT
    played.until(Phase.RELEASE)
    assert moves.map is not None
    assert moves.map.shards == 4
    assert moves.is_settled


@pytest.mark.parametrize("phase", [Phase.HOLD, Phase.SEAL, Phase.SEND])
def test_who_begins_in_a_cut_waits_for_its_end(phase: Phase) -> None:
    played = settled()
    played.moves.want(4, 1)
    assert played.moves.is_settled
    played.until(phase)
    assert not played.moves.is_settled
    played.until(Phase.RELEASE)
    assert played.moves.is_settled


def test_in_a_cut_no_others_are_made_but_those_it_needs() -> None:
    played = settled()
    moves = played.moves
    moves.want(4, 2)
    played.step(lambda *_: None)
    assert moves.phase is Phase.COPY
    assert moves.may_adjust(EVERYBODY)
    played.until(Phase.HOLD)
    moves.want(8, 2)  # for the move after this one
    while moves.phase is not Phase.IDLE:
        assert not moves.may_adjust(EVERYBODY), moves.phase
        assert moves.may_adjust(EVERYBODY[:-1]), moves.phase
        played.step()
    assert moves.may_adjust(EVERYBODY)


def test_what_a_receiver_has_lost_is_sent_anew() -> None:
    played = settled()
    played.moves.want(4, 1)
    played.until(Phase.ADOPT)
    before = played.moves.asks([], [])["shard-0"].attempt
    played.step(lambda name, ask: Progress(MAPS[2], ask.phase == "send", lacks=name == "shard-2"))
    assert played.moves.asks([], [])["shard-0"].attempt == before + 1


def test_a_shard_that_knows_no_map_or_an_older_one_is_told_first() -> None:
    played = settled()
    moves = played.moves
    moves.want(4, 1)
    played.step()
    assert moves.phase is Phase.COPY or moves.phase is Phase.HOLD
    played = settled()
    played.moves.want(4, 1)
    played.step(lambda name, ask: Progress(None, False) if name == "shard-3" else done(name, ask))
    assert played.moves.asks([], [])["shard-3"] == Rebalance("release", MAPS[2], 0)
    played.step()
    assert played.moves.phase is Phase.COPY, "only with the map it begins"


def later(count: int) -> SlotMap:
    return SlotMap(6, MAPS[count].owners, count)


def test_another_life_completes_what_had_been_adopted() -> None:
    moves = SlotMoves(1, 1, NOW, found=4, keeps=True)
    played = Played(moves)
    played.step(lambda name, _: Progress(later(4) if name == "shard-2" else MAPS[2], True))
    assert (moves.phase, moves.map, moves.next) == (Phase.SEND, MAPS[2], later(4))
    assert not moves.is_settled
    played.until(Phase.IDLE)
    assert moves.map == later(4)
    assert moves.is_done


def test_another_life_lets_everybody_go_on_where_nothing_was_adopted() -> None:
    moves = SlotMoves(1, 1, NOW, found=4, keeps=True)
    played = Played(moves)
    played.step(lambda *_: Progress(MAPS[2], True, is_held=True, next=later(4)))
    assert (moves.phase, moves.map) == (Phase.RELEASE, MAPS[2])
    played.until(Phase.IDLE)
    assert moves.wanted == (4, 1), "and it goes on with what was wanted"


def test_a_cluster_that_begins_anew_is_as_it_was_and_goes_to_what_is_configured() -> None:
    moves = SlotMoves(1, 1, NOW)
    played = Played(moves)
    played.step(lambda *_: Progress(MAPS[4], True))
    assert moves.phase is Phase.LOOK
    assert moves.actors == ["shard-0", "shard-1", "shard-2", "shard-3", "coordinator-0"]
    played.step(lambda *_: Progress(MAPS[4], True))
    played.until(Phase.IDLE)
    assert moves.map == MAPS[4]
    assert not moves.is_done
    played.until(Phase.RELEASE)
    assert moves.map is not None
    assert moves.map.shards == 1


def test_shards_that_do_not_answer_are_waited_for_while_it_looks_but_not_for_ever() -> None:
    moves = SlotMoves(2, 1, NOW)
    played = Played(moves)
    silent = lambda name, _: None if name == "shard-1" else Progress(MAPS[2], True)  # noqa: E731
    played.step(silent)
    assert moves.phase is Phase.LOOK
    played.step(silent, LOOK_MS)
    assert moves.phase is Phase.RELEASE


def test_what_another_life_says_is_later_than_all_before_whatever_its_clock_says() -> None:
    moves = SlotMoves(1, 1, NOW, found=2, keeps=True)
    played = Played(moves)
    ahead = int(NOW) + 70_000
    played.step(lambda *_: Progress(MAPS[2], True, attempt=ahead))
    assert moves.phase is Phase.RELEASE
    assert {ask.attempt for ask in moves.asks(["ingestor-0"], []).values()} == {ahead + 1}


def test_where_slots_may_have_moved_all_are_waited_for() -> None:
    moves = SlotMoves(2, 1, NOW)
    played = Played(moves)
    silent = lambda name, _: None if name == "shard-3" else Progress(MAPS[2], True, next=later(4))  # noqa: E731
    for _ in range(3):
        played.step(silent, LOOK_MS)
    assert moves.phase is Phase.LOOK
    played.step(lambda name, _: Progress(later(4) if name == "shard-3" else MAPS[2], True))
    assert (moves.phase, moves.next) == (Phase.SEND, later(4))
