"""Options: what is unset is inherited, nearer ones over farther ones."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from cluster.core.query_key import partial_match
from cluster.core.query_options import DEFAULT_GC_TIME_MS, QueryDefaults, QueryOptions
from cluster.core.staleness import STATIC

INHERITED = {
    "stale_time": [0.0, 5.0, None, STATIC],
    "gc_time": [0.0, 5.0, None],
    "retry": [0, True, False, 3],
    "retry_delay": [None, 5.0],
    "network_mode": ["online", "always"],
    "service": ["", "api"],
}
OWN = {"enabled": [True, False], "refetch_on_mount": [True, "always"], "refetch_interval": [0.0, 5.0]}


def given_options(names: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in names.items()})


class TestDefaults:
    def test_of_what_nobody_sets(self) -> None:
        options = QueryOptions()
        assert (options.own_stale_time, options.own_gc_time, options.own_service) == (0.0, DEFAULT_GC_TIME_MS, "")
        assert options.own_refetch_on_reconnect is True

    def test_none_is_a_value(self) -> None:
        options = QueryOptions(stale_time=None, gc_time=None)
        assert (options.own_stale_time, options.own_gc_time) == (None, None)

    @pytest.mark.parametrize(
        ("mode", "given_value", "own"),
        [("online", UNSET, True), ("offline_first", UNSET, True), ("always", UNSET, False), ("always", "always", "always"),
         ("online", False, False)],
    )  # fmt: skip
    def test_what_never_pauses_is_not_fetched_anew_for_having_been_offline(
        self, mode: Any, given_value: Any, own: Any
    ) -> None:
        assert QueryOptions(network_mode=mode, refetch_on_reconnect=given_value).own_refetch_on_reconnect == own


@given(st.lists(given_options(INHERITED), max_size=3), given_options({**INHERITED, **OWN}))
def test_nearer_options_go_over_farther_ones_member_by_member(farther: list[Any], own: dict[str, Any]) -> None:
    merged = QueryOptions(**own).over(*[QueryOptions(**each) for each in farther])
    expected: dict[str, Any] = {}
    for each in (*farther, own):
        expected |= each
    assert merged == QueryOptions(**expected)


@given(given_options(OWN), given_options(OWN))
def test_what_concerns_one_observer_is_not_inherited(farther: dict[str, Any], own: dict[str, Any]) -> None:
    assert QueryOptions(**own).over(QueryOptions(**farther)) == QueryOptions(**own)


class TestByKey:
    def test_every_prefix_that_matches_counts_in_the_order_of_registration(self) -> None:
        defaults = QueryDefaults(QueryOptions(retry=1, gc_time=1.0))
        defaults.register(["a"], QueryOptions(stale_time=2.0, gc_time=2.0))
        defaults.register(["a", "b"], QueryOptions(stale_time=3.0))
        assert defaults.effective(["a", "b", 1]) == QueryOptions(stale_time=3.0, gc_time=2.0, retry=1)
        assert defaults.effective(["a"]) == QueryOptions(stale_time=2.0, gc_time=2.0, retry=1)
        assert defaults.effective(["c"]) == QueryOptions(gc_time=1.0, retry=1)
        assert defaults.registered(["c"]) == QueryOptions()

    def test_what_is_given_goes_over_what_is_registered(self) -> None:
        defaults = QueryDefaults()
        defaults.register([], QueryOptions(stale_time=2.0, gc_time=2.0))
        explicit = QueryOptions(stale_time=0.0, enabled=False)
        assert defaults.effective(["a"], explicit) == QueryOptions(stale_time=0.0, gc_time=2.0, enabled=False)

    def test_the_same_key_again_takes_the_place_of_the_first(self) -> None:
        defaults = QueryDefaults()
        defaults.register(["a", {"x": 1, "y": 2}], QueryOptions(stale_time=2.0))
        defaults.register(["a"], QueryOptions(gc_time=5.0, stale_time=9.0))
        defaults.register(["a", {"y": 2, "x": 1}], QueryOptions(retry=7))
        assert defaults.effective(["a", {"x": 1, "y": 2}]) == QueryOptions(stale_time=9.0, gc_time=5.0, retry=7)

    KEYS = st.lists(
        st.sampled_from(["a", "b", 1]) | st.dictionaries(st.sampled_from("xy"), st.integers(1, 2)), max_size=3
    )

    @given(st.lists(st.tuples(KEYS, given_options(INHERITED)), max_size=4, unique_by=lambda each: str(each[0])), KEYS)
    def test_as_merging_all_that_match_by_hand(self, registered: list[Any], key: list[Any]) -> None:
        defaults = QueryDefaults()
        expected: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        for prefix, options in registered:
            defaults.register(prefix, QueryOptions(**options))
            kept[str(sorted_key(prefix))] = (prefix, options)
        for prefix, options in kept.values():
            if partial_match(key, prefix):
                expected |= options
        assert defaults.registered(key) == QueryOptions(**expected)


def sorted_key(key: list[Any]) -> list[Any]:
    return [dict(sorted(part.items())) if isinstance(part, dict) else part for part in key]
