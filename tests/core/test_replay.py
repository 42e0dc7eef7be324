"""What of operations is applied over a response."""

from typing import Any

import orjson
import pytest

from cluster.core.entry import Value
from cluster.core.operation import Append, Operation, Prepend, Remove, Upsert, apply_all
from cluster.core.replay import Replay


def things(*names: Any) -> list[dict[str, Any]]:
    return [{"id": name} for name in names]


def texts(*names: Any) -> tuple[bytes, ...]:
    return tuple(orjson.dumps(thing) for thing in things(*names))


def paged(*pages: list[Any]) -> dict[str, Any]:
    return {"pages": list(pages), "page_params": [*range(len(pages))]}


def over(response: Any, live: Any, *operations: Operation) -> Any:
    """Return a response, as ids, with operations over it; `live`: the entry as it is."""
    is_paged = isinstance(response, dict)
    replay = Replay(None if live is None else Value.from_object(live), is_paged=is_paged)
    made: Value | None = Value.from_object(response)
    for operation in operations:
        made = apply_all(replay.lacking(operation, made), made).value
    assert made is not None
    shown = made.object()
    if is_paged:
        return [[item["id"] for item in page] for page in shown["pages"]]
    return [item["id"] for item in shown]


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        ((5, 4, 3), [5, 4, 3]),
        ((4, 3, 2), [5, 4, 3, 2]),
        ((2, 1), [5, 4, 3, 2, 1]),
        ((6, 5), [6, 5]),
        ((), [5, 4, 3]),
    ],
)
def test_what_a_response_ends_before_was_left_out(response: tuple[int, ...], shown: list[int]) -> None:
    live = things(5, 4, 3, 2, 1)
    assert over(things(*response), live, Prepend(texts(3)), Prepend(texts(4, 5))) == shown
    first_to_last = over(things(*reversed(response)), live[::-1], Append(texts(3, 4)), Upsert(texts(5)))
    assert first_to_last == shown[::-1]


def test_what_the_entry_has_let_go_was_left_out_as_well() -> None:
    assert over(things(5, 4), things(5, 4), Prepend(texts(3)), Prepend(texts(4, 5))) == [5, 4]


def test_what_ends_with_something_of_which_nothing_was_heard_says_nothing() -> None:
    assert over(things(7, 6), things(5, 4), Prepend(texts(4, 5))) == [5, 4, 7, 6]
    assert over(things(7, 6), None, Prepend(texts(4, 5))) == [5, 4, 7, 6]
    assert over([{"id": None}], things(5, 4), Prepend(texts(4, 5))) == [5, 4, None]


def test_what_was_removed_and_came_again_is_there() -> None:
    assert over(things(2, 1), things(2, 1), Remove(b'{"id":2}'), Prepend(texts(2))) == [2, 1]


def test_what_another_page_of_the_response_holds_is_not_added_to_one() -> None:
    live = paged(things(5, 4, 3, 2, 1))
    operations = [Prepend(texts(n), "/pages/0") for n in range(1, 6)]
    assert over(paged(things(5, 4), things(3, 2)), live, *operations) == [[5, 4], [3, 2]]
    assert over(paged(things(5, 4), things(3, 2)), None, Prepend(texts(3), "/pages/0")) == [[5, 4], [3, 2]]
