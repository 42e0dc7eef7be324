"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from cluster.gateway.server import GatewayServer, error_response

__all__ = ["GatewayServer", "error_response"]
