"""Tokens say where a client was, and nothing else passes for one."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.position import MAP, MAX_TOKEN_BYTES, Tokens, scope_of
from cluster.core.slot_move import MAX_SHARDS
from cluster.errors import ErrorCode, HarborError

TOKENS = Tokens("a secret of the test", "harbor")
A = scope_of([('["a"]', False)])
EPOCH = 60_000_000_000
"""Milliseconds: about two years."""


@given(
    st.dictionaries(
        st.integers(0, 2**16), st.tuples(st.integers(0, 2**40), st.integers(0, 2**53)), min_size=1, max_size=40
    )
)
def test_a_token_reads_back(positions: dict[int, tuple[int, int]]) -> None:
    assert TOKENS.read(TOKENS.position(A, sorted(positions.items())).decode(), A) == positions


def test_its_text_is_one_that_a_url_and_a_header_take() -> None:
    token = TOKENS.position(A, [(0, (EPOCH, (EPOCH << 13) + 5)), (10, (EPOCH + 2, 255))])
    assert token.startswith(b"p3.")
    assert set(token[3:].decode()) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(("shards", "apart_ms", "commits"), [(64, 0, 10**6), (150, 10**8, 10**9), (150, 1, 10**10)])
def test_a_token_for_many_shards_fits(shards: int, apart_ms: int, commits: int) -> None:
    positions = [(shard, (epoch := EPOCH + apart_ms * (shard % 2), (epoch << 13) + commits)) for shard in range(shards)]
    token = TOKENS.position(A, positions).decode()
    assert len(token) <= MAX_TOKEN_BYTES
    assert TOKENS.read(token, A) == dict(positions)


def test_a_token_of_a_slot_map_and_all_the_shards_there_may_be_fits() -> None:
    positions = [(n, (epoch := EPOCH + 10**8 * (n % 2), (epoch << 13) + 10**9)) for n in range(MAX_SHARDS)]
    token = TOKENS.position(A, [*positions, (MAP, (300, 0))]).decode()
    assert len(token) <= MAX_TOKEN_BYTES
    assert TOKENS.read(token, A) == {**dict(positions), MAP: (300, 0)}


def test_one_that_would_be_too_long_begins_again() -> None:
    positions = [(shard * 1_000, (EPOCH, (EPOCH << 13) + 10**12)) for shard in range(1_000)]
    assert TOKENS.position(A, positions) == TOKENS.position(A)
    assert TOKENS.read(TOKENS.position(A).decode(), A) == {}


def test_scopes() -> None:
    pairs = [('["a"]', False), ('["b"]', True)]
    assert scope_of(pairs) == scope_of(reversed(pairs))
    assert len({scope_of(each) for each in (pairs, pairs[:1], pairs[1:], [('["a"]', True)], [])}) == 5


def refused(token: str, tokens: Tokens = TOKENS, scope: bytes = A) -> None:
    with pytest.raises(HarborError, match="not a position token") as caught:
        tokens.read(token, scope)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert not caught.value.temporary
    assert len(caught.value.message) < 200


def test_no_bit_of_it_may_be_another() -> None:
    token = TOKENS.position(A, [(0, (EPOCH, (EPOCH << 13) + 5))]).decode()
    signed = urlsafe_b64decode(token[3:] + "=" * (-len(token[3:]) % 4))
    for bit in range(len(signed) * 8):
        flipped = bytearray(signed)
        flipped[bit // 8] ^= 1 << bit % 8
        refused("p3." + urlsafe_b64encode(flipped).decode().rstrip("="))
    refused(token[:-1])
    refused(token + "A")
    refused(token + "=")
    refused(token[3:])


def test_it_is_good_for_what_it_was_made_for_in_the_cluster_that_made_it() -> None:
    token = TOKENS.position(A, [(0, (1, 2))]).decode()
    refused(token, scope=scope_of([('["b"]', False)]))
    refused(token, scope=scope_of([('["a"]', True)]))
    refused(token, Tokens("a secret of the test", "another"))
    refused(token, Tokens("another secret", "harbor"))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "p3",
        "p3.",
        "p3.AAAA",
        "p3." + "A" * 22,
        "p3.\u0663" + "A" * 22,
        "p3.\ud800" + "A" * 22,
        "p3.%" + "A" * 22,
        "p3." + "A" * MAX_TOKEN_BYTES,
        "p1.0-0-0",
        "p1.0-1-1.1-1-1",
        "s2.x.y",
        " ",
    ],
)
def test_anything_else_is_refused_with_a_short_reason(token: str) -> None:
    refused(token)


def test_a_sessions_token_is_for_whom_it_was_given_to() -> None:
    token = TOKENS.session("secret", "ann")
    assert TOKENS.read_session(token, "ann") == "secret"
    forged = [
        "secret",
        "",
        "s2.",
        "s2.secret",
        "s2.secret.",
        token[:-1],
        token + "A",
        token.replace("secret", "secreT"),
        token[3:],
        "s2.secret.\u0663",
    ]
    for each in [*forged, Tokens("a secret of the test", "another").session("secret", "ann")]:
        with pytest.raises(HarborError, match="not a resume_token"):
            TOKENS.read_session(each, "ann")
    with pytest.raises(HarborError, match="this subject"):
        TOKENS.read_session(token, "bob")
