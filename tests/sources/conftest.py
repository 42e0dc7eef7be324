import asyncio

import pytest

from cluster.sources.source import SourceState


class Recorder:
    """A listener that remembers, and lets a test wait for what it is told."""

    def __init__(self):
        self.calls = []
        self.frames = []
        self.events = []
        self.states = []
        self.reasons = []
        self.refusals = []
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

    def received(self, source, frame):
        self.frames.append(frame)
        self.calls.append("received")
        self._told.set()
        return self.accept()

    def received_event(self, source, event, data, event_id):
        self.events.append((event, data, event_id))
        self.calls.append("received")
        self._told.set()
        return self.accept()

    def refused(self, source, reason, size_bytes):
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

    async def until(self, condition, timeout_s=10):
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
