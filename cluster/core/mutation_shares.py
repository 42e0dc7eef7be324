"""How much mutations that wait take of a home, in all and for each account.

A client may delay what it begins for a day, or name a service that is gone; what waits is held in memory and in the store. So bytes are
bounded beside the number, and no account has all of either. What was acknowledged is never refused: what a home stored, or takes over
from another, counts and may be more than that.

Every mutation is weighed when it begins, changes and ends, so that nothing is summed up anew and each end gives back what was taken.

What must not live here: when a mutation waits (`mutation_queue`).
"""

from msgspec import Struct

from cluster.core.limits import KIB, MIB, refuse
from cluster.errors import ErrorCode

MAX_UNSETTLED = 100_000
"""Mutations of one home that wait."""
MAX_UNSETTLED_BYTES = 64 * MIB
"""Of their variables and operations: 640 bytes each. Copies are in the shards that show them and in the store."""
ACCOUNT_COUNT, ACCOUNT_BYTES = 10, 4
"""An account has at most a tenth of the number and a quarter of the bytes, so that no one or two fill a home."""
MAX_VARIABLES_BYTES = 256 * KIB
"""Of one mutation: a long document. What is longer is an entry of its own."""


class _Share(Struct):
    count: int = 0
    size: int = 0


class MutationShares:
    """See the module. Sizes are bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: dict[str, tuple[str, int]] = {}
        """(account, size), by mutation."""
        self._accounts: dict[str, _Share] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def require(self, account: str, size: int) -> None:
        """Refuse one more that there is no room for; without an account nobody has a share.

        Raises:
            LimitError: `TOO_MANY`.
        """
        if len(self) >= MAX_UNSETTLED:
            refuse(ErrorCode.TOO_MANY, "waiting_mutations", MAX_UNSETTLED, f"{MAX_UNSETTLED} mutations wait already")
        if self.size + size > MAX_UNSETTLED_BYTES:
            refuse(
                ErrorCode.TOO_MANY, "waiting_bytes", MAX_UNSETTLED_BYTES, f"mutations of {self.size} bytes wait already"
            )
        if not account:
            return
        share = self._accounts.get(account, _Share())
        count, most = MAX_UNSETTLED // ACCOUNT_COUNT, MAX_UNSETTLED_BYTES // ACCOUNT_BYTES
        if share.count >= count:
            refuse(
                ErrorCode.TOO_MANY, "waiting_mutations_per_account", count, f"{count} mutations of yours wait already"
            )
        if share.size + size > most:
            refuse(
                ErrorCode.TOO_MANY,
                "waiting_bytes_per_account",
                most,
                f"mutations of yours of {share.size} bytes wait already",
            )

    def take(self, mutation: str, account: str, size: int) -> None:
        """A mutation waits, or has another size now."""
        self.give_back(mutation)
        self._taken[mutation] = account, size
        self.size += size
        if account:
            share = self._accounts.setdefault(account, _Share())
            share.count += 1
            share.size += size

    def give_back(self, mutation: str) -> None:
        """A mutation waits here no longer."""
        account, size = self._taken.pop(mutation, ("", 0))
        self.size -= size
        share = self._accounts.get(account)
        if share is not None:
            share.count -= 1
            share.size -= size
            if not share.count:
                del self._accounts[account]
