"""Harbor Cluster: a distributed realtime query cache on Ray."""

__version__ = "0.1.0"
