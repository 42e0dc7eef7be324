"""Clients for a running cluster: `HarborClient` for programs, `HttpClient` and `watch` as the command line uses them."""

from cluster.client.connection import ConnectionState
from cluster.client.harbor_client import Entry, HarborClient
from cluster.client.http import HttpClient
from cluster.client.mutation import Mutation
from cluster.client.presence import Member, Presence, PresenceChange
from cluster.client.subscription import Change
from cluster.client.watch import watch
from cluster.client.watches import Watch

__all__ = [
    "Change",
    "ConnectionState",
    "Entry",
    "HarborClient",
    "HttpClient",
    "Member",
    "Mutation",
    "Presence",
    "PresenceChange",
    "Watch",
    "watch",
]
