"""Gateways hear how an ingestor's sources are: every change until it is heard, and all of it now and then."""

from cluster.core.messages import Send, SourceStates
from cluster.core.source_news import REPEAT_MS, RETRY_MS, SourceNews

START = 1_000_000.0
LIFE = 500
GATEWAYS = ["gateway-0", "gateway-1"]


def news() -> SourceNews:
    return SourceNews("ingestor-0", LIFE, GATEWAYS)


def told(to: str, number: int, **states: str) -> Send:
    return Send(to, SourceStates("ingestor-0", number, list(states.items())))


def test_without_states_there_is_nothing_to_tell() -> None:
    quiet = news()
    assert quiet.deadline() is None
    assert quiet.wake(START) == []


def test_without_gateways_nobody_is_told() -> None:
    alone = SourceNews("ingestor-0", LIFE, [])
    alone.changed("events", "connected")
    assert alone.deadline() is None
    assert alone.wake(START) == []


def test_a_change_is_told_to_every_gateway_at_once() -> None:
    some = news()
    some.changed("events", "connecting")
    assert some.deadline() == 0.0
    assert some.wake(START) == [told(gateway, LIFE + 1, events="connecting") for gateway in GATEWAYS]
    assert some.wake(START) == []


def test_all_sources_are_told_of_each_time_under_a_rising_number() -> None:
    some = news()
    some.changed("events", "connected")
    some.changed("prices", "connecting")
    some.changed("events", "reconnecting")
    assert some.wake(START)[0] == told("gateway-0", LIFE + 3, events="reconnecting", prices="connecting")


def test_what_changes_while_a_gateway_is_being_told_follows_when_that_is_heard() -> None:
    some = news()
    some.changed("events", "connected")
    first = some.wake(START)[0].message
    some.changed("events", "failed")
    assert (some.deadline(), some.wake(START)) == (None, [])
    some.answered("gateway-1", first)
    assert some.deadline() == 0.0
    assert some.wake(START) == [told("gateway-1", LIFE + 2, events="failed")]
    some.answered("gateway-0", first)
    assert some.wake(START + 1) == [told("gateway-0", LIFE + 2, events="failed")]
    assert not some.is_told
    for gateway in GATEWAYS:
        some.answered(gateway, told(gateway, LIFE + 2, events="failed").message)
    assert some.is_told


def test_a_source_that_is_read_elsewhere_is_no_longer_spoken_of() -> None:
    some = news()
    some.changed("events", "connected")
    for send in some.wake(START):
        some.answered(send.to, send.message)
    some.gone("events")
    assert some.wake(START) == [told(gateway, LIFE + 2) for gateway in GATEWAYS]
    assert not some.is_told


def test_what_was_heard_is_repeated_for_those_that_live_anew() -> None:
    some = news()
    some.changed("events", "connected")
    for send in some.wake(START):
        some.answered(send.to, send.message)
    assert some.deadline() == START + REPEAT_MS
    assert some.wake(START + REPEAT_MS - 1) == []
    assert some.wake(START + REPEAT_MS) == [told(gateway, LIFE + 1, events="connected") for gateway in GATEWAYS]


def test_what_was_not_heard_is_told_again_soon() -> None:
    some = news()
    some.changed("events", "connected")
    told_first = some.wake(START)
    some.unanswered("gateway-0", START + 100)
    some.answered("gateway-1", told_first[1].message)
    assert some.deadline() == START + 100 + RETRY_MS
    assert some.wake(START + 100 + RETRY_MS) == [told("gateway-0", LIFE + 1, events="connected")]


def test_a_gateway_that_was_not_reached_is_told_of_a_later_change_at_once() -> None:
    some = news()
    some.changed("events", "connected")
    some.wake(START)
    some.changed("events", "failed")
    some.unanswered("gateway-0", START + 100)
    assert some.wake(START + 100) == [told("gateway-0", LIFE + 2, events="failed")]


def test_a_later_life_speaks_with_higher_numbers() -> None:
    earlier, later = SourceNews("ingestor-0", LIFE, GATEWAYS), SourceNews("ingestor-0", LIFE + 10, GATEWAYS)
    numbers = []
    for some in (earlier, later):
        some.changed("events", "connected")
        numbers.append(some.wake(START)[0].message.number)
    assert numbers == sorted(set(numbers))
