"""Infinite lists: pages are fetched in turn, joined without repeats, and gone on with wherever the list has moved to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.entry import Value
from cluster.core.infinite import OffsetPaging, PageFetch, has_page, pages_of, where_held
from cluster.core.json_pointer import resolve, tokens
from cluster.core.operation import Append, MergeWhere, Operation, Prepend, Upsert

TWO = OffsetPaging(page_size=2, step=2)
NUMBERED = OffsetPaging("page", 1, page_size=2, step=1)
CURSOR = OffsetPaging("after", None, page_size=2, items="/data", next="/links/next", previous="/links/back")


def items(*ids: Any) -> list[dict[str, Any]]:
    return [{"id": known} for known in ids]


def ids(page: list[dict[str, Any]]) -> list[Any]:
    return [item["id"] for item in page]


def listed(*pages: list[Any], params: list[Any] | None = None) -> dict[str, Any]:
    return {"pages": [items(*page) for page in pages], "page_params": params or [2 * n for n in range(len(pages))]}


class Service:
    """Lists by offset or by page number."""

    def __init__(self, paging: OffsetPaging, *known: Any) -> None:
        self.paging = paging
        self.items = items(*known)
        self.asked: list[Any] = []

    def page(self, param: Any) -> list[dict[str, Any]]:
        self.asked.append(param)
        start = (param - self.paging.initial) * self.paging.page_size // self.paging.step
        return self.items[start : start + self.paging.page_size]

    def answer(self, fetch: PageFetch) -> dict[str, Any]:
        while not fetch.done:
            fetch.take(self.page(fetch.param))
        return fetch.data()


class TestFetches:
    def test_the_first_page_of_a_list_that_has_none(self) -> None:
        for data in (None, {"pages": [], "page_params": []}, [1], {"pages": 5}):
            for direction in (None, "next", "previous"):
                fetch = PageFetch(TWO, data, direction)
                assert (fetch.direction, fetch.param) == (None, 0)
                fetch.take(items(1, 2))
                assert fetch.done
                assert fetch.data() == listed([1, 2])

    @pytest.mark.parametrize(("paging", "asked"), [(TWO, [0, 2, 4]), (NUMBERED, [1, 2, 3])])
    def test_a_refetch_asks_for_every_page_in_turn(self, paging: OffsetPaging, asked: list[int]) -> None:
        service = Service(paging, *range(9))
        held = listed(["a"], ["b"], ["c"], params=asked)
        data = service.answer(PageFetch(paging, held, None))
        assert service.asked == asked
        assert data == {"pages": [items(0, 1), items(2, 3), items(4, 5)], "page_params": asked}

    def test_a_refetch_ends_where_the_list_does_now(self) -> None:
        service = Service(TWO, 1, 2, 3)
        assert service.answer(PageFetch(TWO, listed([1, 2], [3, 4], [5, 6]), None)) == listed([1, 2], [3])
        assert service.asked == [0, 2]

    def test_a_refetch_begins_where_the_list_that_was_kept_does(self) -> None:
        service = Service(TWO, *range(10))
        fetch = PageFetch(TWO, listed([2, 3], [4, 5], params=[2, 4]), None)
        assert service.answer(fetch) == listed([2, 3], [4, 5], params=[2, 4])

    def test_as_many_pages_as_wanted(self) -> None:
        service = Service(TWO, *range(10))
        assert service.answer(PageFetch(TWO, None, None, 3)) == listed([0, 1], [2, 3], [4, 5])

    def test_one_more_page_at_either_end(self) -> None:
        held = listed([4, 5], [6, 7], params=[4, 6])
        service = Service(TWO, *range(10))
        after = service.answer(PageFetch(TWO, held, "next"))
        assert after == listed([4, 5], [6, 7], [8, 9], params=[4, 6, 8])
        before = service.answer(PageFetch(TWO, held, "previous"))
        assert before == listed([2, 3], [4, 5], [6, 7], params=[2, 4, 6])
        assert service.asked == [8, 2]
        assert held == listed([4, 5], [6, 7], params=[4, 6]), "what is cached is not written to"

    def test_there_is_nothing_to_ask_for_beyond_the_ends(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2]), "previous")
        assert fetch.done
        assert fetch.data() == listed([1, 2])
        assert PageFetch(TWO, listed([1, 2], [3]), "next").done

    def test_the_first_page_may_lie_closer_to_the_beginning_than_a_step(self) -> None:
        assert PageFetch(TWO, listed([1], params=[1]), "previous").param == 0

    @pytest.mark.parametrize(("direction", "params"), [("next", [2, 4]), ("previous", [-2, 0])])
    def test_at_most_so_many_pages_are_kept(self, direction: Any, params: list[int]) -> None:
        paging = OffsetPaging(initial=-10, page_size=2, step=2, max_pages=2)
        fetch = PageFetch(paging, listed(["a", "b"], ["c", "d"], params=[0, 2]), direction)
        fetch.take(items("x", "y"))
        assert fetch.page_params == params
        assert len(fetch.pages) == 2

    def test_also_of_a_refetch(self) -> None:
        paging = OffsetPaging(page_size=2, step=2, max_pages=2)
        service = Service(paging, *range(10))
        assert service.answer(PageFetch(paging, None, None, 3)) == listed([2, 3], [4, 5], params=[2, 4])

    def test_after_a_failure_it_goes_on_at_the_page_that_failed(self) -> None:
        service = Service(TWO, *range(10))
        fetch = PageFetch(TWO, listed(["a"], ["b"], ["c"]), None)
        fetch.retry()
        assert fetch.param == 0
        fetch.take(service.page(0))
        fetch.take(service.page(2))
        for _ in range(3):
            fetch.retry()
        assert fetch.param == 4
        assert service.answer(fetch) == listed([0, 1], [2, 3], [4, 5])
        assert service.asked == [0, 2, 4]

    def test_also_when_adding_a_page(self) -> None:
        for direction, param in (("next", 6), ("previous", 2)):
            fetch = PageFetch(TWO, listed(["a", "b"], params=[4]), direction)
            fetch.retry()
            assert (fetch.param, fetch.done) == (param, False)

    def test_after_a_failure_behind_a_page_of_repeats_it_still_comes_to_the_end(self) -> None:
        service = Service(TWO, 1, 2, 3)
        service.items[:0] = items("a", "b")
        fetch = PageFetch(TWO, listed([1, 2]), "next")
        fetch.take(service.page(fetch.param))
        fetch.retry()
        assert service.answer(fetch)["pages"] == [items(1, 2), items(3)]


class TestEnds:
    @pytest.mark.parametrize(
        ("pages", "last_length", "following"),
        [
            ([[1, 2]], None, 2),
            ([[1, 2], [3]], None, None),
            ([[1, 2], []], None, None),
            ([[1, 2], [3]], 2, 3),  # it was full when it came: an item was taken from it since
            ([[1, 2], [3, 4]], 1, None),  # it was the last: an item was added to it since
        ],
    )
    def test_a_page_that_was_not_full_is_the_last(
        self, pages: list[Any], last_length: int | None, following: int | None
    ) -> None:
        held = listed(*pages)
        assert TWO.next_param(held["pages"], held["page_params"], last_length) == following
        assert has_page(TWO, held, "next", last_length) is (following is not None)

    def test_the_first_page_has_no_previous_one(self) -> None:
        assert not has_page(TWO, listed([1, 2]), "previous")
        assert has_page(TWO, listed([1, 2], params=[2]), "previous")

    @pytest.mark.parametrize("data", [None, [], {}, {"pages": [], "page_params": []}, {"pages": {}, "page_params": []}])
    def test_what_is_no_infinite_list_has_no_pages(self, data: Any) -> None:
        assert pages_of(data) == ([], [])
        assert not has_page(TWO, data, "next")
        assert not has_page(TWO, data, "previous")

    @pytest.mark.parametrize("param", ["2", None, True, [2]])
    def test_a_parameter_that_is_no_number_cannot_be_counted_on_from(self, param: Any) -> None:
        held = listed([1, 2], params=[param])
        assert not has_page(TWO, held, "next")
        assert not has_page(TWO, held, "previous")


class TestItems:
    PAGES: tuple[tuple[OffsetPaging, Any, int | None], ...] = (
        (TWO, items(1, 2), 2),
        (TWO, {"total": 9, "rows": items(1, 2)}, 2),
        (TWO, {"rows": [], "more": []}, None),
        (TWO, {"total": 9}, None),
        (TWO, "text", None),
        (OffsetPaging(items="/a/rows"), {"a": {"rows": [1, 2, 3]}, "b": []}, 3),
        (OffsetPaging(items="/a/rows"), {"a": {"rows": {}}}, None),
        (OffsetPaging(items="/a/rows"), {"rows": []}, None),
        (OffsetPaging(items=""), [1], 1),
    )

    @pytest.mark.parametrize(("paging", "page", "length"), PAGES, ids=range(len(PAGES)))
    def test_are_the_page_or_the_only_array_in_it_or_where_a_pointer_says(
        self, paging: OffsetPaging, page: Any, length: int | None
    ) -> None:
        assert paging.length(page) == length

    def test_that_were_shown_do_not_come_again(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2]), "next")
        fetch.take(items(2, 3))
        assert fetch.data() == {"pages": [items(1, 2), items(3)], "page_params": [0, 2]}
        assert fetch.last_length == 2, "it was full"

    def test_nor_twice_in_one_page(self) -> None:
        fetch = PageFetch(TWO, None, None)
        fetch.take(items(1, 1))
        assert fetch.data() == listed([1])

    def test_wherever_they_stand_and_whatever_identifies_them(self) -> None:
        paging = OffsetPaging(page_size=2, step=2, by="no", items="/rows")
        fetch = PageFetch(paging, {"pages": [{"rows": [{"no": 1}], "n": 1}], "page_params": [0]}, "next", 0, 2)
        fetch.take({"rows": [{"no": 1, "new": True}, {"no": True}, {"no": "1"}, {"id": 1}, 5, 5], "n": 2})
        assert fetch.pages[1] == {"rows": [{"no": True}, {"no": "1"}, {"id": 1}, 5, 5], "n": 2}

    def test_a_page_of_repeats_is_passed_over(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2]), "next")
        fetch.take(items(1, 2))
        assert (fetch.done, fetch.added) == (False, None)
        assert fetch.param == 4
        fetch.take(items(2, 3))
        assert fetch.data() == {"pages": [items(1, 2), items(3)], "page_params": [0, 4]}

    def test_a_page_of_repeats_that_is_the_last_ends_the_list(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2], [3, 4]), "next")
        fetch.take(items(4))
        assert fetch.done
        assert fetch.data() == listed([1, 2], [3, 4])
        assert not has_page(TWO, fetch.data(), "next", fetch.last_length)

    def test_a_page_of_repeats_before_the_first_adds_nothing(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2], params=[2]), "previous")
        fetch.take(items(1, 2))
        assert fetch.done
        assert fetch.data() == listed([1, 2], params=[2])

    def test_an_empty_page_is_a_page(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2]), "next")
        fetch.take([])
        assert fetch.data() == listed([1, 2], [])
        assert not has_page(TWO, fetch.data(), "next", fetch.last_length)

    def test_pages_without_items_are_kept_as_they_come(self) -> None:
        fetch = PageFetch(NUMBERED, None, None)
        fetch.take({"a": [], "b": []})
        assert fetch.data() == {"pages": [{"a": [], "b": []}], "page_params": [1]}


class TestCursors:
    """Each page says what the next one's parameter is."""

    PAGES: dict[Any, Any] = {  # noqa: RUF012 - read only
        None: {"data": items(1, 2), "links": {"next": "b"}},
        "b": {"data": items(3, 4), "links": {"next": "c", "back": "a"}},
        "c": {"data": items(5), "links": {"next": None, "back": "b"}},
        "a": {"data": items(1, 2), "links": {"next": "b"}},
    }

    def scrolled(self, fetch: PageFetch) -> dict[str, Any]:
        while not fetch.done:
            fetch.take(self.PAGES[fetch.param])
        return fetch.data()

    def test_are_followed_to_the_end(self) -> None:
        data: Any = None
        params = []
        for _ in range(5):
            data = self.scrolled(PageFetch(CURSOR, data, "next"))
            params.append(data["page_params"])
        assert params == [[None], [None, "b"], [None, "b", "c"], [None, "b", "c"], [None, "b", "c"]]
        assert data["pages"] == [self.PAGES[None], self.PAGES["b"], self.PAGES["c"]]

    def test_and_back(self) -> None:
        held = {"pages": [self.PAGES["c"]], "page_params": ["c"]}
        held = self.scrolled(PageFetch(CURSOR, held, "previous"))
        held = self.scrolled(PageFetch(CURSOR, held, "previous"))
        assert held["page_params"] == ["a", "b", "c"]
        assert not has_page(CURSOR, held, "previous")

    def test_a_refetch_follows_those_that_come_now(self) -> None:
        held = {"pages": [self.PAGES[None], {"data": [], "links": {}}], "page_params": [None, "gone"]}
        assert self.scrolled(PageFetch(CURSOR, held, None))["page_params"] == [None, "b"]

    def test_without_a_way_back_there_is_no_previous_page(self) -> None:
        paging = OffsetPaging("after", None, items="/data", next="/links/next")
        assert paging.previous_param([self.PAGES["c"]], ["c"]) is None


