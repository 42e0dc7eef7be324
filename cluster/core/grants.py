"""Who asks, and what they may do.

A grant of keys is a key prefix in which `"*"` stands for any one element; `[]` covers every key. It covers a prefix where it covers every
key under it, so what is delivered for a prefix need not be looked at again: who may not read all of it may not watch it. A grant of
names (mutations, topics) may end in `*`.

Somebody of a tenant has their grants under the tenant's name; patterns are written as the tenant's clients see keys.

What must not live here: where credentials come from (`cluster.gateway`), what an endpoint needs.
"""

import hashlib
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from cluster.core.query_key import CanonicalKey, checked, parse, partial_match
from cluster.core.reserved import is_reserved
from cluster.core.tenant import NAME_TEXT, NOBODYS, Tenant, is_name
from cluster.errors import ConfigError, ErrorCode, HarborError, RequestError, UnauthorizedError

ANY = "*"
REMEMBERED = 10_000
"""Keys of which it is known whether an API key covers them; beyond it they are looked at anew."""
REMEMBERED_OF_TOKEN = 100
"""The same of a token, which is one client's: a gateway remembers thousands of them, and a key may have a KiB."""
SCHEME = "sha256:"

KeyRight = Literal["read", "write"]


class Grants(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What somebody may do, as it stands in a keys file and in a token's claim."""

    read: list[list[Any]] = []
    """Get, list, watch."""
    write: list[list[Any]] = []
    """Set, edit, delete, invalidate."""
    mutate: list[str] = []
    presence: list[str] = []
    admin: bool = False
    """See and change the cluster itself."""


class Principal:
    """Somebody who was recognised."""

    __slots__ = ("_covered", "_presence", "_read", "_write", "expires_ms", "grants", "subject", "tenant", "token_id")

    def __init__(
        self,
        subject: str,
        grants: Grants,
        *,
        tenant: Tenant = NOBODYS,
        expires_ms: float | None = None,
        token_id: str = "",
    ) -> None:
        self.subject = subject
        self.grants = grants
        self.tenant = tenant
        self.expires_ms = expires_ms
        """When what it was recognised by ends (Unix ms, by the wall clock); None: never, it is a key."""
        self.token_id = token_id
        """What it was recognised by: the `jti` of a token that has one, the hash of an API key."""
        self._read = [tenant.pattern(each) for each in grants.read]
        self._write = [tenant.pattern(each) for each in grants.write]
        self._presence = [tenant.inside_topic(each) for each in grants.presence]
        self._covered: dict[tuple[KeyRight, str], bool] = {}

    @property
    def account(self) -> str:
        """Return whom it is counted as, and who may resume its sessions: a subject is another one in each tenant."""
        return f"{self.tenant.name}\n{self.subject}" if self.tenant else self.subject

    @property
    def is_operator(self) -> bool:
        """Whether it may see and change the cluster itself, and what is of all tenants."""
        return self.grants.admin and not self.tenant

    def may(self, right: KeyRight, key: CanonicalKey) -> bool:
        """Whether it has a right to a key, or to everything under a prefix."""
        known = self._covered.get((right, key))
        if known is None:
            parsed = parse(key)
            patterns = self._read if right == "read" else self._write
            if is_reserved(parsed) or (self.tenant and is_reserved(parsed[1:])):
                return right == "read" and self.is_operator
            if len(self._covered) >= (REMEMBERED if self.expires_ms is None else REMEMBERED_OF_TOKEN):
                self._covered.clear()
            known = self._covered[right, key] = any(_covers(pattern, parsed) for pattern in patterns)
        return known

    def require(self, right: KeyRight, key: CanonicalKey) -> None:
        """Refuse what it has no right to.

        Raises:
            HarborError: `FORBIDDEN`.
        """
        if not self.may(right, key):
            raise HarborError(ErrorCode.FORBIDDEN, f"no grant to {right} {_clipped(self.tenant.outside(key))}")

    def may_mutate(self, name: str) -> bool:
        """Whether it may begin mutations of a name."""
        return names(self.grants.mutate, name)

    @property
    def mutations(self) -> list[str] | None:
        """Return patterns of the names of mutations that it may see, of its tenant; None: it may see all."""
        return None if self.grants.admin else self.grants.mutate

    def may_see(self, mutation: str, name: str) -> bool:
        """Whether it may see what becomes of a mutation of a name."""
        return self.tenant.has_id(mutation) and (self.grants.admin or self.may_mutate(name))

    def require_mutation(self, name: str) -> None:
        """Refuse a mutation that it may not begin.

        Raises:
            HarborError: `FORBIDDEN`.
        """
        if not self.may_mutate(name):
            raise HarborError(ErrorCode.FORBIDDEN, f"no grant to mutate {_clipped(name)}")

    def may_be_present(self, topic: str) -> bool:
        """Whether it has a grant of a presence topic."""
        return names(self._presence, topic)

    def require_presence(self, topic: str) -> None:
        """Refuse a presence topic that it has no grant of.

        Raises:
            HarborError: `FORBIDDEN`.
        """
        if not self.may_be_present(topic):
            raise HarborError(
                ErrorCode.FORBIDDEN, f"no grant of the presence topic {_clipped(self.tenant.outside_topic(topic))}"
            )

    def require_follower(self, later: "Principal") -> None:
        """Refuse that a session which is this one's becomes somebody else's: others know it, and it holds what is of a tenant.

        API keys are told apart by their ids and replaced by ones with another, so of these the tenant alone counts.

        Raises:
            HarborError: `FORBIDDEN`.
        """
        if self.tenant.name != later.tenant.name:
            raise HarborError(ErrorCode.FORBIDDEN, "these are credentials of another tenant: connect anew with them")
        if self.expires_ms is not None and self.subject != later.subject:
            raise HarborError(ErrorCode.FORBIDDEN, "this is a token of another subject: connect anew with it")

    def require_admin(self) -> None:
        """Refuse who may not see and change the cluster.

        Raises:
            HarborError: `FORBIDDEN`.
        """
        if not self.is_operator:
            of_tenant = ", of no tenant" if self.grants.admin else ""
            raise HarborError(ErrorCode.FORBIDDEN, f"this needs the admin grant{of_tenant}")


ANYBODY = Principal("anonymous", Grants(read=[[]], write=[[]], mutate=[ANY], presence=[ANY], admin=True))
"""Where no credentials are asked for."""


class Authority(Protocol):
    """Says who bears what, and what they may do. `wall_ms`: what the wall clock shows as it is asked."""

    def recognise(self, credentials: str, wall_ms: float) -> Principal:
        """Return who bears credentials.

        Raises:
            UnauthorizedError: nobody does, and why.
            UnavailableError: that cannot be said at the moment.
        """
        ...

    def current(self, principal: Principal, wall_ms: float) -> Principal:
        """Return somebody who was recognised before as they are now.

        Raises:
            UnauthorizedError: what they were recognised by does not count any more.
        """
        ...


def _covers(pattern: list[Any], key: list[Any]) -> bool:
    return len(pattern) <= len(key) and all(
        wanted == ANY or partial_match(held, wanted) for held, wanted in zip(key, pattern, strict=False)
    )


def names(patterns: list[str], name: str) -> bool:
    """Whether one of some patterns is of a name."""
    return any(name.startswith(pattern[:-1]) if pattern.endswith(ANY) else name == pattern for pattern in patterns)


def _clipped(key: str) -> str:
    return key if len(key) <= 120 else key[:117] + "..."


class _Line(Grants, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One key of a keys file."""

    id: str
    hash: str
    tenant: str = ""


class ApiKeys:
    """The keys of a keys file. What it holds are hashes: keys are random, 256 bits, so a plain SHA-256 cannot be turned round."""

    def __init__(self, by_hash: dict[str, Principal]) -> None:
        self._by_hash = by_hash
        self._by_subject = {each.subject: each for each in by_hash.values()}

    def principal(self, key: str) -> Principal | None:
        """Return who bears a key."""
        return self._by_hash.get(hashed(key))

    def recognise(self, credentials: str, wall_ms: float) -> Principal:  # noqa: ARG002 - keys do not expire
        """Return who bears a key.

        Raises:
            UnauthorizedError: nobody does.
        """
        principal = self.principal(credentials)
        if principal is None:
            raise UnauthorizedError("unknown_key", "the key is not valid")
        return principal

    def current(self, principal: Principal, wall_ms: float) -> Principal:  # noqa: ARG002
        """Return somebody as the file has them now.

        Raises:
            UnauthorizedError: it has them no more, or as another tenant's, or their id with another key.
        """
        found = self._by_subject.get(principal.subject)
        if found is None or found.tenant.name != principal.tenant.name or found.token_id != principal.token_id:
            raise UnauthorizedError("unknown_key", "the key does not count any more")
        return found

    def __len__(self) -> int:
        return len(self._by_hash)

    @classmethod
    def parse(cls, text: str, *, tenants: bool = False) -> "ApiKeys":
        """Read a keys file: a JSON object a line, `#` for comments. `tenants`: everybody but operators is of one.

        Raises:
            ConfigError: with the line, as path, and what is wrong there.
        """
        by_hash: dict[str, Principal] = {}
        subjects: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            place = f"line {number}"
            try:
                read = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError as error:
                raise ConfigError(place, f"{error} (a line is what `harbor key new` prints)") from None
            digest = read.hash.removeprefix(SCHEME)
            if not read.hash.startswith(SCHEME) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ConfigError(place, "hash: expected sha256: and 64 hexadecimal digits")
            check_patterns(place, read)
            if read.tenant and not tenants:
                raise ConfigError(place, "tenant: there are none, gateway.tenant_claim is not set")
            if read.tenant and not is_name(read.tenant):
                raise ConfigError(place, f"tenant: expected {NAME_TEXT}, got {read.tenant!r:.60}")
            if tenants and not read.tenant and not read.admin:
                raise ConfigError(
                    place, "tenant: required for a key without the admin grant, since gateway.tenant_claim is set"
                )
            if read.id in subjects or read.hash in by_hash:
                raise ConfigError(place, f"the key {read.id!r:.60} is there twice")
            subjects.add(read.id)
            grants = Grants(read.read, read.write, read.mutate, read.presence, read.admin)
            by_hash[read.hash] = Principal(read.id, grants, tenant=Tenant(read.tenant), token_id=read.hash)
        return cls(by_hash)


def check_patterns(place: str, grants: Grants) -> None:
    """Refuse grants with a pattern that cannot be a key.

    Raises:
        ConfigError: with `place` and the right as path.
    """
    for right, patterns in (("read", grants.read), ("write", grants.write)):
        for pattern in patterns:
            try:
                checked(pattern)
            except RequestError as error:
                raise ConfigError(f"{place}: {right}", error.message) from None


def hashed(key: str) -> str:
    """Return what a keys file has in place of a key."""
    return SCHEME + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def line(subject: str, key: str, grants: Grants, tenant: str = "") -> str:
    """Return the line of a keys file for a key."""
    of_tenant = {"tenant": tenant} if tenant else {}
    members = {"id": subject, "hash": hashed(key), **of_tenant, **msgspec.to_builtins(grants)}
    return msgspec.json.encode(members).decode()
