"""Positions: how far a client has come, as a token it hands back when it returns.

A position is (epoch, offset) in one shard's change log; a token holds one for each shard a subscription concerns. It is signed, so that
nothing a client made up is ever asked of a shard, and bound to its *scope*, the keys and prefixes it speaks for: handed back for another
key it would silently skip what that client never had. It is not bound to whose it is. It holds no data, and a subscription is
authorized anew whenever it begins, so somebody else's token shows nobody more than he may read anyway.

A session's token is another matter: who bears it takes that session's place. So it is bound to the subject it was given to.

Tokens are opaque to clients. As text, a position's is `p3.` and base64url of: 16 bytes of keyed BLAKE2b (RFC 7693) over scope and body,
which takes half of what HMAC does and goes with every frame, then the body: by ascending shard the step to its number, its epoch as a
step from the one before, and its offset as a step from `epoch << SHIFT`, about which offsets lie. All are variable-length integers, so
that 64 shards take some 700 characters.

What must not live here: where the secret comes from (`cluster.actors`).
"""

import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b, sha256

import orjson

from cluster.errors import ErrorCode, RequestError

MAX_TOKEN_BYTES = 2048
SHIFT = 13
"""Offsets of a life begin about here: only the length of a token depends on it."""
_PREFIX = "p3."
_SESSION = "s2."
_SIGNATURE_BYTES = 16
"""2^-128 is as good as never."""
_MAX_BODY = (MAX_TOKEN_BYTES - len(_PREFIX)) * 3 // 4 - _SIGNATURE_BYTES
_URLSAFE = bytes.maketrans(b"-_", b"+/")
Position = tuple[int, int]
"""(epoch, offset)."""
MAP = 0xFFFF
"""In place of a shard: its "epoch" is that of the slot map by which the shards were chosen. Where it is missing that is 1."""
Scope = bytes
"""What a token speaks for."""


def scope_of(interests: Iterable[tuple[str, bool]]) -> Scope:
    """Return the scope of (canonical key, whether it is a prefix), in whatever order they come."""
    return sha256(orjson.dumps(sorted(interests))).digest()


class Tokens:
    """Makes tokens of one cluster, and tells them from everything else."""

    __slots__ = ("_positions", "_sessions")

    def __init__(self, secret: str, cluster: str) -> None:
        # A key for each kind: none passes for the other, and none of a cluster that happens to have the same secret.
        self._positions = hmac.digest(secret.encode(), f"position/{cluster}".encode(), "sha256")
        self._sessions = hmac.digest(secret.encode(), f"session/{cluster}".encode(), "sha256")

    def position(self, scope: Scope, positions: Iterable[tuple[int, Position]] = ()) -> bytes:
        """Write positions, by ascending shard, as a token; with none it is one that begins again.

        So is one of more shards than 2 KiB can hold (150 at least): who comes back with it gets a reset, and never a gap.
        """
        body = _body(tuple(positions))
        return _PREFIX.encode() + urlsafe_b64encode(self._signature(scope, body) + body).rstrip(b"=")

    def read(self, token: str, scope: Scope) -> dict[int, Position]:
        """Read a token: positions by shard, none where it is to begin again.

        Raises:
            RequestError: `BAD_REQUEST`, it is none of ours, or was made for something else.
        """
        signed = _decoded(token)
        signature, body = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(scope, body)):
            raise _refusal()
        positions: dict[int, Position] = {}
        numbers = iter(body)
        shard = epoch = 0
        while (step := _next(numbers)) is not None:
            moved, offset = _next(numbers), _next(numbers)
            assert moved is not None  # it is signed: nobody else has written it
            assert offset is not None
            shard, epoch = shard + step, epoch + _unfolded(moved)
            positions[shard] = (epoch, _unfolded(offset) + (epoch << SHIFT))
        return positions

    def session(self, secret: str, subject: str) -> str:
        """Return the token by which a session, known by `secret`, is resumed by `subject`."""
        return f"{_SESSION}{secret}.{self._seal(secret, subject)}"

    def read_session(self, token: str, subject: str) -> str:
        """Return the secret of a session's token.

        Raises:
            RequestError: `BAD_REQUEST`, it is none of ours, or was given to another subject.
        """
        secret, _, seal = token.removeprefix(_SESSION).rpartition(".")
        if not token.startswith(_SESSION) or not hmac.compare_digest(
            seal.encode(), self._seal(secret, subject).encode()
        ):
            raise RequestError(
                ErrorCode.BAD_REQUEST, "not a resume_token that this cluster gave to this subject: go on without it"
            )
        return secret

    def _signature(self, scope: Scope, body: bytes) -> bytes:
        return blake2b(scope + body, digest_size=_SIGNATURE_BYTES, key=self._positions).digest()

    def _seal(self, secret: str, subject: str) -> str:
        said = sha256(secret.encode()).digest() + subject.encode()
        return urlsafe_b64encode(hmac.digest(self._sessions, said, "sha256")[:_SIGNATURE_BYTES]).rstrip(b"=").decode()


@lru_cache(256)  # what is flushed at once mostly has come to the same positions
def _body(positions: tuple[tuple[int, Position], ...]) -> bytes:
    body = bytearray()
    before, last = 0, 0
    for shard, (epoch, offset) in positions:
        _put(body, shard - before)
        _put(body, _folded(epoch - last))
        _put(body, _folded(offset - (epoch << SHIFT)))
        before, last = shard, epoch
    return b"" if len(body) > _MAX_BODY else bytes(body)


def _refusal() -> RequestError:
    return RequestError(
        ErrorCode.BAD_REQUEST, "not a position token that this cluster gave for these keys: begin without it"
    )


def _decoded(token: str) -> bytes:
    if len(token) > MAX_TOKEN_BYTES or not token.startswith(_PREFIX) or not token.isascii():
        raise _refusal()
    text = token[len(_PREFIX) :].encode()
    try:
        signed = b64decode(text.translate(_URLSAFE) + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise _refusal() from None
    if len(signed) < _SIGNATURE_BYTES or urlsafe_b64encode(signed).rstrip(b"=") != text:  # one text for each token
        raise _refusal()
    return signed


def _folded(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _unfolded(number: int) -> int:
    return number >> 1 if not number & 1 else -((number + 1) >> 1)


def _put(body: bytearray, number: int) -> None:
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)


def _next(body: Iterable[int]) -> int | None:
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
        shift += 7
    return None
