"""Where shards keep what must survive them: the stores behind `core.transaction.Store`."""

from cluster.storage.lmdb_store import LmdbStore, open_store
from cluster.storage.memory_store import MemoryStore

__all__ = ["LmdbStore", "MemoryStore", "open_store"]
