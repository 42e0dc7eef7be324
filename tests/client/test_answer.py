from typing import Any

import pytest

from cluster.client.answer import error_of, read_answer
from cluster.errors import ConflictError, ErrorCode, HarborError, UnavailableError

URL = "http://gateway"


def test_errors_keep_their_code_message_and_details() -> None:
    error = error_of({"code": "TOO_MANY", "message": "a session has 128", "temporary": True, "details": {"n": 1}})
    assert (error.code, error.message, error.temporary, error.details) == (
        ErrorCode.TOO_MANY,
        "a session has 128",
        True,
        {"n": 1},
    )
    assert not error_of({"code": "TOO_MANY", "message": "x"}).temporary
    conflict = error_of({"code": "VERSION_CONFLICT", "message": "x", "details": {"current": {"version": 3}}})
    assert isinstance(conflict, ConflictError)
    assert conflict.details == {"current": {"version": 3}}
    assert isinstance(error_of({"code": "UNAVAILABLE", "message": "x"}), UnavailableError)
    later = error_of({"code": "NEW_ONE", "message": "of a later version"})
    assert (later.code, later.message) == (ErrorCode.INTERNAL, "NEW_ONE: of a later version")


@pytest.mark.parametrize(
    ("status", "content", "code", "says"),
    [
        (404, b'{"error":{"code":"NOT_FOUND","message":"no entry"}}', "NOT_FOUND", "no entry"),
        (502, b'{"error":{"code":"UPSTREAM_ERROR","message":"down"}}', "UPSTREAM_ERROR", "down"),
        (502, b"<html>\nBad gateway</html>", "UNAVAILABLE", "no cluster answers at http://gateway: HTTP 502"),
        (504, b'{"error":"timeout"}', "UNAVAILABLE", "no cluster answers at http://gateway: HTTP 504"),
        (200, b"<html>welcome</html>", "UNAVAILABLE", "http://gateway is no Harbor Cluster: HTTP 200"),
        (200, b"[1]", "UNAVAILABLE", "http://gateway is no Harbor Cluster: HTTP 200"),
        (404, b'{"detail":"Not Found"}', "UNAVAILABLE", "http://gateway is no Harbor Cluster: HTTP 404"),
        (301, b"", "UNAVAILABLE", "http://gateway is no Harbor Cluster: HTTP 301"),
    ],
)
def test_answers_that_are_errors(status: int, content: bytes, code: str, says: str) -> None:
    with pytest.raises(HarborError) as caught:
        read_answer(URL, status, content)
    assert (caught.value.code, caught.value.message) == (code, says)
    assert isinstance(caught.value, UnavailableError) == (code == "UNAVAILABLE")


@pytest.mark.parametrize(("status", "content", "answer"), [(200, b'{"version":3}', {"version": 3}), (204, b"", {})])
def test_answers(status: int, content: bytes, answer: dict[str, Any]) -> None:
    assert read_answer(URL, status, content) == answer
