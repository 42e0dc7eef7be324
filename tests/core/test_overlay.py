"""Views: pending operations over bases that go on changing."""

from typing import Any

import orjson

from cluster.core.entry import Value
from cluster.core.messages import Lay
from cluster.core.operation import Append, Call, Increment, Merge, MergeWhere, Operation, Remove, Set, Upsert
from cluster.core.overlay import HIDDEN_MS, Overlays, missing

KEY = '["k"]'
NOW = 1_000.0


def json(value: Any) -> bytes:
    return orjson.dumps(value)


def value(data: Any) -> Value:
    return Value.from_json(json(data))


def laid(*operations: Operation, mutation: str = "m", number: int = 1, temporary: str = "") -> Lay:
    return Lay(mutation, number, [(KEY, operation) for operation in operations], temporary)


def shown(overlays: Overlays, base: Any) -> Any:
    overlay = overlays.of(KEY)
    assert overlay is not None
    view = overlay.shown(None if base is None else value(base))
    return None if view is None else view.object()


def test_a_view_is_the_base_with_the_operations_applied_in_order_and_the_base_stays() -> None:
    overlays = Overlays()
    overlays.lay(laid(Merge(json({"a": 2, "b": 2})), mutation="second", number=2), 0, {})
    overlays.lay(laid(Merge(json({"a": 1, "c": 1})), mutation="first", number=1), 0, {})
    base = value({"a": 0})
    overlay = overlays.of(KEY)
    assert overlay is not None
    view = overlay.shown(base)
    assert view is not None
    assert view.object() == {"a": 2, "c": 1, "b": 2}
    assert base.object() == {"a": 0}
    assert shown(overlays, {"a": 9, "x": 9}) == {"a": 2, "x": 9, "c": 1, "b": 2}, "what came meanwhile is under it"


def test_a_view_is_gone_on_from_where_that_comes_to_the_same() -> None:
    called = 0

    def reducer(_: str, old: Any, event: Any) -> Any:
        nonlocal called
        called += 1
        return [*old, event]

    overlays, base = Overlays(), value([])

    def view() -> Any:
        overlay = overlays.of(KEY)
        assert overlay is not None
        made = overlay.shown(base, reducer)
        assert made is not None
        return made.object()

    for n in range(100):
        overlays.lay(laid(Call("f", json(n)), mutation=f"m{n}", number=n), 0, {})
        assert view() == list(range(n + 1))
    assert called == 100
    for n in range(50):
        overlays.lift(f"m{n}")
        base = value(list(range(n + 1)))
        assert view() == list(range(100))
    assert called == 150
    overlays.lift("m70")
    assert view() == [n for n in range(100) if n != 70]
    base = value(["other"])
    assert view() == ["other", *(n for n in range(50, 100) if n != 70)]
    overlays.lift("m50")
    assert view() == ["other", *(n for n in range(51, 100) if n != 70)]
    overlays.lay(laid(Call("f", json("low")), mutation="low"), 0, {})
    assert view() == ["other", "low", *(n for n in range(51, 100) if n != 70)]


def test_what_fits_nothing_shows_nothing() -> None:
    overlays = Overlays()
    overlays.lay(laid(Increment("/n"), MergeWhere(json({"id": 1}), json({"x": 1}))), 0, {})
    assert shown(overlays, "text") == "text"
    assert shown(overlays, None) is None


def test_lifting_takes_away_one_and_leaves_the_others() -> None:
    overlays = Overlays()
    overlays.lay(laid(Set(json(1)), mutation="one"), 0, {})
    overlays.lay(laid(Set(json(2)), mutation="two", number=2), 1, {})
    assert list(overlays.lift("two")) == [KEY]
    assert shown(overlays, 0) == 1
    assert overlays.lift("two") == {}
    overlays.lift("one")
    assert overlays.of(KEY) is None


def test_laying_again_takes_the_place_of_what_was_laid() -> None:
    overlays = Overlays()
    overlays.lay(laid(Set(json(1))), 0, {})
    again = Lay("m", 1, [('["other"]', Set(json(2)))])
    assert overlays.lay(again, 0, {}) == [KEY, '["other"]']
    assert overlays.of(KEY) is None


