from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_mapping
from cluster.config.auth import is_loopback
from cluster.config.load import ConfigFaults
from cluster.config.model import AuthConfig
from cluster.core.grants import Grants, line
from tests.tokens import SECRET, ec_key, pem, private_pem, rsa_key


def auth(given: Any, **gateway: Any) -> AuthConfig:
    return load_mapping({"gateway": {"auth": given, **gateway}}, {"SECRET": SECRET}).gateway.auth


def faults(given: Any, **gateway: Any) -> list[str]:
    with pytest.raises(ConfigFaults) as raised:
        auth(given, **gateway)
    return [fault.message for fault in raised.value.faults]


def test_a_secret():
    made = auth({"mode": "jwt", "algorithms": ["HS256"], "secret": "${SECRET}"})
    assert made == AuthConfig("jwt", algorithms=("HS256",), secret=SECRET)
    assert SECRET not in repr(made)


def test_a_public_key_as_text_or_as_a_file(tmp_path: Path):
    (tmp_path / "key.pem").write_text(pem(rsa_key()))
    for given in (pem(rsa_key()), str(tmp_path / "key.pem")):
        made = auth({"mode": "jwt", "algorithms": ["RS256", "PS512"], "public_key": given})
        assert made.public_key == pem(rsa_key())
    auth({"mode": "jwt", "algorithms": ["ES384"], "public_key": pem(ec_key("ES384"))})


def test_a_url_and_everything(tmp_path: Path):
    revoked = tmp_path / "revoked"
    revoked.write_text("sub:bob")
    made = auth(
        {
            "mode": "jwt",
            "algorithms": ["RS256", "ES256", "RS256"],
            "jwks_url": "https://issuer.example/jwks?key=k1",
            "audience": "harbor",
            "issuer": "https://issuer.example",
            "claim": "grants",
            "revoked_file": str(revoked),
        },
        tenant_claim="org",
    )
    assert made == AuthConfig(
        "jwt",
        algorithms=("RS256", "ES256"),
        jwks_url="https://issuer.example/jwks?key=k1",
        audience=("harbor",),
        issuer="https://issuer.example",
        claim="grants",
        revoked_file=str(revoked),
    )
    assert "k1" not in repr(made)
    for url in ("http://127.0.0.1:1/x", "http://localhost/x", "http://[::1]/x"):
        auth({"mode": "jwt", "algorithms": ["RS256"], "jwks_url": url})


