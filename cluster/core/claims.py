"""The claims of a JSON Web Token (RFC 7519) whose signature was checked: whose it is, until when, and what they may do.

What must not live here: signatures and keys (`cluster.gateway.web_token`), what a grant covers (`grants`).
"""

from typing import Any

import msgspec
from msgspec import Struct

from cluster.core.grants import Grants, Principal, check_patterns
from cluster.core.tenant import NAME_TEXT, Tenant, is_name
from cluster.errors import ConfigError, UnauthorizedError

LEEWAY_MS = 5_000.0
"""By which `nbf` and `iat` may lie ahead: the clock of whoever issues tokens is a little ahead of ours, and a new token is used at once.
`exp` has none: clients are told before, and take another."""
MAX_SUBJECT = 256
"""Characters."""
MAX_DATE_S = 2**43
"""The year 280,000: a later `exp` is no date."""


class ClaimRules(Struct, frozen=True):
    """What a token's claims have to be."""

    audience: tuple[str, ...] = ()
    """Any of these; empty: it is not looked at."""
    issuer: str = ""
    """Empty: it is not looked at."""
    claim: str = "harbor"
    """Which one holds the grants."""
    tenant_claim: str = ""
    """Which one holds the tenant; empty: there are none."""


def principal_of(claims: dict[str, Any], rules: ClaimRules, wall_ms: float) -> Principal:
    """Return whom claims are about. `wall_ms`: what the wall clock shows, by which issuers write dates.

    Raises:
        UnauthorizedError: they do not count, and why; their values are not in the message.
    """
    expires_ms = _date_ms(claims, "exp")
    if expires_ms is None:
        raise UnauthorizedError("claims", "the token has no exp, which is required")
    if expires_ms <= wall_ms:
        raise UnauthorizedError("expired", "the token has expired")
    for name in ("nbf", "iat"):
        begins_ms = _date_ms(claims, name)
        if begins_ms is not None and begins_ms > wall_ms + LEEWAY_MS:
            raise UnauthorizedError("not_yet", f"the token is not valid yet ({name})")
    if rules.issuer and claims.get("iss") != rules.issuer:
        raise UnauthorizedError("issuer", "the token is from another issuer (iss)")
    if rules.audience and not _audiences(claims) & set(rules.audience):
        raise UnauthorizedError("audience", "the token is for another audience (aud)")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not _is_text(subject):
        raise UnauthorizedError("claims", f"the token's sub is not a text of 1 to {MAX_SUBJECT} characters")
    token_id = claims.get("jti", "")
    if not isinstance(token_id, str):
        raise UnauthorizedError("claims", "the token's jti is not a text")
    grants = _grants(claims, rules.claim)
    return Principal(
        subject, grants, tenant=_tenant(claims, rules.tenant_claim, grants), expires_ms=expires_ms, token_id=token_id
    )


def _date_ms(claims: dict[str, Any], name: str) -> float | None:
    """Return a NumericDate in ms; None: there is none."""
    if name not in claims:
        return None
    given = claims[name]
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= MAX_DATE_S:
        raise UnauthorizedError("claims", f"the token's {name} is not a number of seconds since 1970")
    return given * 1000.0


def _audiences(claims: dict[str, Any]) -> set[str]:
    given = claims.get("aud")
    return {each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)}


def _is_text(text: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in text)


def _grants(claims: dict[str, Any], claim: str) -> Grants:
    """Return what the claim grants; a token without it grants nothing."""
    try:
        grants = msgspec.convert(claims.get(claim, {}), Grants)
        check_patterns("it", grants)
    except msgspec.ValidationError as error:
        raise UnauthorizedError("claims", f"the token's claim {claim:.60} is not grants: {error}") from None
    except ConfigError as error:
        raise UnauthorizedError("claims", f"the token's claim {claim:.60} is not grants: {error.reason}") from None
    return grants


def _tenant(claims: dict[str, Any], claim: str, grants: Grants) -> Tenant:
    if not claim:
        return Tenant()
    if claim not in claims:
        if grants.admin:
            return Tenant()
        raise UnauthorizedError("tenant", f"the token has no claim {claim:.60}, which names the tenant")
    if not is_name(claims[claim]):
        raise UnauthorizedError("tenant", f"the token's claim {claim:.60} is not a tenant's name: {NAME_TEXT}")
    return Tenant(claims[claim])
