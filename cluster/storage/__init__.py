"""Where shards keep what must survive them: the stores behind `core.transaction.Store`."""

from cluster.storage.lmdb_store import LmdbStore, directory_of, stores_of
from cluster.storage.memory_store import MemoryStore
from cluster.storage.shard_stores import ShardStores, Taken
from cluster.storage.store_copy import StoreCopy

__all__ = ["LmdbStore", "MemoryStore", "ShardStores", "StoreCopy", "Taken", "directory_of", "stores_of"]
