"""A client for a running cluster, as the command line uses it."""

from cluster.client.http import HttpClient
from cluster.client.watch import watch

__all__ = ["HttpClient", "watch"]
