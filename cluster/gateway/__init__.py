"""The gateway's servers: HTTP, server-sent events and WebSocket on aiohttp."""

from typing import TYPE_CHECKING

from cluster.config.model import GatewayConfig
from cluster.gateway.access import credentials
from cluster.gateway.browsers import Browsers
from cluster.gateway.connections import Connections
from cluster.gateway.error_response import error_response
from cluster.gateway.server import GatewayServer

if TYPE_CHECKING:
    from cluster.gateway.authority import ConfiguredAuthority

__all__ = ["Browsers", "Connections", "GatewayServer", "configured_authority", "credentials", "error_response"]


def configured_authority(gateway: GatewayConfig) -> "ConfiguredAuthority | None":
    """Return who says who bears which credentials; None: nobody is asked for any."""
    if gateway.auth.mode == "none":
        return None
    from cluster.gateway.authority import ConfiguredAuthority  # noqa: PLC0415 - its libraries take a third of a start

    return ConfiguredAuthority(gateway)