class TestExtended:
    """A list that was edited while a page of it was fetched."""

    def fetched(self, direction: Any, page: list[Any], max_pages: int = 0) -> PageFetch:
        paging = OffsetPaging(page_size=2, step=2, max_pages=max_pages)
        fetch = PageFetch(paging, listed([3, 4], [5, 6], params=[2, 4]), direction)
        fetch.take(page)
        return fetch

    def test_gets_the_page_and_keeps_the_edits(self) -> None:
        edited = {"pages": [items("new", 3), items(5, 6)], "page_params": [2, 4]}
        assert self.fetched("next", items(7, 8)).extended(edited) == {
            "pages": [items("new", 3), items(5, 6), items(7, 8)],
            "page_params": [2, 4, 6],
        }
        assert self.fetched("previous", items(1, 2)).extended(edited) == {
            "pages": [items(1, 2), items("new", 3), items(5, 6)],
            "page_params": [0, 2, 4],
        }
        assert edited == {"pages": [items("new", 3), items(5, 6)], "page_params": [2, 4]}

    def test_does_not_get_what_an_edit_brought_already(self) -> None:
        edited = {"pages": [items(3, 4), items(5, 6, 7)], "page_params": [2, 4]}
        assert self.fetched("next", items(7, 8)).extended(edited)["pages"] == [items(3, 4), items(5, 6, 7), items(8)]
        edited["pages"][1].extend(items(8))
        assert self.fetched("next", items(7, 8)).extended(edited) == edited

    def test_stays_within_its_bound(self) -> None:
        edited = {"pages": [items(3), items(5)], "page_params": [2, 4]}
        assert self.fetched("next", items(7), 2).extended(edited)["page_params"] == [4, 6]
        assert self.fetched("previous", items(1), 2).extended(edited)["page_params"] == [0, 2]

    def test_stays_as_it_is_where_there_was_no_page(self) -> None:
        fetch = PageFetch(TWO, listed([1, 2], [3]), "next")
        assert fetch.extended(listed([1], [3])) == listed([1], [3])


