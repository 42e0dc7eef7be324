"""A digest of what a store holds, the same whatever the order in which it came to hold it.

Two stores are to be compared without sending one to the other, and a copy with what it was made from. A hash over all rows in order would
do, but has to be made anew for every change. So the digest is the sum, modulo 2^128, of the BLAKE2b hashes (16 bytes, big-endian) of the
rows, each as `table`, a zero byte, and the row (`stored_rows`). A row that comes adds its hash, one that goes takes it off: keeping it
costs a hash (1 us) for each row that is put, and one for the row it replaces. A store that holds nothing has 0. What is stored once (epoch,
offset) is not in it: those who compare, compare them first.

It finds what goes wrong by chance or mistake. It is no proof against somebody who chooses rows to deceive: sums of hashes can be forged.

What must not live here: what a row is (`stored_rows`), who compares.
"""

from collections.abc import Iterable
from hashlib import blake2b

from cluster.core.stored_rows import Row, rows_of
from cluster.core.transaction import Stored

BYTES = 16
_MODULUS = 1 << (8 * BYTES)


class Digest:
    """A digest that is kept as rows come and go."""

    __slots__ = ("_sum",)

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._sum = 0
        for table, row in rows:
            self.add(table, row)

    def add(self, table: str, row: bytes) -> None:
        """A row has come."""
        self._sum = (self._sum + _hash(table, row)) % _MODULUS

    def remove(self, table: str, row: bytes) -> None:
        """A row that was there is gone."""
        self._sum = (self._sum - _hash(table, row)) % _MODULUS

    @property
    def hex(self) -> str:
        """The digest, as 32 hexadecimal digits."""
        return f"{self._sum:0{2 * BYTES}x}"


def digest_of(stored: Stored) -> str:
    """Return the digest of all that a store holds."""
    return Digest(rows_of(stored)).hex


def _hash(table: str, row: bytes) -> int:
    return int.from_bytes(blake2b(b"%b\0%b" % (table.encode(), row), digest_size=BYTES).digest(), "big")