def test_what_a_home_has_laid_is_cleared_with_it() -> None:
    overlays = Overlays()
    overlays.lay(laid(Set(json(1)), mutation="a"), 0, {})
    overlays.lay(laid(Set(json(2)), mutation="b", number=2), 1, {})
    assert overlays.clear(1) == [KEY]
    assert list(overlays.mutations) == ["a"]


def test_an_item_that_comes_where_one_is_pending_is_kept_out_of_the_view_for_a_while() -> None:
    overlays = Overlays()
    new = {"id": "tmp", "title": "x"}
    overlays.lay(laid(Append((json(new),), "/tasks"), temporary="tmp"), 0, {})
    before = value({"tasks": [{"id": "t1"}]})
    overlays.came(
        KEY, [Append((json({"id": "t2", "title": "x"}), json({"id": "t1", "title": "y"})), "/tasks")], before, NOW
    )
    after = {"tasks": [{"id": "t1", "title": "y"}, {"id": "t2", "title": "x"}]}
    assert shown(overlays, after) == {"tasks": [{"id": "t1", "title": "y"}, new]}
    assert overlays.deadline() == NOW + HIDDEN_MS
    assert list(overlays.expired(NOW + HIDDEN_MS - 1)) == []
    assert list(overlays.expired(NOW + HIDDEN_MS)) == [KEY]
    assert shown(overlays, after) == {"tasks": [*after["tasks"], new]}


def test_without_a_pending_item_nothing_is_kept_out() -> None:
    overlays = Overlays()
    overlays.lay(laid(Append((json({"id": "a"}),), "/tasks")), 0, {})
    overlays.came(
        KEY, [Append((json({"id": "t2"}),), "/tasks"), Append((json({"id": "t3"}),), "/else")], value({}), NOW
    )
    assert overlays.deadline() is None


def test_the_end_of_a_pending_item_shows_what_was_kept_out() -> None:
    overlays = Overlays()
    overlays.lay(laid(Upsert((json({"id": "tmp"}),)), temporary="tmp"), 0, {})
    overlays.lay(laid(Remove(json({"id": "t9"})), mutation="other", number=2), 0, {})
    overlays.came(KEY, [Append((json({"id": "t2"}),))], value([]), NOW)
    overlays.lift("m")
    assert shown(overlays, [{"id": "t2"}]) == [{"id": "t2"}]
    assert overlays.deadline() is None


def test_what_one_of_two_pending_items_has_become_is_shown_as_soon_as_that_is_known() -> None:
    overlays = Overlays()
    first, second = {"id": "tmp-1"}, {"id": "tmp-2"}
    overlays.lay(laid(Append((json(first),)), mutation="first", temporary="tmp-1"), 0, {})
    overlays.lay(laid(Append((json(second),)), mutation="second", number=2, temporary="tmp-2"), 0, {})
    overlays.came(KEY, [Append((json({"id": 41}), json({"id": 42})))], value([]), NOW)
    assert shown(overlays, [{"id": 41}, {"id": 42}]) == [first, second]
    overlays.lift("first", 41)
    assert shown(overlays, [{"id": 41}, {"id": 42}]) == [{"id": 41}, second]
    overlays.lift("second", 43)
    assert overlays.of(KEY) is None, "nothing is kept out of the view any more"
    assert overlays.deadline() is None


def test_what_a_stream_has_brought_is_not_added_again() -> None:
    base = value({"tasks": [{"id": 7, "title": "as the stream has it"}]})
    brought = Append((json({"id": 7, "title": "as we had it"}),), "/tasks")
    absent = Append((json({"id": 8}),), "/tasks")
    renamed = Merge(json({"name": "n"}))
    assert missing([brought, absent, renamed], base) == [absent, renamed]
    assert missing([brought], None) == [brought]


def test_a_base_that_is_to_be_put_back_is_kept_as_it_was_when_first_laid() -> None:
    overlays = Overlays()
    lay = Lay("m", 1, [(KEY, Set(json(1)))], "", True)
    overlays.lay(lay, 0, {KEY: value("before")})
    overlays.lay(lay, 0, {KEY: value("later")})
    assert overlays.lift("m")[KEY].before == json("before")