@st.composite
def changes(draw: Any) -> list[tuple[int, list[int]]]:
    """Between the requests: (items added at the top, positions from which items are removed)."""
    return draw(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 30), max_size=3)), max_size=12))


def scrolled(paging: OffsetPaging, count: int, changes: list[tuple[int, list[int]]], *, told: bool) -> tuple[Any, Any]:
    """Scroll to the end of a list that changes meanwhile. Returns what is shown, and what the service lists in the end.

    Removals reach the pages too, as events; so do additions, if `told`.
    """
    service = Service(paging, *range(count))
    coming = iter(changes)
    data: dict[str, Any] = {"pages": [], "page_params": []}
    last_length: int | None = None
    new = 0
    for _ in range(200):
        fetch = PageFetch(paging, data, "next" if data["pages"] else None, 0, last_length)
        while not fetch.done:
            fetch.take(service.page(fetch.param))
        data, last_length = fetch.data(), fetch.last_length
        if not has_page(paging, data, "next", last_length):
            return [item for page in data["pages"] for item in page], service.items
        added, removed = next(coming, (0, []))
        for _ in range(added):
            new += 1
            service.items.insert(0, {"id": f"new {new}"})
            if told:
                data["pages"][0].insert(0, {"id": f"new {new}"})
        for position in removed:
            if position < len(service.items):
                gone = service.items.pop(position)
                data["pages"] = [[item for item in page if item != gone] for page in data["pages"]]
    raise AssertionError("it does not end")


