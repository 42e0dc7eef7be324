"""Tricks with tokens, on the checking of signatures alone."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from cluster.errors import UnauthorizedError
from cluster.gateway.web_token import MAX_KEYS, MAX_TOKEN_BYTES, KeySet, OneKey, claims_of
from tests.tokens import SECRET, claims, ec_key, encoded, jwk, pem, rsa_key, signed

RS = ("RS256",)
KEY = OneKey(pem(rsa_key()), RS)


def why(token: str, keys: Any = KEY, algorithms: tuple[str, ...] = RS) -> str:
    with pytest.raises(UnauthorizedError) as refused:
        claims_of(token, keys, algorithms)
    for part in token.split("."):
        assert len(part) < 12 or part not in refused.value.message
    return refused.value.why


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"])  # fmt: skip
def test_every_algorithm_is_checked_with_its_key(algorithm):
    kind = algorithm[:2]
    key: Any = SECRET * 2 if kind == "HS" else ec_key(algorithm) if kind == "ES" else rsa_key()
    known = OneKey(key if kind == "HS" else pem(key), (algorithm,))
    token = signed(claims("ann"), key, algorithm, kid="whatever")
    assert claims_of(token, known, (algorithm,))["sub"] == "ann"
    head, _body, signature = token.split(".")
    assert why(f"{head}.{encoded(claims('bob'))}.{signature}", known, (algorithm,)) == "signature"
    assert why(token, known, ("RS256" if algorithm != "RS256" else "PS256",)) == "algorithm"


def forged(header: dict[str, Any], key: bytes = b"") -> str:
    start = f"{encoded(header)}.{encoded(claims())}"
    return f"{start}.{encoded(hmac.digest(key, start.encode(), hashlib.sha256) if key else b'')}"


@pytest.mark.parametrize(
    "name", ["none", "None", "NONE", "nOnE", "", None, 0, ["RS256"], {"a": 1}, "rs256", "RS256 ", "HS256"]
)
def test_no_other_alg_counts(name):
    assert why(forged({"alg": name})) == "algorithm"


def test_a_token_without_alg():
    assert why(forged({"typ": "JWT"})) == "algorithm"


def test_a_public_key_is_no_secret():
    public = pem(rsa_key())
    for text in (public, public.strip(), json.dumps(jwk(rsa_key(), None))):
        assert why(forged({"alg": "HS256"}, text.encode())) == "algorithm"


def test_none_with_a_signature_or_without_one():
    token = signed(claims())
    _, body, signature = token.split(".")
    for tail in ("", signature):
        assert why(f"{encoded({'alg': 'none'})}.{body}.{tail}") == "algorithm"
    assert why(f"{token.rpartition('.')[0]}.") == "signature"


def test_another_s_key():
    assert why(signed(claims(), rsa_key("other"))) == "signature"
    token = signed(claims(), rsa_key("other"), headers={"jwk": jwk(rsa_key("other"), "k")})
    assert why(token) == "signature"


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_a_token_does_not_say_where_keys_are(name):
    token = signed(claims(), rsa_key("other"), headers={name: "http://127.0.0.1:1/evil", "kid": "k"})
    assert why(token) == "signature"


@pytest.mark.parametrize(
    "header", [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": True}]
)
def test_what_is_not_understood_is_refused(header):
    start = f"{encoded({'alg': 'RS256', **header})}.{encoded(claims())}"
    assert why(f"{start}.{encoded(b'x')}") == "malformed"


HEADERS: list[Any] = [
    "[]",
    "7",
    b"\xff",
    "{" * 3000,
    "[" * 5000,
    '{"alg":NaN}',
    '{"alg":"none","alg":"RS256"}',
    {"alg": "RS256", "kid": 7},
    {"alg": "RS256", "kid": "k" * 257},
]
MALFORMED = [
    *["", ".", "..", "...", "a.b.c", "eyJhbGciOiJSUzI1NiJ9", "x" * 100, "ä.ö.ü", "\ud800.a.b", "a.b.c.d", " . . "],
    *[f"{encoded(header)}.{encoded('{}')}.x" for header in HEADERS],
]


@pytest.mark.parametrize("token", MALFORMED)
def test_what_is_no_token(token):
    assert why(token) == "malformed"


def test_truncated_at_every_place():
    token = signed(claims())
    for end in range(0, len(token), 7):
        assert why(token[:end]) in ("malformed", "signature", "algorithm")


@pytest.mark.parametrize("change", ["=", "==", "\n", " ", "A"])
def test_a_changed_signature(change):
    assert why(signed(claims()) + change) in ("malformed", "signature")


@pytest.mark.parametrize("said", ['{"sub":"ann","sub":"bob","exp":1}', "[]", "7", '{"exp":Infinity}', "{", '"x"'])
def test_signed_claims_that_can_be_read_in_two_ways_or_none(said):
    assert why(signed(said)) == "malformed"


def test_a_token_has_a_size():
    assert why(signed(claims(more="x" * MAX_TOKEN_BYTES))) == "malformed"
    assert claims_of(signed(claims(more="x" * (MAX_TOKEN_BYTES // 2))), KEY, RS)["sub"] == "ann"


# --- key sets ---


def test_a_set_picks_by_kid():
    keys = KeySet.parse({"keys": [jwk(rsa_key(), "a"), jwk(rsa_key("other"), "b", alg="RS256", use="sig")]}, RS)
    assert len(keys) == 2
    assert claims_of(signed(claims(), kid="a"), keys, RS)["sub"] == "ann"
    assert claims_of(signed(claims(), rsa_key("other"), kid="b"), keys, RS)["sub"] == "ann"
    assert why(signed(claims(), kid="b"), keys) == "signature"
    for kid in ("c", "", "../../../../dev/null", "a\0", "' OR 1=1 --", "A", "http://127.0.0.1/a"):
        assert why(signed(claims(), kid=kid), keys) == "unknown_key"
    assert why(signed(claims()), keys) == "unknown_key", "which of them?"


def test_a_token_without_kid_means_the_only_key():
    keys = KeySet.parse({"keys": [jwk(rsa_key(), "a"), jwk(ec_key(), "b")]}, ("RS256", "ES256"))
    assert claims_of(signed(claims()), keys, RS)["sub"] == "ann"
    assert claims_of(signed(claims(), ec_key(), "ES256"), keys, ("ES256",))["sub"] == "ann"


def test_a_key_is_used_for_what_it_is_for():
    both = ("RS256", "PS256", "ES256", "ES384")
    keys = KeySet.parse({"keys": [jwk(rsa_key(), "r", alg="RS256"), jwk(ec_key(), "e")]}, both)
    assert why(signed(claims(), rsa_key(), "PS256", kid="r"), keys, both) == "unknown_key"
    assert why(signed(claims(), rsa_key(), kid="e"), keys, both) == "unknown_key"
    assert why(signed(claims(), ec_key("ES384"), "ES384", kid="e"), keys, both) == "unknown_key"


UNUSABLE: list[Any] = [
    {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
    {**jwk(rsa_key(), "a"), "d": "AQAB"},
    jwk(rsa_key(), "a", use="enc"),
    jwk(rsa_key(), "a", key_ops=["sign"]),
    jwk(rsa_key("weak", 1024), "a"),
    {**jwk(rsa_key(), "a"), "n": "!"},
    {**jwk(rsa_key(), "a"), "n": 7},
    {"kty": "RSA", "kid": "a"},
    {"kty": ["RSA"], "kid": "a"},
    {**jwk(ec_key(), "a"), "x": "AA"},
    jwk(ec_key(), "a"),
    7,
    None,
]


@pytest.mark.parametrize("entry", UNUSABLE)
def test_what_cannot_be_used_is_left_out(entry):
    assert len(KeySet.parse({"keys": [entry]}, RS)) == 0


@pytest.mark.parametrize("document", [[], {}, None, {"keys": {}}, "x"])
def test_what_is_no_set(document):
    with pytest.raises(ValueError, match="keys"):
        KeySet.parse(document, RS)


def test_a_set_is_read_to_a_limit():
    assert len(KeySet.parse({"keys": [jwk(rsa_key(), str(n)) for n in range(MAX_KEYS + 5)]}, RS)) == MAX_KEYS
