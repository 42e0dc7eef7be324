"""Who bears which credentials, as `gateway.auth` says: API keys of a file, or tokens; less those of the list of what was revoked.

Files are read again when they change. What cannot be used leaves things as they are, with the reason said.

What must not live here: where requests carry credentials (`access`), what somebody may do (`core.grants`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from cluster.config.model import AuthConfig, GatewayConfig
from cluster.core.claims import ClaimRules, principal_of
from cluster.core.grants import ApiKeys, Principal
from cluster.core.revocation import Revocations
from cluster.errors import UnauthorizedError, UnavailableError
from cluster.gateway.access import CHECK_S, WatchedFile
from cluster.gateway.jwks import Jwks
from cluster.gateway.web_token import Keys, OneKey, claims_of, header_of

REMEMBERED = 10_000
"""Tokens whose signature was checked; beyond it they are checked anew. A check costs some 50 us, a look some 1."""


class ConfiguredAuthority:
    """See the module. A `core.grants.Authority`."""

    def __init__(self, gateway: GatewayConfig) -> None:
        auth = self._auth = gateway.auth
        is_tenanted = bool(gateway.tenant_claim)
        self._rules = ClaimRules(auth.audience, auth.issuer, auth.claim, gateway.tenant_claim)
        self._keys_file = (
            WatchedFile(auth.keys_file, lambda text: ApiKeys.parse(text, tenants=is_tenanted))
            if auth.mode == "api_keys"
            else None
        )
        self._revoked_file = WatchedFile(auth.revoked_file, Revocations.parse) if auth.revoked_file else None
        self._keys = ApiKeys({})
        self._revoked: Revocations | None = None if self._revoked_file else Revocations()
        self.jwks = Jwks(auth.jwks_url, auth.algorithms) if auth.jwks_url else None
        self._one_key = _one_key(auth)
        self._checked: dict[str, Principal] = {}
        self._checked_with = 0
        self.refusals: Counter[str] = Counter()
        """Of credentials, by why."""

    # --- as it is now --------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Read the files that have changed. Returns whether somebody may be other than before."""
        changed = False
        if self._keys_file is not None and (keys := self._keys_file.look()) is not None:
            self._keys, changed = keys, True
        if self._revoked_file is not None and (revoked := self._revoked_file.look()) is not None:
            self._revoked, changed = revoked, True
        return changed

    @property
    def faults(self) -> list[str]:
        """What cannot be used as it is now."""
        files = [each.reason for each in (self._keys_file, self._revoked_file) if each is not None]
        return [reason for reason in (*files, self.jwks.reason if self.jwks is not None else "") if reason]

    @property
    def not_ready(self) -> str:
        """Why nobody can be recognised; empty: somebody can."""
        reasons = "; ".join(self.faults)
        if self._revoked is None:
            return f"no list of what was revoked: {reasons or 'it is not read yet'}"
        if self._keys_file is not None and not self._keys:
            return f"no keys: {reasons or 'the file is empty'}"
        if self.jwks is not None and self.jwks.keys is None:
            return f"no keys: {reasons}"
        return ""

    @property
    def is_ready(self) -> bool:
        """Whether somebody can be recognised; else it is no fault of the credentials that they are not."""
        return (
            self._revoked is not None
            and (self._keys_file is None or len(self._keys) > 0)
            and (self.jwks is None or self.jwks.keys is not None)
        )

    async def keep(self, changed: Callable[[bool], None]) -> None:
        """Look at the files and keep the keys current, for ever; `changed` is told at each look whether something was other."""
        async with asyncio.TaskGroup() as group:
            if self.jwks is not None:
                group.create_task(self.jwks.run())
            while True:
                changed(self.look())
                await asyncio.sleep(CHECK_S)

    # --- credentials ---------------------------------------------------------------------------------------------

    async def prepare(self, credentials: str) -> None:
        """Fetch what is needed to recognise somebody, where that is not here."""
        if self.jwks is not None and credentials not in self._checked:
            try:
                _, kid = header_of(credentials, self._auth.algorithms)
            except UnauthorizedError:
                return  # `recognise` says so
            await self.jwks.prepare(kid)

    def recognise(self, credentials: str, wall_ms: float) -> Principal:
        """Return who bears credentials.

        Raises:
            UnauthorizedError: nobody does, and why.
            UnavailableError: that cannot be said at the moment.
        """
        if not self.is_ready:
            raise UnavailableError("credentials cannot be checked at the moment")
        try:
            if self._auth.mode == "api_keys":
                found = self._keys.recognise(credentials, wall_ms)
            else:
                found = self._by_token(credentials, wall_ms)
            return self.current(found, wall_ms)
        except UnauthorizedError as error:
            self.refusals[error.why] += 1
            raise

    def current(self, principal: Principal, wall_ms: float) -> Principal:
        """Return somebody who was recognised before as they are now.

        Raises:
            UnauthorizedError: what they were recognised by was taken away, revoked, or has expired.
        """
        if self._auth.mode == "api_keys":
            principal = self._keys.current(principal, wall_ms)
        if principal.expires_ms is not None and principal.expires_ms <= wall_ms:
            raise UnauthorizedError("expired", "the token has expired")
        if self._revoked is not None:
            self._revoked.require(principal)
        return principal

    def _by_token(self, token: str, wall_ms: float) -> Principal:
        keys: Keys | None = self._one_key
        if self.jwks is not None:
            keys = self.jwks.keys
            if self._checked_with != self.jwks.number:  # what was signed with a key that is gone does not count
                self._checked_with = self.jwks.number
                self._checked.clear()
        known = self._checked.get(token)
        if known is not None:
            return known
        assert keys is not None, "`is_ready`"
        claims = claims_of(token, keys, self._auth.algorithms)
        principal = principal_of(claims, self._rules, wall_ms)
        if len(self._checked) >= REMEMBERED:
            self._checked.clear()
        self._checked[token] = principal
        return principal


def _one_key(auth: AuthConfig) -> OneKey | None:
    key = auth.secret or auth.public_key
    return OneKey(key, auth.algorithms) if key else None