@given(st.integers(0, 25), st.integers(1, 5), st.lists(st.integers(0, 4), max_size=12), st.booleans(), st.booleans())
def test_scrolling_a_list_that_grows_at_the_top_shows_every_item_exactly_once(
    count: int, size: int, added: list[int], numbered: bool, told: bool
) -> None:
    paging = OffsetPaging("page", 1, size, 1) if numbered else OffsetPaging(page_size=size, step=size)
    shown, _ = scrolled(paging, count, [(number, []) for number in added], told=told)
    assert len(set(ids(shown))) == len(shown)
    assert [known for known in ids(shown) if isinstance(known, int)] == list(range(count))


@given(st.integers(0, 25), st.integers(1, 5), changes(), st.booleans())
def test_what_is_removed_meanwhile_takes_nothing_else_along(count: int, size: int, changes: Any, told: bool) -> None:
    shown, listed_now = scrolled(OffsetPaging(page_size=size, step=size), count, changes, told=told)
    assert len(set(ids(shown))) == len(shown)
    left = [known for known in ids(listed_now) if isinstance(known, int)]
    assert [known for known in ids(shown) if isinstance(known, int)] == left


def test_a_service_that_knows_no_pages_is_not_asked_for_ever() -> None:
    fetch = PageFetch(TWO, None, None)
    asked = 0
    fetch.take(items(1, 2))
    fetch = PageFetch(TWO, fetch.data(), "next", 0, fetch.last_length)
    while not fetch.done and asked < 1_000:
        asked += 1
        fetch.take(items(1, 2))
    assert asked < 1_000


