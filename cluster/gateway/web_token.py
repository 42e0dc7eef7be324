"""JSON Web Tokens (RFC 7515, 7519): is this one signed by a key that we know, in a way that we asked for?

What a token says of itself decides nothing: its `alg` must be one of the configuration's, its `kid` only picks among keys that are
here, `jku`, `x5u`, `jwk` and `x5c` are not looked at, and with `crit` it is refused. A name that occurs twice in its header or claims is
refused too: others may read the other one.

What must not live here: what claims mean (`core.claims`), where keys come from (`jwks`).
"""

import json
import warnings
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cluster.errors import UnauthorizedError

MAX_TOKEN_BYTES = 8 * 1024
"""What fits into a header with room for others'. A token with a hundred grants has 4 KiB."""
MAX_KID = 256
MAX_KEYS = 100
"""Of a key set; more are not looked at."""
MIN_RSA_BITS = 2048
CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_JWS = jwt.PyJWS()


class Keys(Protocol):
    """Keys that tokens may be signed with."""

    def find(self, kid: str | None, algorithm: str) -> Any:
        """Return the key for a token's header.

        Raises:
            UnauthorizedError: `unknown_key`.
        """
        ...


class OneKey:
    """The only key there is, a shared secret or a public key in PEM: `kid` says nothing."""

    def __init__(self, key: str, algorithms: Sequence[str]) -> None:
        self._key = {name: _JWS.get_algorithm_by_name(name).prepare_key(key) for name in algorithms}

    def find(self, kid: str | None, algorithm: str) -> Any:  # noqa: ARG002
        """Return it."""
        return self._key[algorithm]


class KeySet:
    """The keys of a JWK Set (RFC 7517) that can check one of the algorithms. Shared secrets and private keys are left out."""

    def __init__(self, keys: list[tuple[str | None, str | None, Any]], algorithms: Sequence[str]) -> None:
        self._keys = keys
        """(kid, alg, key)."""
        self._algorithms = tuple(algorithms)

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, kid: str | None) -> bool:
        """Whether there is a key of that id."""
        return any(each == kid for each, _, _ in self._keys)

    @classmethod
    def parse(cls, document: Any, algorithms: Sequence[str]) -> "KeySet":
        """Read a set; keys that cannot be used are left out.

        Raises:
            ValueError: it is no set, and why.
        """
        given = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(given, list):
            raise ValueError('expected {"keys": [...]}')  # noqa: TRY004 - one kind of error for whoever asks
        keys: list[tuple[str | None, str | None, Any]] = []
        for jwk in given[:MAX_KEYS]:
            key = _public_key(jwk)
            if key is not None and any(_fits(key, name) for name in algorithms):
                keys.append((_text(jwk, "kid"), _text(jwk, "alg"), key))
        return cls(keys, algorithms)

    def find(self, kid: str | None, algorithm: str) -> Any:
        """Return the key of an id; a token without one means the only key that fits its algorithm.

        Raises:
            UnauthorizedError: `unknown_key`.
        """
        fitting = [(each, key) for each, alg, key in self._keys if alg in (None, algorithm) and _fits(key, algorithm)]
        found = [key for each, key in fitting if each == kid] if kid is not None else [key for _, key in fitting]
        if kid is None and len(found) > 1:
            raise UnauthorizedError("unknown_key", "the token does not say which key it is signed with (kid)")
        if not found:
            raise UnauthorizedError("unknown_key", "the token is signed with a key that is not known (kid)")
        return found[0]


def _text(jwk: Mapping[str, Any], name: str) -> str | None:
    value = jwk.get(name)
    return value if isinstance(value, str) else None


def _public_key(jwk: Any) -> Any:
    """Return a JWK's public key; None: it is none that can be used."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    if "key_ops" in jwk and "verify" not in (jwk["key_ops"] if isinstance(jwk["key_ops"], list) else ()):
        return None
    kind = jwk.get("kty")
    if kind not in ("RSA", "EC"):
        return None
    try:
        key = _JWS.get_algorithm_by_name("RS256" if kind == "RSA" else "ES256").from_jwk(jwk)
    except (jwt.InvalidKeyError, ValueError, TypeError, KeyError):
        return None
    return key if not isinstance(key, rsa.RSAPublicKey) or key.key_size >= MIN_RSA_BITS else None


def _fits(key: Any, algorithm: str) -> bool:
    match key:
        case rsa.RSAPublicKey():
            return algorithm[:2] in ("RS", "PS")
        case ec.EllipticCurvePublicKey():
            return CURVES.get(algorithm) == key.curve.name
        case _:
            return False


def header_of(token: str, algorithms: Sequence[str]) -> tuple[str, str | None]:
    """Return (algorithm, kid) of a token whose signature was not checked.

    Raises:
        UnauthorizedError: it is no token, or of another algorithm.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise UnauthorizedError("malformed", f"a token has at most {MAX_TOKEN_BYTES} bytes, this one has {len(token)}")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii() or "=" in token:
        raise UnauthorizedError("malformed", "the credentials are not a JSON Web Token")
    try:
        header = _object(urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4)))
    except ValueError:
        raise UnauthorizedError("malformed", "the token's header cannot be read") from None
    algorithm = header.get("alg")
    if algorithm not in algorithms:
        raise UnauthorizedError("algorithm", f"the token is signed in another way (alg) than {' or '.join(algorithms)}")
    if "crit" in header or "b64" in header:
        raise UnauthorizedError("malformed", "the token asks for what is not understood (crit)")
    kid = header.get("kid")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID):
        raise UnauthorizedError("malformed", f"the token's kid is not a text of at most {MAX_KID} characters")
    return str(algorithm), kid


def claims_of(token: str, keys: Keys, algorithms: Sequence[str]) -> dict[str, Any]:
    """Return the claims of a token that is signed with one of `keys`.

    Raises:
        UnauthorizedError: it is not.
    """
    algorithm, kid = header_of(token, algorithms)
    key = keys.find(kid, algorithm)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)  # the configuration looks at that
            payload = _JWS.decode_complete(token, key=key, algorithms=[algorithm])["payload"]
    except jwt.InvalidSignatureError:
        raise UnauthorizedError("signature", "the token's signature does not match") from None
    except jwt.PyJWTError:
        raise UnauthorizedError("malformed", "the token cannot be read") from None
    try:
        return _object(payload)
    except ValueError:
        raise UnauthorizedError("malformed", "the token's claims cannot be read") from None


def _object(text: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is none, or a name occurs twice in it.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004 - one kind of error for whoever asks
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
