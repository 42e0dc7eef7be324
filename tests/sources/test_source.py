import asyncio

import pytest

from cluster.core.retry import Backoff
from cluster.sources.source import ConnectionFailedError, GoneError, ReconnectingSource, SourceState


class Scripted(ReconnectingSource):
    """Each conversation follows the next line of the script."""

    def __init__(self, listener, script, backoff):
        super().__init__("s", listener, backoff, jitter=lambda: 0.0)
        self.script = iter(script)

    async def _converse(self):
        match next(self.script, "wait"):
            case "refuse":
                raise ConnectionFailedError("no")
            case "drop":
                self._opened()
                raise ConnectionFailedError("dropped")
            case "last":
                self._opened()
                await asyncio.sleep(0.02)
                raise ConnectionFailedError("lasted")
            case "gone":
                raise GoneError("gone")
            case "bug":
                raise ZeroDivisionError
            case "wait":
                self._opened()
                await asyncio.Event().wait()


QUICK = Backoff(initial_ms=1, max_ms=4, attempts=3)


async def test_reconnects_and_counts(recorder, running):
    source = Scripted(recorder, ["drop"], QUICK)
    assert source.state is SourceState.DISCONNECTED
    running(source)
    await recorder.until(lambda: recorder.opens == 2)
    assert recorder.calls[:7] == ["connecting", "opened", "connected", "closed", "reconnecting", "opened", "connected"]
    assert (source.reconnects, recorder.reasons) == (1, ["dropped"])


async def test_after_attempts_in_a_row_it_is_failed_and_goes_on(recorder, running):
    source = Scripted(recorder, ["refuse"] * 5, QUICK)
    running(source)
    await recorder.until(lambda: "connected" in recorder.states)
    assert recorder.states == ["connecting", "reconnecting", "failed", "connected"]
    assert len(recorder.reasons) == 5
    assert source.reconnects == 0


async def test_an_upstream_that_hangs_up_at_once_is_backed_off_from(recorder, running):
    delays = []

    class Noting(Backoff, frozen=True):
        def delay_ms(self, failures, random, initial_ms=None):
            delays.append(failures)
            return 20.0

    running(Scripted(recorder, ["drop"] * 4, Noting(attempts=9)))
    await recorder.until(lambda: recorder.opens == 5)
    assert delays == [1, 2, 3, 4]


async def test_a_connection_that_lasted_ends_the_row(recorder, running):
    failures = []

    class Noting(Backoff, frozen=True):
        def delay_ms(self, count, random, initial_ms=None):
            failures.append(count)
            return 0.0

    running(Scripted(recorder, ["refuse", "refuse", "last", "refuse"], Noting(attempts=9)))
    await recorder.until(lambda: recorder.opens == 2)
    assert failures == [1, 2, 1, 2]


async def test_gone_ends_it(recorder):
    source = Scripted(recorder, ["drop", "gone"], QUICK)
    await source.run()
    assert recorder.states == ["connecting", "connected", "reconnecting", "disconnected"]
    assert recorder.reasons == ["dropped", "gone"]


async def test_cancelling_ends_disconnected(recorder, running):
    source = Scripted(recorder, [], QUICK)
    task = running(source)
    await recorder.until(lambda: recorder.opens == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.state is SourceState.DISCONNECTED


async def test_a_bug_is_not_hidden(recorder):
    with pytest.raises(ZeroDivisionError):
        await Scripted(recorder, ["bug"], QUICK).run()
    assert recorder.states == ["connecting", "disconnected"]


async def test_a_run_begins_when_those_before_it_have_closed(recorder, running):
    class Slow(Scripted):
        """Takes its time to close."""

        async def _converse(self):
            try:
                await super()._converse()
            finally:
                await closing.wait()

    closing = asyncio.Event()
    source = Slow(recorder, [], QUICK)
    first = running(source)
    await recorder.until(lambda: recorder.opens == 1)
    first.cancel()
    second = running(source)
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    running(source)
    await asyncio.sleep(0)
    assert recorder.states == ["connecting", "connected"]
    closing.set()
    await recorder.until(lambda: recorder.opens == 2)
    assert recorder.states == ["connecting", "connected", "disconnected", "connecting", "connected"]


async def test_asked_to_reconnect_it_breaks_off_whatever_it_waits_for(recorder, running):
    class Stuck(ReconnectingSource):
        """Never gets to its first connection's end by itself."""

        async def _converse(self):
            met.append(len(met))
            if len(met) > 1:
                self._opened()
            recorder.calls.append(f"conversation {len(met)}")
            recorder._told.set()
            await asyncio.Event().wait()

    met = []
    source = Stuck("s", recorder, QUICK)
    source.reconnect()
    running(source)
    await recorder.until(lambda: met)
    source.reconnect()
    await recorder.until(lambda: recorder.opens)
    source.reconnect()
    await recorder.until(lambda: recorder.opens == 2)
    assert recorder.calls == [
        *("connecting", "conversation 1", "opened", "connected", "conversation 2", "opened", "conversation 3")
    ]
    assert source.reconnects == 1


async def test_asked_to_reconnect_between_two_attempts_it_waits_as_it_would(recorder, running):
    source = Scripted(recorder, ["refuse"], QUICK)
    recorder.closed = lambda _name, reason: (recorder.reasons.append(reason), source.reconnect())
    running(source)
    await recorder.until(lambda: recorder.opens)
    assert recorder.states == ["connecting", "reconnecting", "connected"]
    assert recorder.reasons == ["no"]
