import pytest

from cluster.core.grants import Grants, Principal
from cluster.core.revocation import Revocations
from cluster.errors import ConfigError, UnauthorizedError


def test_tokens_and_subjects():
    revoked = Revocations.parse("# ours\n\n jti:t1 \nsub:bob\nsub:urn:x:y\n")
    assert len(revoked) == 3
    for principal in (
        Principal("ann", Grants(), token_id="t1"),
        Principal("bob", Grants()),
        Principal("urn:x:y", Grants(), token_id="t2"),
    ):
        with pytest.raises(UnauthorizedError) as refused:
            revoked.require(principal)
        assert refused.value.why == "revoked"
    for principal in (Principal("ann", Grants(), token_id="t2"), Principal("t1", Grants()), Principal("ann", Grants())):
        revoked.require(principal)


@pytest.mark.parametrize("line", ["bob", "user:bob", "jti:", "sub", "sub: bob", "jti:\tt1", "eyJhbGciOiJI.secret"])
def test_a_faulty_line_is_named_and_not_shown(line):
    with pytest.raises(ConfigError, match=r"line 2: expected jti: or sub: and an id, without"):
        Revocations.parse(f"sub:a\n{line}")
