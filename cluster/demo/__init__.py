"""The sample upstream: a project tracker behind REST, WebSocket and server-sent events, with switches for failures."""
