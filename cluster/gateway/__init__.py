"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from cluster.gateway.access import CHECK_S, KeysFile, credentials
from cluster.gateway.server import GatewayServer, error_response

__all__ = ["CHECK_S", "GatewayServer", "KeysFile", "credentials", "error_response"]
