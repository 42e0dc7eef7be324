import asyncio
import json

import pytest

from cluster.core.retry import Backoff
from cluster.sources.source import SourceState
from cluster.sources.websocket import WebSocketSource

QUICK = Backoff(initial_ms=5, max_ms=20, attempts=3)


class Recorder:
    """A listener that remembers, and lets a test wait for what it is told."""

    def __init__(self):
        self.calls = []
        self.frames = []
        self.events = []
        self.states = []
        self.reasons = []
        self.refusals = []
        self.details = []
        self.opens = 0
        self.positions = {}
        self.accept = lambda: True
        self._told = asyncio.Event()

    def position(self, source, channel=None):
        return self.positions.get(channel)

    def opened(self, source):
        self.opens += 1
        self.calls.append("opened")
        self._told.set()

    def received(self, source, frames):
        self.frames.extend(frames)
        self.calls.append("received")
        self._told.set()
        return self.accept()

    def received_events(self, source, events):
        for each in events:
            told = (each.event, each.data, each.id)
            self.events.append(told if each.channel is None else (*told, each.channel))
        self.calls.append("received")
        self._told.set()
        return self.accept()

    def refused(self, source, reason, size_bytes, detail=""):
        self.details.append(detail)
        self.refusals.append((reason, size_bytes))
        self._told.set()

    def closed(self, source, reason):
        self.reasons.append(reason)
        self.calls.append("closed")
        self._told.set()

    def state_changed(self, source, state):
        assert isinstance(state, SourceState)
        self.states.append(state.value)
        self.calls.append(state.value)
        self._told.set()

    async def until(self, condition, timeout_s=60):
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._told.clear()
                await self._told.wait()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
async def running():
    """Start a source; it is stopped at the end, and what it raised is raised."""
    tasks = []

    def start(source):
        task = asyncio.get_running_loop().create_task(source.run())
        tasks.append(task)
        return task

    yield start
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


@pytest.fixture(params=["websockets", "fast"])
def transport(request):
    """Each transport in turn: both keep one contract."""
    if request.param == "fast":
        pytest.importorskip("picows", reason="picows, the fast transport, is not installed")
    return request.param


@pytest.fixture
def source(transport):
    def make(url, recorder, **options):
        options.setdefault("backoff", QUICK)
        options.setdefault("transport", transport)
        return WebSocketSource(
            "events",
            url,
            recorder,
            subscribe_message=lambda channel, last: json.dumps(
                {"+": channel} if last is None else {"+": channel, "after": last}
            ),
            unsubscribe_message=lambda channel: json.dumps({"-": channel}),
            **options,
        )

    return make
