"""Requests of the command line, to a stand-in: whatever is said wrong or answered by somebody else is a `HarborError`."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import orjson
import pytest

from cluster.client import HttpClient
from cluster.errors import ErrorCode, HarborError, UnavailableError
from tests.client.conftest import StandIn

KEY = '["a"]'
CALLS: dict[str, Callable[[HttpClient], Any]] = {
    "put": lambda client: client.put(KEY, 1),
    "keys": lambda client: client.keys(KEY),
    "invalidate": lambda client: client.invalidate(["a"], exact=True),
    "mutations": lambda client: client.mutations(),
    "cluster": lambda client: client.cluster()["ready"],
    "get": lambda client: client.get(KEY)["version"],
    "undo": lambda client: client.undo("m")["status"],
}
BAD_TEXT = "\udcff"
"""As an argument is that was no UTF-8."""
BAD_TOKENS = ["secrét", "secret\n", "\udcffsecret"]
BAD_URLS = ["", "x", "ftp://x", "http://", "http://[::1", "http://a b", "http://a..b", "http://x:99999", "http://\0"]


def raised(call: Callable[[], Any]) -> HarborError:
    with pytest.raises(HarborError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("token", BAD_TOKENS)
def test_a_token_that_no_header_holds_is_said_and_not_shown(token: str) -> None:
    error = raised(lambda: HttpClient("http://127.0.0.1:1", token).cluster())
    assert error.code is ErrorCode.BAD_REQUEST
    assert "token" in error.message
    assert "secr" not in error.message


@pytest.mark.parametrize("url", BAD_URLS)
def test_what_is_no_url_is_said(url: str) -> None:
    error = raised(lambda: HttpClient(url).cluster())
    assert error.code is ErrorCode.BAD_REQUEST
    assert repr(url) in error.message


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get(BAD_TEXT),
        lambda client: client.put(KEY, BAD_TEXT),
        lambda client: client.keys(BAD_TEXT),
        lambda client: client.undo(BAD_TEXT),
        lambda client: client.invalidate([BAD_TEXT], exact=True),
    ],
)
def test_text_that_cannot_be_sent_is_said(call: Callable[[HttpClient], Any]) -> None:
    assert raised(lambda: call(HttpClient("http://127.0.0.1:1"))).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "answer",
    [{}, {"hello": "world"}, {"keys": 1, "matched": None, "mutations": {}}, {"keys": [], "cursor": 1}],
)
async def test_who_is_no_cluster_is_said_to_be_none(stand_in: StandIn, name: str, answer: dict[str, Any]) -> None:
    stand_in.answers = [(200, orjson.dumps(answer))]
    with (
        closing(HttpClient(stand_in.url)) as client,
        pytest.raises(UnavailableError, match="no Harbor Cluster") as caught,
    ):
        await asyncio.to_thread(CALLS[name], client)
    assert stand_in.url in caught.value.message
