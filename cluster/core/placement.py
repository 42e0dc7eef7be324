"""Placement: which shard owns a key, which coordinator serves a shard, which ingestor reads a source.

Keys go to 1024 slots, slots to shards. Hashing keys to shards directly would move most keys whenever a shard is added; with slots a
change of the shard count moves whole slots, and rendezvous hashing moves only those that must.
"""

from collections.abc import Sequence
from hashlib import blake2b
from zlib import crc32

from msgspec import Struct

from cluster.core.query_key import CanonicalKey

SLOTS = 1024
"""Many enough to spread over dozens of shards, few enough to list in every message that carries a map."""


def slot(key: CanonicalKey) -> int:
    """Return the slot of a key."""
    return crc32(key.encode()) % SLOTS


class SlotMap(Struct, frozen=True, array_like=True):
    """Which shard owns each slot, how many shards there are, and how many coordinators serve them; a later map has a higher epoch."""

    epoch: int
    owners: tuple[int, ...]
    """Shard by slot."""
    shards: int = 1
    coordinators: int = 1

    def shard(self, key: CanonicalKey) -> int:
        """Return the shard that owns a key."""
        return self.owners[crc32(key.encode()) % SLOTS]

    def moves(self, later: "SlotMap") -> dict[tuple[int, int], frozenset[int]]:
        """Return the slots that have another owner in a later map, by (shard that has them, shard that gets them)."""
        found: dict[tuple[int, int], set[int]] = {}
        for number, (old, new) in enumerate(zip(self.owners, later.owners, strict=True)):
            if old != new:
                found.setdefault((old, new), set()).add(number)
        return {pair: frozenset(slots) for pair, slots in found.items()}


def assign_slots(shards: Sequence[int], epoch: int, coordinators: int = 1) -> SlotMap:
    """Spread the slots over shards by rendezvous hashing.

    Shares differ by chance, and more the fewer slots a shard has. The largest has, over its fair share: with 2 and 4 shards 4 %, with 8
    16 %, with 16 27 %, with 32 28 %. That is the price of a map which depends on nothing but the shards, so that adding one moves slots
    only to it and removing it moves them back.

    Raises:
        ValueError: there is no shard.
    """
    owners = tuple(max(shards, key=lambda shard: _weight(f"slot-{n}", f"shard-{shard}")) for n in range(SLOTS))
    return SlotMap(epoch, owners, len(shards), coordinators)


def rendezvous(name: str, nodes: Sequence[str]) -> str:
    """Return the node that `name` belongs to; adding a node moves names only to it.

    Raises:
        ValueError: there is no node.
    """
    return max(nodes, key=lambda node: _weight(name, node))


def unit(source: str, channel: str | None, *, is_spread: bool) -> str:
    """Return what is placed as one: a channel of a source whose channels are spread over ingestors, or else the source."""
    return f"{source}/{channel}" if is_spread and channel is not None else source


def coordinator_of(shard: int, coordinators: int) -> int:
    """Return the coordinator that serves a shard."""
    return shard % coordinators


def shard_at(address: str) -> int:
    """Return which shard has an address, as `shard-3`."""
    return int(address.partition("-")[2])


def _weight(name: str, node: str) -> bytes:
    return blake2b(f"{name}\0{node}".encode(), digest_size=8).digest()
