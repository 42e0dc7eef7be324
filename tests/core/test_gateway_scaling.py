"""How many gateways there are follows their sessions; one that goes is drained first, and Ray is asked only for what is missing."""

from collections.abc import Mapping

import pytest

from cluster.core.gateway_scaling import (
    REPEAT_MS,
    Ask,
    Drain,
    GatewayScale,
    GatewayScaling,
    NumberedGateways,
    Renew,
    Seen,
)

SCALE = GatewayScale(min=1, max=3, sessions=10, cool_down_ms=1_000.0)
ALIVE = {"a", "b", "c"}
ONE = {"gateway-0": Seen("a", 10)}
TWO = {"gateway-0": Seen("a", 4), "gateway-1": Seen("b", 3)}
NAMES = ["gateway-0", "gateway-1"]


def scaling(count: int = 1) -> GatewayScaling:
    """As many as there are are served, and Ray has been asked."""
    made = GatewayScaling(SCALE, count, 0.0)
    seen = {f"gateway-{n}": Seen("abc"[n], 10) for n in range(count)}
    assert made.step(seen, ALIVE, count, 0.0) == (list(seen), [Ask(0)])
    return made


def with_one_drained() -> GatewayScaling:
    made = scaling(2)
    assert made.step(TWO, ALIVE, 2, 1_000.0) == (NAMES, [Drain("gateway-1")])
    return made


@pytest.mark.parametrize(
    ("sessions", "wanted"),
    [([0], 1), ([10], 1), ([11], 2), ([7, 4], 2), ([10, 10], 2), ([21], 3), ([500], 3), ([11, None], 2)],
)
def test_sessions_want_gateways_at_once(sessions: list[int | None], wanted: int) -> None:
    made = GatewayScaling(SCALE, 1, 0.0)
    made.step({f"gateway-{n}": Seen("a", each) for n, each in enumerate(sessions)}, ALIVE, 3, 0.0)
    assert made.wanted == wanted


@pytest.mark.parametrize(("count", "wanted"), [(0, 1), (2, 2), (9, 3)])
def test_a_life_begins_with_what_there_is_within_the_bounds(count: int, wanted: int) -> None:
    assert GatewayScaling(SCALE, count, 0.0).wanted == wanted


def test_ray_is_asked_for_places_only_while_some_are_missing() -> None:
    made = scaling()
    busy = {"gateway-0": Seen("a", 15)}
    assert made.step(ONE, ALIVE, 1, 1.0) == (["gateway-0"], [])
    assert made.step(busy, ALIVE, 1, 2.0) == (["gateway-0"], [Ask(2)])
    assert made.step(busy, ALIVE, 1, 3.0) == (["gateway-0"], [])
    assert made.step({"gateway-0": Seen("a", 25)}, ALIVE, 1, 4.0) == (["gateway-0"], [Ask(3)])
    assert made.step(busy, ALIVE, 2, 5.0) == (NAMES, [])
    assert made.step({**busy, "gateway-1": Seen("b", 6)}, ALIVE, 3, 6.0) == ([*NAMES, "gateway-2"], [Ask(0)])


def test_a_head_that_has_begun_anew_is_asked_again() -> None:
    made = scaling()
    busy = {"gateway-0": Seen("a", 15)}
    assert made.step(busy, ALIVE, 1, 0.0)[1] == [Ask(2)]
    assert made.step(busy, ALIVE, 1, REPEAT_MS - 1)[1] == []
    assert made.step(busy, ALIVE, 1, REPEAT_MS)[1] == [Ask(2)]
    assert made.step(busy, ALIVE, 1, REPEAT_MS + 1)[1] == []
    made.unasked()
    assert made.step(busy, ALIVE, 1, REPEAT_MS + 2)[1] == [Ask(2)]


def test_where_nothing_is_missing_ray_is_not_asked_again() -> None:
    made = scaling()
    assert made.step(ONE, ALIVE, 1, 10 * REPEAT_MS)[1] == []


def test_what_an_earlier_life_has_asked_for_is_taken_back() -> None:
    assert GatewayScaling(SCALE, 1, 0.0).step(ONE, ALIVE, 1, 0.0)[1] == [Ask(0)]


def test_the_one_with_the_fewest_sessions_goes_and_stays_until_its_clients_have() -> None:
    made = scaling(2)
    few = {"gateway-0": Seen("a", 3), "gateway-1": Seen("b", 4)}
    assert made.step(few, ALIVE, 2, 999.0) == (NAMES, [])
    assert made.step(few, ALIVE, 2, 1_000.0) == (["gateway-1", "gateway-0"], [Drain("gateway-0")])
    drained = {"gateway-1": Seen("b", 7), "gateway-0": Seen("a", 0, is_draining=True)}
    assert made.step(drained, ALIVE, 2, 1_001.0) == (["gateway-1", "gateway-0"], [])
    made.left("gateway-0")
    assert made.step(drained, ALIVE, 2, 1_002.0) == (["gateway-1"], [])
    assert made.step({"gateway-1": Seen("b", 7)}, ALIVE, 2, 1_003.0) == (["gateway-1"], []), "its place stays empty"


