"""Over whatever a service gives of a list, new items are shown once, in order, and none that came after the response is missing."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.entry import Value
from cluster.core.operation import Append, Prepend, apply_all
from cluster.core.replay import Replay

NUMBERS = st.integers(0, 12)


@given(old=st.integers(1, 5), read=NUMBERS, heard=NUMBERS, limit=st.integers(1, 8), size=st.integers(1, 3))
def test_new_items_are_shown_once_and_in_order(old: int, read: int, heard: int, limit: int, size: int) -> None:
    """`old`: items of before; so many were new as the service `read` its list, and as the response came."""
    heard = max(read, heard)
    for kind in (Append, Prepend):
        is_front = kind is Prepend
        upstream = [{"id": number} for number in range(old + read)][-limit:]
        live = [{"id": number} for number in range(old + heard)]
        if is_front:
            upstream.reverse()
            live.reverse()
        for is_paged in (False, True):
            pages = [upstream[start : start + size] for start in range(0, len(upstream), size)]
            at = ("/pages/0" if is_front else f"/pages/{len(pages) - 1}") if is_paged else ""
            made: Value | None = Value.from_object(
                {"pages": pages, "page_params": [0] * len(pages)} if is_paged else [*upstream]
            )
            shown = Value.from_object({"pages": [live], "page_params": [0]} if is_paged else live)
            replay = Replay(shown, is_paged=is_paged)
            for number in range(old, old + heard):
                made = apply_all(replay.lacking(kind((b'{"id":%d}' % number,), at), made), made).value
            assert made is not None
            items = [item for page in made.object()["pages"] for item in page] if is_paged else made.object()
            first = upstream[-1 if is_front else 0]["id"]
            wanted = [{"id": number} for number in range(first, old + heard)]
            assert items == (wanted[::-1] if is_front else wanted)
