"""Which levels can be had, and which answers a sync is for."""

from typing import Any

import pytest

from cluster.core.acknowledgement import Acknowledgements, Held
from cluster.core.messages import Failure, Written
from cluster.errors import ErrorCode, HarborError


def held(number: int) -> Held:
    return Held("gateway-0", number, f"r{number}", Written(number))


@pytest.mark.parametrize(("level", "is_durable"), [("", True), ("durable", True), ("memory", False)])
def test_with_a_store_writes_are_durable_unless_less_is_asked_for(level: str, is_durable: bool) -> None:
    assert Acknowledgements("").is_durable(level) == is_durable


@pytest.mark.parametrize("level", ["", "memory"])
@pytest.mark.parametrize("why", ["off", "unavailable"])
def test_without_a_store_nobody_waits(level: str, why: str) -> None:
    assert not Acknowledgements(why).is_durable(level)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("level", "why", "code", "says"),
    [
        ("durable", "off", ErrorCode.UNSUPPORTED, "storage.path is null"),
        ("durable", "unavailable", ErrorCode.UNAVAILABLE, "could not be opened"),
        ("replicated", "", ErrorCode.UNSUPPORTED, "standby"),
        ("replicated", "off", ErrorCode.UNSUPPORTED, "standby"),
    ],
)
def test_what_cannot_be_had_is_refused(level: str, why: str, code: ErrorCode, says: str) -> None:
    with pytest.raises(HarborError, match=says) as raised:
        Acknowledgements(why).is_durable(level)  # type: ignore[arg-type]
    assert raised.value.code is code


@pytest.mark.parametrize(
    ("level", "standby", "is_durable", "promised"),
    [
        ("", "in_sync", False, {7: ""}),
        ("replicated", "in_sync", False, {7: "replicated"}),
        ("durable", "in_sync", True, {}),
        ("memory", "in_sync", False, {}),
        ("", "missing", True, {}),
    ],
)
def test_with_a_standby_writes_are_replicated_unless_something_else_is_asked_for(
    level: str, standby: Any, is_durable: bool, promised: dict[int, str]
) -> None:
    acknowledgements = Acknowledgements("")
    acknowledgements.standby = standby
    assert acknowledgements.is_durable(level) == is_durable
    acknowledgements.promise(level, 7)
    assert acknowledgements.promised == promised


def test_while_the_standby_is_built_replicated_cannot_be_had_yet() -> None:
    acknowledgements = Acknowledgements("off")
    acknowledgements.standby = "missing"
    with pytest.raises(HarborError, match="being built") as raised:
        acknowledgements.is_durable("replicated")
    assert raised.value.code is ErrorCode.UNAVAILABLE


def test_one_sync_is_under_way_and_is_for_those_before_it() -> None:
    acknowledgements = Acknowledgements("")
    assert not acknowledgements.begin()
    acknowledgements.hold(held(1))
    acknowledgements.hold(held(2))
    assert acknowledgements.begin()
    acknowledgements.hold(held(3))
    assert not acknowledgements.begin()
    assert acknowledgements.synced() == [held(1), held(2)]
    assert acknowledgements.begin()
    assert acknowledgements.synced() == [held(3)]
    assert not acknowledgements.begin()


def test_a_failed_sync_acknowledges_nothing() -> None:
    acknowledgements = Acknowledgements("")
    acknowledgements.hold(held(1))
    acknowledgements.begin()
    (answer,) = acknowledgements.synced(failed=True)
    assert isinstance(answer.payload, Failure)
    assert answer.payload.code == ErrorCode.UNAVAILABLE


def test_what_was_not_stored_is_not_acknowledged_by_the_sync_after_it() -> None:
    acknowledgements = Acknowledgements("")
    acknowledgements.hold(held(1))
    acknowledgements.hold(held(2))
    acknowledgements.begin()
    acknowledgements.not_stored({"r2"})
    first, second = acknowledgements.synced()
    assert first.payload == Written(1)
    assert isinstance(second.payload, Failure)
