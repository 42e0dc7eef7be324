"""Faults: our own connections are cut, our own clients stop reading, and actors' processes are stopped or killed where they are on this host.

Processes are those that `/v1/cluster` names, and only where the system says that such an actor is what runs under the number: pids of
another host, or another pod, may be anybody's here.

What must not live here: when there is one (`plan`), what it does to whom (`contract_oracle`).
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.errors import ErrorCode, HarborError, RequestError
from cluster.verify.plan import ACTORS, PAUSED_S, SLOW_S, Fault
from cluster.verify.watchers import Watcher

FLAPPED = 0.5
"""Share of the clients whose connections a flap cuts."""
_PROC = Path("/proc")
_TITLES = {
    "shards": "ShardActor",
    "gateways": "GatewayActor",
    "coordinators": "CoordinatorActor",
    "ingestors": "IngestionActor",
    "supervisor": "SupervisorActor",
}


def processes(described: Mapping[str, Any], kind: str) -> list[int]:
    """Return the processes of a kind of actor that are on this host."""
    rows = described[kind]
    rows = [rows] if isinstance(rows, dict) else rows
    return [row["pid"] for row in rows if "pid" in row and _is_ours(row["pid"], _TITLES[kind])]


def _is_ours(pid: int, title: str) -> bool:
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    return command.startswith(b"ray::" + title.encode())


def require_processes(described: Mapping[str, Any]) -> None:
    """Find out before the run whether there is anything to kill and to stop.

    Raises:
        RequestError: none of the actors is on this host.
    """
    if not any(processes(described, kind) for kind in ACTORS):
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            "--faults: kill and pause need the cluster's processes on this host, and none of them is: "
            "run it on one of its nodes, or with --faults flap,slow",
        )


def keeps_nothing(described: Mapping[str, Any]) -> bool:
    """Whether a shard that is killed loses what was written to it."""
    return any(row.get("store") in ("none", "unavailable") for row in described["shards"])


class Faults:
    """Makes faults. What it has stopped goes on at the end, whatever happens."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers
        self._stopped: set[int] = set()

    async def make(self, fault: Fault, described: Mapping[str, Any] | None) -> str | None:
        """Make a fault, and return when it is over; `pause` lasts `PAUSED_S`. Returns what was done; None: there is nobody to do it to.

        Raises:
            HarborError: `FORBIDDEN`, the process is another user's.
        """
        match fault.kind:
            case "flap":
                chosen = self._some(fault, FLAPPED)
                for watcher in chosen:
                    watcher.cut()
                return f"flap of {len(chosen)} clients"
            case "slow":
                (watcher,) = self._some(fault, 0.0)
                seconds = SLOW_S[0] + (SLOW_S[1] - SLOW_S[0]) * fault.choice
                await watcher.be_slow(seconds)
                return f"slow: client {watcher.wanted.number} did not read for {seconds:.1f} s"
        pids = [] if described is None else processes(described, fault.actors)
        if not pids:
            return None
        pid = pids[min(int(fault.choice * len(pids)), len(pids) - 1)]
        what = (
            f"{fault.kind} of one of the {fault.actors}"
            if fault.actors != "supervisor"
            else f"{fault.kind} of the supervisor"
        )
        if fault.kind == "kill":
            self._signal(pid, signal.SIGKILL)
            return f"{what} (pid {pid})"
        self._signal(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        try:
            await asyncio.sleep(PAUSED_S)
        finally:
            self.end(pid)
        return f"{what} (pid {pid})"

    def _some(self, fault: Fault, share: float) -> list[Watcher]:
        """Return a share of the clients, one at least, from the chosen one on."""
        count = max(1, round(share * len(self._watchers)))
        first = int(fault.choice * len(self._watchers))
        return [self._watchers[(first + n) % len(self._watchers)] for n in range(count)]

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            try:
                os.kill(pid, number)
            except PermissionError as error:
                raise HarborError(
                    ErrorCode.FORBIDDEN, f"process {pid} is another user's: run it as that user"
                ) from error

    def end(self, *pids: int) -> None:
        """Let what was stopped go on; none named: all of it."""
        for pid in pids or tuple(self._stopped):
            self._signal(pid, signal.SIGCONT)
            self._stopped.discard(pid)
