"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from cluster.gateway.access import credentials
from cluster.gateway.authority import ConfiguredAuthority
from cluster.gateway.browsers import Browsers
from cluster.gateway.error_response import error_response
from cluster.gateway.server import GatewayServer

__all__ = ["Browsers", "ConfiguredAuthority", "GatewayServer", "credentials", "error_response"]
