"""Upstream streams: connections that hand frames and events to a listener, and come back by themselves.

The kinds (`http_lines`, `sse`, `websocket`) are loaded by name: their libraries take a good part of an ingestor's start.
"""

from cluster.sources.source import Source, SourceListener, SourceState

__all__ = ["Source", "SourceListener", "SourceState"]