def test_fewer_have_to_be_enough_for_the_whole_cool_down() -> None:
    made = scaling(2)
    made.step(TWO, ALIVE, 2, 900.0)
    made.step({**TWO, "gateway-0": Seen("a", 8)}, ALIVE, 2, 950.0)
    assert made.step(TWO, ALIVE, 2, 1_949.0) == (NAMES, [])
    assert made.step(TWO, ALIVE, 2, 1_950.0) == (NAMES, [Drain("gateway-1")])


def test_one_after_the_other() -> None:
    made = scaling(3)
    three: Mapping[str, Seen] = {f"gateway-{n}": Seen("abc"[n], 0) for n in range(3)}
    assert made.step(three, ALIVE, 3, 1_000.0)[1] == [Drain("gateway-2")]
    assert made.step(three, ALIVE, 3, 5_000.0) == (list(three), [])
    made.left("gateway-2")
    assert made.step(three, ALIVE, 3, 5_001.0) == (NAMES, [])
    two = {name: three[name] for name in NAMES}
    assert made.step(two, ALIVE, 3, 5_999.0) == (NAMES, [])
    assert made.step(two, ALIVE, 3, 6_000.0) == (NAMES, [Drain("gateway-1")])


def test_one_after_the_other_where_places_were_missing_too() -> None:
    made = scaling()
    made.step({"gateway-0": Seen("a", 25)}, ALIVE, 1, 0.0)
    asked = [made.step(ONE, ALIVE, 1, at)[1] for at in (1_000.0, 1_999.0, 2_000.0)]
    assert asked == [[Ask(2)], [], [Ask(0)]]


def test_who_does_not_answer_may_have_any_number_of_sessions() -> None:
    made = scaling(2)
    silent = {**TWO, "gateway-1": Seen("b")}
    assert made.step(silent, ALIVE, 2, 9_000.0) == (NAMES, [])
    assert made.step(TWO, ALIVE, 2, 9_001.0) == (NAMES, [Drain("gateway-1")])


def test_sessions_that_move_are_not_counted_twice() -> None:
    made = with_one_drained()
    moving = {"gateway-0": Seen("a", 7), "gateway-1": Seen("b", 9, is_draining=True)}
    assert made.step(moving, ALIVE, 2, 1_001.0) == (NAMES, [])
    assert made.wanted == 1


def test_a_drain_goes_on_though_more_are_wanted_again_and_another_takes_its_place() -> None:
    made = with_one_drained()
    busy = {"gateway-0": Seen("a", 15), "gateway-1": Seen("b", 0, is_draining=True)}
    assert made.step(busy, ALIVE, 2, 1_001.0) == (NAMES, [])
    made.left("gateway-1")
    assert made.step(busy, ALIVE, 2, 1_002.0) == (["gateway-0"], []), "the old one is ended before"
    assert made.step({"gateway-0": Seen("a", 15)}, ALIVE, 2, 1_003.0) == (NAMES, [])


def test_the_drain_of_an_earlier_life_is_waited_for() -> None:
    made = GatewayScaling(SCALE, 1, 0.0)
    found = {"gateway-0": Seen("a", 9, is_draining=True), "gateway-1": Seen("b", 4)}
    assert made.step(found, ALIVE, 2, 0.0) == (["gateway-1", "gateway-0"], [Ask(0), Drain("gateway-0")])
    made.left("gateway-0")
    assert made.step(found, ALIVE, 2, 1.0) == (["gateway-1"], [])


def test_a_node_that_goes_takes_a_gateway_along_and_ray_is_asked_for_another() -> None:
    made = scaling(2)
    busy = {"gateway-0": Seen("a"), "gateway-1": Seen("b", 14)}
    assert made.step(busy, {"b"}, 1, 1.0) == (["gateway-1"], [Ask(2)])


def test_a_gateway_that_is_no_longer_there_is_forgotten() -> None:
    made = with_one_drained()
    made.left("gateway-9")
    assert made.step({"gateway-0": Seen("a", 15)}, ALIVE, 2, 1_001.0) == (NAMES, [])
    made.left("gateway-1")
    assert made.step({**TWO, "gateway-0": Seen("a", 15)}, ALIVE, 2, 1_002.0) == (NAMES, [])


class TestNumbered:
    def test_more_are_there_at_once_and_those_too_many_when_they_have_left(self) -> None:
        made = NumberedGateways(["gateway-0"])
        assert (made.want(3), made.names) == ([], ["gateway-0", "gateway-1", "gateway-2"])
        assert made.want(1) == [Drain("gateway-1"), Drain("gateway-2")]
        assert (made.wanted, len(made.names), made.is_done) == (1, 3, False)
        made.left("gateway-2")
        made.left("gateway-1")
        assert (made.names, made.is_done) == (["gateway-0"], True)

    def test_one_that_is_wanted_again_while_it_is_drained_is_made_anew(self) -> None:
        made = NumberedGateways(NAMES)
        made.want(1)
        assert made.want(2) == [Renew("gateway-1")]
        made.left("gateway-1")  # its drain was over as it was wanted again
        assert made.renewed("gateway-1") == []
        assert (made.names, made.is_done) == (NAMES, True)

    def test_one_that_is_not_wanted_after_all_is_drained_once_it_was_made_anew(self) -> None:
        made = NumberedGateways(NAMES)
        made.want(1)
        made.want(2)
        assert made.want(1) == []
        assert not made.is_done
        assert made.renewed("gateway-1") == [Drain("gateway-1")]
        made.left("gateway-1")
        assert (made.names, made.is_done) == (["gateway-0"], True)
