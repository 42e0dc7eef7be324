"""Requests: asked until they are answered, page by page where there is more."""

from typing import Any

import pytest

from cluster.errors import UnavailableError
from cluster.verify import asker
from cluster.verify.asker import Answer, Asker, refusal


class Told(Asker):
    """Is told what it is to be told, and notes what it asked."""

    def __init__(self, *answers: Answer | None) -> None:
        super().__init__("http://127.0.0.1:9/", None)
        self.answers = list(answers)
        self.asked: list[dict[str, str]] = []

    async def once(self, method: str, path: str, **more: Any) -> Answer:
        self.asked.append(dict(more.get("params", {})))
        answer = self.answers.pop(0)
        if answer is None:
            raise UnavailableError("nobody")
        return answer


def page(*keys: list[Any], cursor: str | None = None) -> Answer:
    rows = {"keys": [{"key": key} for key in keys]}
    return Answer(200, rows if cursor is None else rows | {"cursor": cursor}, None)


async def test_it_asks_until_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asker, "AGAIN_S", 0.0)
    told = Told(None, Answer(503, None, None), Answer(404, None, None))
    assert await told.answered("GET", "/") == Answer(404, None, None)
    assert told.counts["repeats for want of an answer"] == 2
    assert await Told(None).answered("GET", "/", give_up_s=-1.0) is None


async def test_pages_go_on_at_their_cursors() -> None:
    told = Told(page(["a"], cursor="c"), page(["b"]))
    assert [rows async for rows in told.pages("[]", 0.0)] == [[{"key": ["a"]}], [{"key": ["b"]}]]
    assert [each.get("cursor") for each in told.asked] == [None, "c"]


async def test_a_page_that_is_not_told_ends_them() -> None:
    told = Told(page(["a"], cursor="c"), Answer(403, None, None))
    assert [rows async for rows in told.pages("[]", 0.0)] == [[{"key": ["a"]}], None]


def test_an_answer_that_says_no_is_an_error() -> None:
    error = refusal(Answer(403, {"error": {"code": "FORBIDDEN", "message": "not yours"}}, None), "it")
    assert (error.code, str(error)) == ("FORBIDDEN", "it: not yours")
    assert refusal(Answer(500, None, None), "it").code == "UNAVAILABLE"
