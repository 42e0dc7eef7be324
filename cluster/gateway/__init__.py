"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from cluster.gateway.access import credentials
from cluster.gateway.authority import ConfiguredAuthority
from cluster.gateway.server import GatewayServer, error_response

__all__ = ["ConfiguredAuthority", "GatewayServer", "credentials", "error_response"]
