"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from cluster.gateway.access import CHECK_S, KeysFile, credentials
from cluster.gateway.browsers import Browsers
from cluster.gateway.error_response import error_response
from cluster.gateway.server import GatewayServer

__all__ = ["CHECK_S", "Browsers", "GatewayServer", "KeysFile", "credentials", "error_response"]
