"""Tokens say where a client was, and nothing else passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.position import MAX_TOKEN_BYTES, decode_token, encode_token
from cluster.core.protocol import VOID_TOKEN
from cluster.errors import ErrorCode, RequestError


@given(
    st.dictionaries(
        st.integers(0, 2**16), st.tuples(st.integers(0, 2**40), st.integers(0, 2**53)), min_size=1, max_size=40
    )
)
def test_a_token_reads_back(positions: dict[int, tuple[int, int]]) -> None:
    assert decode_token(encode_token(positions.items())) == positions


def test_its_text() -> None:
    assert encode_token([(0, (1, 2**32 + 5)), (10, (2, 255))]) == "p1.0-1-100000005.a-2-ff"


def test_a_token_for_64_shards_fits() -> None:
    epoch = 1_790_000_000_000
    assert len(encode_token((shard, (epoch, (epoch << 13) + 10**6)) for shard in range(64))) <= MAX_TOKEN_BYTES


def test_the_void_token_is_of_no_epoch() -> None:
    assert decode_token(VOID_TOKEN.decode()) == {0: (0, 0)}


@pytest.mark.parametrize(
    "token",
    [
        "",
        "p1",
        "p1.",
        "p2.0-1-1",
        "0-1-1",
        "p1.0-1",
        "p1.0-1-1-1",
        "p1.0-1-1.",
        "p1.0-1-G",
        "p1.0-1-A",
        "p1.0--1",
        "p1.-1-1-1",
        "p1.0-1-1\n",
        " p1.0-1-1",
        "p1.0-1-" + "1" * 16,
        "p1." + "1" * 9 + "-1-1",
        "p1.٣-1-1",
        "p1" + ".0-1-1" * MAX_TOKEN_BYTES,
    ],
)
def test_anything_else_is_refused_with_a_short_reason(token: str) -> None:
    with pytest.raises(RequestError, match="not a position token") as caught:
        decode_token(token)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert len(caught.value.message) < 200
