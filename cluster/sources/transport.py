"""Which library holds a WebSocket source's connections.

`websockets` is the reference: it lacks nothing. `fast` is picows, where that is installed. `auto` is `fast` where that can be, and turns
to the reference for good as soon as an upstream needs what `fast` lacks (`picows_connection` lists it), so that no stream is stuck on it.

What must not live here: connections themselves.
"""

import importlib
from types import ModuleType
from typing import Literal, cast

from cluster.sources import websockets_connection
from cluster.sources.connection import Connection, Dial, OutdoneError
from cluster.sources.source import ConnectionFailedError

Name = Literal["fast", "websockets"]
AUTO, FAST, REFERENCE = "auto", "fast", "websockets"


class Transport:
    """The choice for one source."""

    def __init__(self, wanted: str, url: str) -> None:
        """Choose.

        Args:
            wanted: `auto`, `fast` or `websockets`. `fast` is kept to even where it cannot work; connecting says why.
            url: `ws://` or `wss://`.
        """
        self._may_change = wanted == AUTO
        self._fast: ModuleType | None = None
        self._obstacle: str | None = None
        if wanted != REFERENCE:
            try:
                self._fast = importlib.import_module("cluster.sources.picows_connection")
                self._obstacle = self._fast.lacks(url)
            except ImportError as exc:
                self._obstacle = f"picows cannot be imported: {exc}"
        self.name: Name = "websockets" if wanted == REFERENCE or (self._may_change and self._obstacle) else "fast"
        """In use: `fast` or `websockets`."""

    async def connect(self, dial: Dial) -> Connection:
        """Connect and shake hands.

        Raises:
            ConnectionFailedError: that did not work, for the reason it names.
        """
        if self.name == REFERENCE:
            return await websockets_connection.connect(dial)
        if self._obstacle is not None or self._fast is None:
            raise ConnectionFailedError(f"the fast transport cannot be used: {self._obstacle}")
        try:
            return cast(Connection, await self._fast.connect(dial))
        except OutdoneError:
            self.outdone()
            raise

    def outdone(self) -> None:
        """A connection ended for what the transport lacks; use the reference, where that is left to us."""
        if self._may_change:
            self.name = "websockets"
