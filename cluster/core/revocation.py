"""Credentials that do not count before their time: a list of tokens and subjects.

One a line, `jti:` and a token's id or `sub:` and a subject (of tokens, in whatever tenant, or the id of an API key); `#` for comments.

What must not live here: where the list comes from (`cluster.gateway`).
"""

from cluster.core.grants import Principal
from cluster.errors import ConfigError, UnauthorizedError


class Revocations:
    """See the module."""

    __slots__ = ("_subjects", "_tokens")

    def __init__(self, tokens: frozenset[str] = frozenset(), subjects: frozenset[str] = frozenset()) -> None:
        self._tokens = tokens
        self._subjects = subjects

    def require(self, principal: Principal) -> None:
        """Refuse who is on the list.

        Raises:
            UnauthorizedError: `revoked`.
        """
        if principal.subject in self._subjects or (principal.token_id and principal.token_id in self._tokens):
            raise UnauthorizedError("revoked", "the credentials were revoked")

    def __len__(self) -> int:
        return len(self._tokens) + len(self._subjects)

    @classmethod
    def parse(cls, text: str) -> "Revocations":
        """Read a list.

        Raises:
            ConfigError: with the line, as path, and what is wrong there.
        """
        found: dict[str, set[str]] = {"jti": set(), "sub": set()}
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.strip()
            if not stripped or stripped.startswith("#"):
                continue
            kind, mark, name = stripped.partition(":")
            if (
                not mark or kind not in found or name != name.strip() or not name
            ):  # it would be nobody's, and revoke nothing
                raise ConfigError(f"line {number}", "expected jti: or sub: and an id, without a space between")
            found[kind].add(name)
        return cls(frozenset(found["jti"]), frozenset(found["sub"]))
