import pytest

from cluster.core.position import MAX_TOKEN_BYTES, decode_token, encode_token
from cluster.core.protocol import VOID_TOKEN
from cluster.errors import ErrorCode, RequestError


def test_a_token_reads_back() -> None:
    positions = [(0, (1_790_000_000_000, 1_790_000_000_000 << 13)), (31, (3, 0))]
    token = encode_token(positions)
    assert decode_token(token) == dict(positions)
    assert decode_token(VOID_TOKEN.decode()) == {0: (0, 0)}


def test_a_token_for_64_shards_fits() -> None:
    epoch = 1_790_000_000_000
    assert len(encode_token((shard, (epoch, (epoch << 13) + 10**6)) for shard in range(64))) <= MAX_TOKEN_BYTES


@pytest.mark.parametrize(
    "token", ["", "p1", "p1.", "p2.0-1-2", "p1.0-1", "p1.0-1-2.", "p1.0-1--2", "p1.0-1-2_0", "p1.0-1-2\n", "p1." + "0-1-2." * 500]
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(RequestError) as error:
        decode_token(token)
    assert error.value.code is ErrorCode.BAD_REQUEST
