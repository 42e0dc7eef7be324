"""A shell whose machine fails ends its process: an actor that goes on would say of what it never applied that it has."""

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.actors import shell
from cluster.actors.shell import Shell
from cluster.actors.specification import Specification, encode
from cluster.actors.tasks import FAILED
from cluster.config import load_mapping
from cluster.core.messages import Announce, Answer, Measure, Measured, Message, Noted
from cluster.errors import UnavailableError
from cluster.wire import blob

ANNOUNCE = Announce("shard-0", 7)


class Machine:
    """Fails as it is told, at whatever comes."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.due: float | None = None

    def _take(self, *_: Any) -> tuple[()]:
        if self.fails is not None:
            raise self.fails
        return ()

    answered = unanswered = wake = _take

    def deadline(self) -> float | None:
        due, self.due = self.due, None
        return due


class Actor(Shell):
    """The least of an actor."""

    machine: Machine

    def take(self, message: Message) -> Answer | asyncio.Future[Answer]:
        self.run(self.machine._take(message))
        return Noted(1)

    async def status(self) -> dict[str, object]:
        self.machine._take()
        return {}

    async def samples(self) -> bytes:
        return b"samples"


@pytest.fixture
async def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    context = SimpleNamespace(get_node_id=lambda: "n")
    monkeypatch.setattr(shell.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(shell, "configure_logs", lambda: None)  # they are the whole process's
    made = Actor("gateway-0", Specification.decode(encode(load_mapping({}, {}), 2)))
    made.machine = Machine()
    return made


class Ended(BaseException):
    """The process has."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    return codes


async def say(actor: Actor, message: Message) -> Answer | None:
    """Return the answer to a message that comes by a socket; None: it failed."""
    answer = actor._take_here(*blob.encode(message))
    async with asyncio.timeout(5.0):
        encoded = await answer if isinstance(answer, asyncio.Future) else answer
    return blob.decode_answer(encoded) if encoded else None


async def test_a_message_that_fails_as_it_is_applied_ends_the_process(actor: Actor, ends: list[int]) -> None:
    assert await say(actor, ANNOUNCE) == Noted(1)
    actor.machine.fails = KeyError("unforeseen")
    with pytest.raises(Ended):
        await say(actor, ANNOUNCE)
    with pytest.raises(Ended):
        await actor.call(*blob.encode(ANNOUNCE))
    assert ends == [FAILED, FAILED]


async def test_a_machine_that_fails_as_it_wakes_ends_the_process(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(os, "_exit", ended.set_result)
    actor.machine.fails, actor.machine.due = KeyError("unforeseen"), actor.now()
    actor.arm()
    async with asyncio.timeout(5.0):
        assert await ended == FAILED


@pytest.mark.parametrize("blob_", [b"", b"\x01" + blob.encode(ANNOUNCE)[0][1:], blob.encode(ANNOUNCE)[0][:1] + b"\xc1"])
async def test_what_is_no_message_of_this_version_is_refused(actor: Actor, ends: list[int], blob_: bytes) -> None:
    assert actor._take_here(blob_) == b""
    with pytest.raises(UnavailableError):
        await actor.call(blob_)
    assert not ends


async def test_one_that_takes_nothing_any_more_goes_on(actor: Actor, ends: list[int]) -> None:
    actor.machine.fails = UnavailableError("it leaves")
    assert await say(actor, ANNOUNCE) is None
    with pytest.raises(UnavailableError):
        await actor.call(*blob.encode(ANNOUNCE))
    assert not ends


async def test_who_cannot_be_measured_says_so_at_once(actor: Actor, ends: list[int]) -> None:
    assert isinstance(await say(actor, Measure()), Measured)
    actor.machine.fails = KeyError("unforeseen")
    assert await say(actor, Measure()) is None
    with pytest.raises(UnavailableError):
        await actor.call(*blob.encode(Measure()))
    assert not ends, "nothing has changed by it"


async def test_an_earlier_configuration_is_not_taken(actor: Actor) -> None:
    config = load_mapping({"gateway": {"origins": ["https://a.example"]}}, {})
    for revision, counts in ((1, 2), (3, 3), (2, 3)):
        assert await actor.reconfigure(encode(config, revision))
        assert actor.specification.revision == counts