RS: dict[str, Any] = {"mode": "jwt", "algorithms": ["RS256"]}
HS: dict[str, Any] = {"mode": "jwt", "algorithms": ["HS256"]}
BASE = "gateway.auth"
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "jwt", "secret": SECRET}, f"{BASE}.algorithms: required"),
    ({**RS, "algorithms": [], "jwks_url": "https://x"}, f"{BASE}.algorithms: expected a list such as [RS256], got []"),
    (
        {**RS, "algorithms": "RS256", "jwks_url": "https://x"},
        f"{BASE}.algorithms: expected a list such as [RS256], got 'RS256'",
    ),
    *[
        ({**HS, "algorithms": [name], "secret": SECRET}, f"{BASE}.algorithms.0: expected one of HS256, HS384")
        for name in ("none", "None", "hs256", "EdDSA", "ES256K")
    ],
    (RS, f"{BASE}: expected one of secret, public_key, jwks_url, which tokens are checked with, got none"),
    (
        {**RS, "public_key": pem(rsa_key()), "jwks_url": "https://x"},
        f"{BASE}: expected one of secret, public_key, jwks_",
    ),
    ({**RS, "secret": SECRET}, f"{BASE}.algorithms: RS256 is checked with a public key, and secret is none"),
    (
        {**HS, "algorithms": ["HS256", "RS256"], "secret": SECRET},
        f"{BASE}.algorithms: RS256 is checked with a public key, and secret is none",
    ),
    (
        {**HS, "algorithms": ["RS256", "HS256"], "public_key": pem(rsa_key())},
        f"{BASE}.algorithms: HS256 is checked with a shared secret, and public_key is public",
    ),
    (
        {**HS, "jwks_url": "https://x"},
        f"{BASE}.algorithms: HS256 is checked with a shared secret, and jwks_url is public",
    ),
    ({**HS, "secret": "hunter2"}, f"{BASE}.secret: expected at least 32 bytes for HS256, got 7"),
    (
        {**HS, "algorithms": ["HS256", "HS512"], "secret": SECRET},
        f"{BASE}.secret: expected at least 64 bytes for HS256 and HS512, got 45",
    ),
    ({**HS, "secret": pem(rsa_key())}, f"{BASE}.secret: expected a shared secret, got a PEM key: that is a public_key"),
    ({**HS, "secret": ["hunter2"]}, f"{BASE}.secret: expected text"),
    ({**RS, "public_key": private_pem(rsa_key())}, f"{BASE}.public_key: expected a public key, got a private one"),
    ({**RS, "public_key": "/nonexistent/hunter2"}, f"{BASE}.public_key: expected a public key in PEM, or the name"),
    (
        {**RS, "public_key": "-----BEGIN x"},
        f"{BASE}.public_key: expected a public key in PEM: RSA of 2048 bits or more",
    ),
    ({**RS, "public_key": pem(rsa_key("weak", 1024))}, f"{BASE}.public_key: expected a public key in PEM: RSA of 2048"),
    ({**RS, "public_key": pem(ec_key())}, f"{BASE}.algorithms: RS256 does not fit the public_key, which is for ES256"),
    ({**RS, "jwks_url": "http://issuer.example/jwks"}, f"{BASE}.jwks_url: http:// is for a loopback address only"),
    ({**RS, "jwks_url": "file:///etc/passwd"}, f"{BASE}.jwks_url: expected an https:// URL, got"),
    (
        {**RS, "jwks_url": "ftp://u:hunter2@x?k=hunter2"},
        f"{BASE}.jwks_url: expected an https:// URL, got 'ftp://***@x?k=***'",
    ),
    ({**RS, "jwks_url": 7}, f"{BASE}.jwks_url: expected an https:// URL, got 7"),
    ({**RS, "jwks_url": "https://x", "audience": []}, f"{BASE}.audience: expected text or a list"),
    ({**RS, "jwks_url": "https://x", "issuer": 7}, f"{BASE}.issuer: expected text, got 7"),
    (
        {**RS, "jwks_url": "https://x", "revoked_file": "/nonexistent"},
        f"{BASE}.revoked_file: '/nonexistent' cannot be read",
    ),
    ({**RS, "jwks_url": "https://x", "keys_file": "x"}, f"{BASE}.keys_file: unknown key"),
]


@pytest.mark.parametrize(("given", "start"), FAULTS)
def test_a_fault_is_one_line_without_what_may_be_secret(given: dict[str, Any], start: str):
    (found,) = faults(given)
    assert found.startswith(start)
    assert "hunter2" not in found
    assert "PRIVATE KEY" not in found


def test_a_list_of_what_was_revoked_is_checked(tmp_path: Path):
    revoked = tmp_path / "revoked"
    revoked.write_text("ann")
    (found,) = faults({**HS, "secret": SECRET, "revoked_file": str(revoked)})
    assert (
        found
        == f"gateway.auth.revoked_file: {revoked}, line 1: expected jti: or sub: and an id, without a space between"
    )


def test_keys_need_a_tenant_where_there_are_tenants(tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text(line("ann", "k", Grants()))
    api_keys = {"mode": "api_keys", "keys_file": str(keys)}
    assert auth(api_keys).keys_file == str(keys)
    (found,) = faults(api_keys, tenant_claim="org")
    assert "line 1: tenant: required" in found


def test_tenants_need_credentials():
    (found,) = faults({"mode": "none"}, tenant_claim="org")
    assert found.startswith("gateway.tenant_claim: tenants are told apart by their credentials")


@pytest.mark.parametrize(
    ("host", "is_so"), [("localhost", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False)]
)
def test_loopback(host: str, is_so: bool):
    assert is_loopback(host) is is_so
