"""`gateway.auth`: how clients are recognised.

The key of the configuration decides which algorithms can be meant, never a token: one that is checked with a public key must not be
checked as if that were a shared secret, so both kinds in one configuration are a fault.

What must not live here: recognising anybody (`cluster.gateway`).
"""

from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.config import values
from cluster.config.model import AuthConfig, masked_url
from cluster.config.section import NEVER, Faults, Section
from cluster.config.values import shown
from cluster.core.grants import ApiKeys
from cluster.core.revocation import Revocations
from cluster.errors import ConfigError

FAMILIES = {
    "HS": ("HS256", "HS384", "HS512"),
    "RS": ("RS256", "RS384", "RS512"),
    "PS": ("PS256", "PS384", "PS512"),
    "ES": ("ES256", "ES384", "ES512"),
}
ALGORITHMS = tuple(name for names in FAMILIES.values() for name in names)
KEYS = ("secret", "public_key", "jwks_url")
CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
MIN_RSA_BITS = 2048


def read_auth(reader: Faults, path: str, value: Any, *, tenants: bool) -> AuthConfig:
    """Read the section; faults go to the reader. `tenants`: everybody but operators is of one."""
    section = Section(reader, path, value)
    mode = section.take("mode", "none", values.one_of("none", "api_keys", "jwt"))
    made = AuthConfig(mode)
    match mode:
        case "api_keys":
            made = AuthConfig(
                mode,
                keys_file=section.take("keys_file", NEVER, partial(_keys_file, tenants)) or "",
                revoked_file=section.take("revoked_file", "", _revoked_file),
            )
        case "jwt":
            made = AuthConfig(
                mode,
                algorithms=section.take("algorithms", NEVER, _algorithms) or (),
                secret=section.take("secret", "", _secret),
                public_key=section.take("public_key", "", _public_key),
                jwks_url=section.take("jwks_url", "", _jwks_url),
                audience=section.take("audience", (), _audience),
                issuer=section.take("issuer", "", values.text),
                claim=section.take("claim", "harbor", values.text),
                revoked_file=section.take("revoked_file", "", _revoked_file),
            )
            if section.is_mapping:
                _check_keys(reader, section, made)
    section.done()
    return made


def _check_keys(reader: Faults, section: Section, made: AuthConfig) -> None:
    """Find what does not go together."""
    given = [name for name in KEYS if section.has(name)]
    if len(given) != 1:
        found = "none" if not given else " and ".join(given)
        reader.fault(section.path, f"expected one of {', '.join(KEYS)}, which tokens are checked with, got {found}")
        return
    if not getattr(made, given[0]):
        return  # it is faulty
    at = section.at("algorithms")
    shared = [name for name in made.algorithms if name in FAMILIES["HS"]]
    if made.secret:
        others = [name for name in made.algorithms if name not in shared]
        if others:
            reader.fault(at, f"{others[0]} is checked with a public key, and secret is none")
        least = max((int(name[2:]) // 8 for name in shared), default=0)
        size = len(made.secret.encode())
        if size < least:
            reader.fault(
                section.at("secret"), f"expected at least {least} bytes for {' and '.join(shared)}, got {size}"
            )
    elif shared:
        reader.fault(at, f"{shared[0]} is checked with a shared secret, and {given[0]} is public")
    if made.public_key and made.algorithms and not shared:
        fitting = _fitting(made.public_key)
        for name in made.algorithms:
            if name not in fitting:
                reader.fault(at, f"{name} does not fit the public_key, which is for {' or '.join(fitting)}")
                break


def _algorithms(path: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(path, f"expected a list such as [RS256], got {shown(value)}")
    for position, name in enumerate(value):
        if name not in ALGORITHMS:
            raise ConfigError(f"{path}.{position}", f"expected one of {', '.join(ALGORITHMS)}, got {shown(name)}")
    return tuple(dict.fromkeys(value))


def _secret(path: str, value: Any) -> str:
    # Not `values.text`: its fault would show what it got.
    if isinstance(value, int) and not isinstance(value, bool):  # a variable that holds digits has become a number
        value = str(value)
    if not isinstance(value, str) or not value:
        raise ConfigError(path, "expected text")
    if value.lstrip().startswith("-----BEGIN"):
        raise ConfigError(path, "expected a shared secret, got a PEM key: that is a public_key")
    return value


def _public_key(path: str, value: Any) -> str:
    """Return a public key as PEM, given as that or as the name of a file that holds it."""
    if not isinstance(value, str) or not value:
        raise ConfigError(path, "expected a public key in PEM, or the name of a file that holds one")
    pem = value
    if not value.lstrip().startswith("-----BEGIN"):
        try:
            pem = Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError):  # what it got is not shown: it may be a secret in the wrong place
            raise ConfigError(path, "expected a public key in PEM, or the name of a file that can be read") from None
    if "PRIVATE KEY" in pem:
        raise ConfigError(path, "expected a public key, got a private one, which is nobody's but the issuer's")
    if not _fitting(pem):
        raise ConfigError(
            path, f"expected a public key in PEM: RSA of {MIN_RSA_BITS} bits or more, or P-256, P-384 or P-521"
        )
    return pem


def _fitting(pem: str) -> tuple[str, ...]:
    """Return the algorithms that a public key is for; none: it cannot be used."""
    # Imported late: most configurations have no such key.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return ()
    match key:
        case rsa.RSAPublicKey():
            return (*FAMILIES["RS"], *FAMILIES["PS"]) if key.key_size >= MIN_RSA_BITS else ()
        case ec.EllipticCurvePublicKey():
            name = CURVES.get(key.curve.name)
            return () if name is None else (name,)
        case _:
            return ()


def _jwks_url(path: str, value: Any) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        host = "" if parts is None else parts.hostname or ""
        _ = None if parts is None else parts.port
    except ValueError:
        parts, host = None, ""
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise ConfigError(path, f"expected an https:// URL, got {_shown_url(value)}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(path, f"http:// is for a loopback address only, expected https://, got {_shown_url(value)}")
    return str(value)


def _shown_url(value: Any) -> str:
    return repr(masked_url(value)) if isinstance(value, str) else shown(value)


def _audience(path: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        if not value:
            raise ConfigError(path, "expected text or a list of texts, got an empty list")
        return tuple(values.text(f"{path}.{position}", each) for position, each in enumerate(value))
    return (values.text(path, value),)


def _keys_file(tenants: bool, path: str, value: Any) -> str:
    name = values.place(path, value)
    _parsed(path, name, lambda text: ApiKeys.parse(text, tenants=tenants))
    return name


def _revoked_file(path: str, value: Any) -> str:
    name = values.place(path, value)
    _parsed(path, name, Revocations.parse)
    return name


def _parsed(path: str, name: str, parse: Any) -> None:
    try:
        parse(_read(path, name))
    except ConfigError as error:
        if error.path == path:
            raise
        raise ConfigError(path, f"{name}, {error.message}") from None


def _read(path: str, name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(path, f"{name[:200]!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(path, f"{name!r} is not UTF-8") from None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