def test_a_pointer_reads_pages_as_everywhere() -> None:
    page = {"a/b": {"rows": items(1)}}
    assert OffsetPaging(items="/a~1b/rows").length(page) == len(resolve(page, tokens("/a~1b/rows")))


JSONS = tuple(b'{"id":%d}' % known for known in range(6))


@pytest.mark.parametrize(
    ("operation", "held"),
    [
        (Prepend(JSONS[3:], "/pages/0", 5), [Upsert(JSONS[3:5], "/pages/1"), Prepend(JSONS[5:], "/pages/0", 5)]),
        (Append(JSONS[1:3], "/pages/1"), [Upsert(JSONS[1:3], "/pages/0")]),
        (Upsert(JSONS[:2], "/pages/0"), None),
        (Prepend((b"{}", b"[", JSONS[0]), "/pages/0"), None),
        (Prepend(JSONS[3:], "/pages/-"), None),
        (Prepend(JSONS[3:], ""), None),
        (Prepend(JSONS[3:], "/pages"), None),
        (Prepend(JSONS[3:], "/page_params/0"), None),
        (MergeWhere(JSONS[3], b'{"n":1}', "/pages/0"), None),
    ],
)
def test_what_another_page_holds_is_replaced_there(operation: Operation, held: list[Operation] | None) -> None:
    value = Value.from_object(listed([1, 2], [3, 4]))
    assert where_held(operation, value) == ([operation] if held is None else held)


def test_in_pages_that_are_objects_too() -> None:
    value = Value.from_object({"pages": [{"data": {"a/b": items(n)}} for n in (1, 2)], "page_params": [0, 1]})
    held = where_held(Prepend(JSONS[2:4], "/pages/0/data/a~1b"), value)
    assert held == [Upsert(JSONS[2:3], "/pages/1/data/a~1b"), Prepend(JSONS[3:4], "/pages/0/data/a~1b")]


@pytest.mark.parametrize("value", [None, Value.from_json(b"no JSON"), Value.from_json(b"[1]")])
def test_what_is_no_list_of_pages_holds_nothing(value: Value | None) -> None:
    operation = Prepend(JSONS, "/pages/0")
    assert where_held(operation, value) == [operation]
