"""The upstream of `tests.e2e.ledger_upstream` as a process that can be taken away, paced, and asked where it stands."""

import subprocess
import sys
from typing import Any

import httpx

from tests.live import eventually, free_port


class LedgerProcess:
    """It says nothing until `go`."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.rate = 0.0
        self.last = 0
        """Number of the last event, while it stands still."""
        self._process: subprocess.Popen[bytes] | None = None
        """None while it is away."""
        self.start()

    def start(self) -> None:
        """Begin where it stood."""
        arguments = [str(self._port), "0", "1", str(self.last)]
        self._process = subprocess.Popen([sys.executable, "-m", "tests.e2e.ledger_upstream", *arguments])
        eventually(lambda: self._post("/cut") == b"", "the upstream listens")

    def go(self, rate: float) -> None:
        """Say so many events a second from now on."""
        self.rate = rate
        self._post("/go", rate=rate)

    def stand(self) -> int:
        """Say nothing new. Returns the number of the last event."""
        answer = httpx.post(f"{self.url}/stop").raise_for_status().json()
        self.last = answer["last"]
        return self.last

    def kill(self) -> None:
        """Be away: nothing listens any more. What it had said it remembers."""
        if self._process is None:
            return
        self.stand()
        self._process.kill()
        self._process.wait()
        self._process = None

    def _post(self, path: str, **params: Any) -> bytes:
        return httpx.post(f"{self.url}{path}", params=params).raise_for_status().content
