"""Where shards keep what must survive them: the stores behind `core.transaction.Store`."""

from cluster.storage.lmdb_store import LmdbStore
from cluster.storage.memory_store import MemoryStore
from cluster.storage.shard_stores import ShardStores, Taken

__all__ = ["LmdbStore", "MemoryStore", "ShardStores", "Taken"]
