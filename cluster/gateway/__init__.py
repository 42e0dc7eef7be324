"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from cluster.gateway.server import GatewayServer

__all__ = ["GatewayServer"]
