from typing import Any

import pytest

from cluster.core.claims import LEEWAY_MS, MAX_DATE_S, ClaimRules, principal_of
from cluster.core.grants import Grants
from cluster.errors import UnauthorizedError

NOW_MS = 1_000_000.0
EXP = 2_000
GOOD: dict[str, Any] = {"sub": "ann", "exp": EXP, "harbor": {"read": [["a"]]}}
STRICT = ClaimRules(audience=("harbor", "other"), issuer="https://issuer")


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_whose_it_is_until_when_and_what_they_may():
    found = principal_of({**GOOD, "jti": "t1", "iat": 900, "nbf": 900.5}, ClaimRules(), NOW_MS)
    assert (found.subject, found.token_id, found.expires_ms) == ("ann", "t1", EXP * 1000)
    assert found.grants == Grants(read=[["a"]])
    assert not found.tenant


def test_a_token_without_the_claim_may_nothing():
    assert principal_of(without("harbor"), ClaimRules(), NOW_MS).grants == Grants()


def test_the_claim_may_have_another_name():
    assert principal_of({**GOOD, "https://h/g": {"admin": True}}, ClaimRules(claim="https://h/g"), NOW_MS).is_operator


@pytest.mark.parametrize("audience", ["harbor", ["x", "other"]])
def test_audience_and_issuer_where_they_are_asked_for(audience):
    assert principal_of({**GOOD, "aud": audience, "iss": "https://issuer"}, STRICT, NOW_MS).subject == "ann"


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_another_clock_may_be_a_little_ahead(name):
    ahead = (NOW_MS + LEEWAY_MS) / 1000
    principal_of({**GOOD, name: ahead}, ClaimRules(), NOW_MS)
    with pytest.raises(UnauthorizedError) as refused:
        principal_of({**GOOD, name: ahead + 1}, ClaimRules(), NOW_MS)
    assert refused.value.why == "not_yet"


def test_exp_is_the_end():
    principal_of({**GOOD, "exp": NOW_MS / 1000 + 0.001}, ClaimRules(), NOW_MS)
    with pytest.raises(UnauthorizedError, match="expired") as refused:
        principal_of({**GOOD, "exp": NOW_MS / 1000}, ClaimRules(), NOW_MS)
    assert refused.value.why == "expired"


REFUSED: list[tuple[ClaimRules, dict[str, Any], str, str]] = [
    (ClaimRules(), without("exp"), "claims", "no exp"),
    (ClaimRules(), {**GOOD, "exp": "2000"}, "claims", "exp is not a number"),
    (ClaimRules(), {**GOOD, "exp": True}, "claims", "exp is not a number"),
    (ClaimRules(), {**GOOD, "exp": None}, "claims", "exp is not a number"),
    (ClaimRules(), {**GOOD, "exp": float("inf")}, "claims", "exp is not a number"),
    (ClaimRules(), {**GOOD, "exp": MAX_DATE_S * 2}, "claims", "exp is not a number"),
    (ClaimRules(), {**GOOD, "nbf": "soon"}, "claims", "nbf is not a number"),
    (ClaimRules(), without("sub"), "claims", "sub is not"),
    (ClaimRules(), {**GOOD, "sub": ""}, "claims", "sub is not"),
    (ClaimRules(), {**GOOD, "sub": 7}, "claims", "sub is not"),
    (ClaimRules(), {**GOOD, "sub": "x" * 257}, "claims", "sub is not"),
    (ClaimRules(), {**GOOD, "sub": "\ud800"}, "claims", "sub is not"),
    (ClaimRules(), {**GOOD, "jti": 1}, "claims", "jti is not"),
    (STRICT, {**GOOD, "aud": "harbor"}, "issuer", "another issuer"),
    (STRICT, {**GOOD, "aud": "harbor", "iss": "https://issuer/"}, "issuer", "another issuer"),
    (STRICT, {**GOOD, "iss": "https://issuer"}, "audience", "another audience"),
    (STRICT, {**GOOD, "iss": "https://issuer", "aud": ["x", 1]}, "audience", "another audience"),
    (STRICT, {**GOOD, "iss": "https://issuer", "aud": {"harbor": 1}}, "audience", "another audience"),
    (ClaimRules(), {**GOOD, "harbor": "admin"}, "claims", "claim harbor is not grants"),
    (ClaimRules(), {**GOOD, "harbor": {"raed": []}}, "claims", "raed"),
    (ClaimRules(), {**GOOD, "harbor": {"read": ["a"]}}, "claims", "read"),
    (ClaimRules(), {**GOOD, "harbor": {"admin": 1}}, "claims", "admin"),
    (ClaimRules(), {**GOOD, "harbor": {"read": [[[[]] * 40]] * 2 + [eval("[" * 40 + "]" * 40)]}}, "claims", "nest"),
    (ClaimRules(tenant_claim="org"), GOOD, "tenant", "no claim org"),
    *[
        (ClaimRules(tenant_claim="org"), {**GOOD, "org": name}, "tenant", "not a tenant's name")
        for name in ("", "*", "a/b", "a\0b", "a b", "[]", "x" * 65, 7, None, ["a"], "ä", ".a", "a\n")
    ],
]


@pytest.mark.parametrize(("rules", "claims", "why", "reason"), REFUSED)
def test_what_does_not_count(rules, claims, why, reason):
    with pytest.raises(UnauthorizedError, match=reason) as refused:
        principal_of(claims, rules, NOW_MS)
    assert (refused.value.code, refused.value.why) == ("UNAUTHORIZED", why)


def test_a_tenant_s_grants_are_under_its_name():
    found = principal_of(
        {**GOOD, "org": "acme", "harbor": {"read": [[]], "admin": True}}, ClaimRules(tenant_claim="org"), NOW_MS
    )
    assert found.tenant.name == "acme"
    assert not found.is_operator


def test_an_operator_needs_no_tenant():
    assert principal_of({**GOOD, "harbor": {"admin": True}}, ClaimRules(tenant_claim="org"), NOW_MS).is_operator
