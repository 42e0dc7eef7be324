"""Upstream streams: connections that hand frames and events to a listener, and come back by themselves."""

from cluster.sources.http_lines import HttpLinesSource
from cluster.sources.source import Source, SourceListener, SourceState
from cluster.sources.sse import SseSource
from cluster.sources.websocket import WebSocketSource

__all__ = ["HttpLinesSource", "Source", "SourceListener", "SourceState", "SseSource", "WebSocketSource"]
