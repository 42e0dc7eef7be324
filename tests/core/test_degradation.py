"""Who does not take what is due is degraded step by step, closed in the end, and comes back slower than it went."""

import pytest

from cluster.core.degradation import CALM_MS, DRAIN_MS, LOOK_MS, STALL_MS, STEP_MS, Degradation, Step


class Looked:
    """A socket that is looked at every `LOOK_MS`."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.writes = 1
        self.machine = Degradation(self.now)

    def look(self, ms: float, unsent: int | None, *, falls: int = 0) -> Step:
        """Look for so long at a socket on which the same frame waits (None: nothing does), of which each time so much is sent."""
        for _ in range(round(ms / LOOK_MS)):
            self.now += LOOK_MS
            self.machine.look(self.now, self.writes, unsent)
            if unsent is not None:
                unsent -= falls
        return self.machine.step


def test_who_takes_nothing_climbs_step_by_step_and_is_closed_in_the_end() -> None:
    looked = Looked()
    looked.look(LOOK_MS, 100_000)
    begun = looked.now
    steps = []
    while not looked.machine.is_stalled:
        looked.look(LOOK_MS, 100_000)
        if not steps or steps[-1][0] is not looked.machine.step:
            steps.append((looked.machine.step, looked.now - begun))
    assert steps == [
        (Step.IN_STEP, LOOK_MS),
        (Step.WIDE, STEP_MS),
        (Step.WIDER, 2 * STEP_MS),
        (Step.ON_DRAIN, DRAIN_MS),
    ]
    assert looked.now - begun == STALL_MS


def test_a_hiccup_is_forgiven() -> None:
    looked = Looked()
    for _ in range(100):
        assert looked.look(500.0, 5_000) is Step.IN_STEP
        looked.writes += 1
        looked.look(500.0, None)
    assert looked.machine.is_over


def test_who_is_held_up_more_than_half_of_the_time_climbs_but_not_to_where_it_gets_nothing() -> None:
    looked = Looked()
    for _ in range(20):
        looked.look(1_250.0, 5_000)
        looked.writes += 1
        looked.look(500.0, None)
    assert looked.machine.step is Step.WIDER
    assert not looked.machine.is_stalled


def test_frames_that_are_each_taken_before_the_next_look_hold_nothing_up() -> None:
    looked = Looked()
    for _ in range(1_000):
        looked.writes += 1
        assert looked.look(LOOK_MS, 5_000) is Step.IN_STEP


def test_one_long_frame_may_take_its_time_while_it_moves() -> None:
    looked = Looked()
    assert looked.look(10 * STALL_MS, 10**9, falls=1_000) is Step.WIDER
    assert not looked.machine.is_stalled
    assert looked.look(DRAIN_MS + LOOK_MS, 5) is Step.ON_DRAIN


def test_it_comes_back_one_step_at_a_time_once_it_keeps_up() -> None:
    looked = Looked()
    assert looked.look(DRAIN_MS + LOOK_MS, 5_000) is Step.ON_DRAIN
    assert looked.look(2 * CALM_MS, 5_000) is Step.ON_DRAIN, "only its draining ends that"
    looked.machine.drained()
    assert looked.machine.step is Step.WIDER
    assert looked.look(CALM_MS - LOOK_MS, None) is Step.WIDER
    assert looked.look(2 * LOOK_MS, 5_000) is Step.WIDER, "held up again: it begins to be calm anew"
    assert looked.look(CALM_MS - LOOK_MS, None) is Step.WIDER
    assert looked.look(LOOK_MS, None) is Step.WIDE
    assert not looked.machine.is_over
    assert looked.look(CALM_MS, None) is Step.IN_STEP
    assert looked.machine.is_over


def test_who_has_more_waiting_than_may_gets_nothing_until_it_drains() -> None:
    looked = Looked()
    looked.machine.overfull()
    assert looked.machine.step is Step.ON_DRAIN


@pytest.mark.parametrize("held_up_ms", [3_000.0, 60_000.0])
def test_a_gateway_that_was_held_up_itself_blames_nobody(held_up_ms: float) -> None:
    looked = Looked()
    looked.look(LOOK_MS, 5_000)
    looked.now += held_up_ms
    assert looked.look(LOOK_MS, 4_000) is Step.IN_STEP
    assert looked.machine.held_ms == 2 * LOOK_MS
