"""What keeps a thread busy is reported while it does, once."""

import threading
from queue import SimpleQueue

import pytest

from cluster.app.watchdog import WATCHDOG_S, Call, Watchdog


class Roused(threading.Event):
    """Tells when the watchdog lies down to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = threading.Semaphore(0)

    def wait(self, timeout=None):
        if timeout is None:
            self.slept.release()
        return super().wait(timeout)


@pytest.fixture
def reports():
    return SimpleQueue()


@pytest.fixture
def watchdog(reports):
    made = Watchdog(lambda function, seconds: reports.put((function, seconds)))
    made._roused = Roused()
    yield made
    made.close()
    if made._thread is not None:
        made._thread.join(10)
        assert not made._thread.is_alive()


def test_a_call_is_reported_while_it_lasts(watchdog, reports):
    lane = watchdog.lane()
    lane.enter(Call("m:f"))
    function, seconds = reports.get(timeout=10)
    assert function == "m:f"
    assert seconds >= WATCHDOG_S
    assert lane.leave() >= seconds


def test_lanes_are_told_apart(watchdog, reports):
    lanes = {name: watchdog.lane() for name in ("m:f", "m:g")}
    for name, lane in lanes.items():
        lane.enter(Call(name))
    assert {reports.get(timeout=10)[0], reports.get(timeout=10)[0]} == {"m:f", "m:g"}


def test_a_call_is_reported_once(watchdog, reports):
    lane, other, call = watchdog.lane(), watchdog.lane(), Call("m:f")
    lane.enter(call)
    assert reports.get(timeout=10)[0] == "m:f"
    lane.leave()
    watchdog.report(call, 1.0)
    lane.enter(call)
    other.enter(Call("m:g"))
    assert reports.get(timeout=10)[0] == "m:g"  # a later one, of which the first would have been told before
    assert reports.empty()


def test_it_sleeps_while_nothing_is_called_and_wakes_for_the_next(watchdog, reports):
    lane = watchdog.lane()
    for _ in range(3):
        lane.enter(Call("m:f"))
        assert reports.get(timeout=10)[0] == "m:f"
        lane.leave()
        assert watchdog._roused.slept.acquire(timeout=10)
        assert watchdog.is_asleep


def test_a_lane_that_is_forgotten_is_not_looked_at(watchdog, reports):
    lane, other = watchdog.lane(), watchdog.lane()
    watchdog.forget(lane)
    lane.enter(Call("m:f"))
    other.enter(Call("m:g"))
    assert reports.get(timeout=10)[0] == "m:g"
    assert reports.empty()


def test_leaving_what_was_not_entered_takes_no_time(watchdog):
    assert watchdog.lane().leave() == 0.0
