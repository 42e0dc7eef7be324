"""RFC 6901, with its own examples."""

from typing import Any

import pytest

from cluster.core.json_pointer import MAX_TOKENS, escape, index, resolve, tokens
from cluster.errors import OperationError

DOCUMENT: dict[str, Any] = {
    "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("", DOCUMENT),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_section_5(pointer: str, expected: Any) -> None:
    assert resolve(DOCUMENT, tokens(pointer)) == expected


@pytest.mark.parametrize("pointer", ["foo", "/a~", "/a~2", "/~~0", "/" * (MAX_TOKENS + 1)])
def test_what_is_no_pointer(pointer: str) -> None:
    with pytest.raises(OperationError):
        tokens(pointer)


@pytest.mark.parametrize(
    "pointer", ["/foo/2", "/foo/-", "/foo/01", "/foo/x", "/foo/²", "/foo/" + "9" * 5000, "/nope", "/foo/0/x"]
)
def test_what_points_to_nothing(pointer: str) -> None:
    with pytest.raises(OperationError):
        resolve(DOCUMENT, tokens(pointer))


def test_escaping_is_undone_by_splitting() -> None:
    assert tokens(f"/{escape('a/~1b~0')}") == ("a/~1b~0",)


def test_the_end_of_an_array_has_two_names() -> None:
    assert index("-", 2) == index("2", 2) == 2
