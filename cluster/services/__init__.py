"""Upstream HTTP services: one client each, JSON in bytes out."""

from cluster.services.service_client import MAX_BODY_BYTES, Request, ServiceClient

__all__ = ["MAX_BODY_BYTES", "Request", "ServiceClient"]
