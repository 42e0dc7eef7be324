"""Where shards keep what must survive them: the stores behind `core.transaction.Store`."""

from cluster.storage.lmdb_store import LmdbStore, directory_of, open_store, stores_of
from cluster.storage.memory_store import MemoryStore
from cluster.storage.store_copy import StoreCopy

__all__ = ["LmdbStore", "MemoryStore", "StoreCopy", "directory_of", "open_store", "stores_of"]
