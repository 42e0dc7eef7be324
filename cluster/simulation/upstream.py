"""The upstream: a service and a stream in one, which keep the truth and tell of its changes.

It carries out a mutation once per idempotency key, sends events to the connections that have joined their channel, and can say them again
from an event on, as `repeats` tells, if it is to.

What must not live here: what machines make of it (`world` gives them what comes).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from cluster.core.declared_query import Response
from cluster.core.feed import Repeats
from cluster.core.ingestion_state import AskMissed
from cluster.core.mutation_queue import StartMutation
from cluster.core.rule import Envelope
from cluster.core.shard_state import StartFetch
from cluster.errors import UpstreamError
from cluster.simulation.network import Network
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline

UPSTREAM = "upstream"
"""Its name on the network."""
UNREACHABLE = UpstreamError("no route to it")


@dataclass(slots=True)
class Connection:
    """An ingestor's."""

    joined: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    """Channels whose events are sent: those joined, and where the upstream is deaf to leaving, those that were."""
    is_wanted: bool = False
    """The ingestor has begun to read."""
    is_open: bool = False
    number: int = 0
    """Of the connection: what was sent on an earlier one does not arrive."""


class Host(Protocol):
    """What the upstream needs of its world."""

    processes: dict[str, Process]

    def run_effects(self, process: Process, effects: Any) -> None:
        """Run what a machine wants."""
        ...


class Upstream:
    """See the module."""

    def __init__(
        self,
        host: Host,
        timeline: Timeline,
        network: Network,
        source: str,
        *,
        repeats: Repeats,
        asks: bool,
        can_leave: bool,
    ) -> None:
        """`repeats`, `asks`: as `SourceTraits` has them; `can_leave`: it heeds it when a channel is left."""
        self._host = host
        self._timeline = timeline
        self._network = network
        self._source = source
        self._repeats = repeats
        self._asks = asks
        self._can_leave = can_leave
        self.truth: dict[str, Any] = {}
        self.connections: dict[str, Connection] = {}
        """By ingestor."""
        self.number = 0
        self.fetches = 0
        self.log: list[tuple[int, str, str, Any]] = []
        """(id, channel, event, data)."""
        self.carried_out: Counter[str] = Counter()
        """How often, by idempotency key: once for each that is known."""

    @property
    def joined(self) -> set[str]:
        """Return what anybody has joined."""
        return {channel for connection in self.connections.values() for channel in connection.joined}

    @property
    def connected(self) -> bool:
        """Whether everybody who wants to is connected."""
        return all(each.is_open for each in self.connections.values() if each.is_wanted)

    # --- connections ---------------------------------------------------------------------------------------------

    def connection(self, name: str) -> Connection:
        """Return an ingestor's connection."""
        return self.connections.setdefault(name, Connection())

    def wanted(self, process: Process) -> None:
        """An ingestor wants to be connected."""
        self.connection(process.name).is_wanted = True
        process.later(self._network.delay(), lambda: self._open(process))

    def ended(self, name: str) -> None:
        """An ingestor's connection is gone for good."""
        if name in self.connections:
            self.connections[name] = Connection(number=self.connections[name].number + 1)

    def broken(self, process: Process) -> None:
        """An ingestor breaks its connection off, to open another."""
        connection = self.connection(process.name)
        connection.is_open = False
        connection.number += 1
        process.later(self._network.delay(), lambda: self._open(process))

    def drop(self, for_ms: float) -> None:
        """Cut all connections; what is emitted meanwhile is not heard."""
        self._timeline.note("source cut")
        for name, connection in self.connections.items():
            connection.is_open = False
            connection.number += 1
            process = self._host.processes.get(name)
            if process is not None:
                process.do(lambda machine=process.machine: machine.closed(self._source))  # type: ignore[misc]
        self._timeline.at(for_ms, self.connect)

    def connect(self) -> None:
        """Connect every ingestor that wants to be."""
        for name in list(self.connections):
            process = self._host.processes.get(name)
            if process is not None:
                process.do(lambda process=process: self._open(process))  # type: ignore[misc]

    def _open(self, process: Process) -> None:
        name, machine, connection = process.name, process.machine, self.connection(process.name)
        if connection.is_open or not connection.is_wanted:
            return
        connection.is_open = True
        connection.sent = set(connection.joined)
        self._timeline.note(f"{name} connected")
        since = machine.resume_id(self._source)
        channels = sorted(connection.joined)
        resumed = {channel: machine.resume_id(self._source, channel) for channel in channels}
        self._host.run_effects(process, machine.opened(self._source, process.now_ms()))
        if self._repeats is Repeats.SOURCE and since is not None and not self._asks:
            self._say_again(process, lambda number, channel: number > since and channel in connection.joined)
        if self._repeats is Repeats.CHANNEL:
            for channel in channels:
                self._repeat(process, channel, resumed[channel])

    def join(self, process: Process, channel: str) -> None:
        """An ingestor joins a channel."""
        connection = self.connection(process.name)
        connection.joined.add(channel)
        connection.sent.add(channel)
        self._timeline.note(f"{process.name} joins {channel}")
        if connection.is_open and self._repeats is Repeats.CHANNEL:
            self._repeat(process, channel)

    def leave(self, process: Process, channel: str) -> None:
        """An ingestor leaves a channel."""
        connection = self.connection(process.name)
        connection.joined.discard(channel)
        if self._can_leave:
            connection.sent.discard(channel)
        self._timeline.note(f"{process.name} leaves {channel}")

    # --- events --------------------------------------------------------------------------------------------------

    def emit(self, channel: str, event: str, data: Any, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the truth and say so on a channel, to the connections that have joined it."""
        change(self.truth)
        self.number += 1
        self._timeline.note(f"event {self.number} {event} {data}")
        self.log.append((self.number, channel, event, data))
        for name, connection in self.connections.items():
            process = self._host.processes.get(name)
            if process is not None and connection.is_open and channel in connection.sent:
                self._say(process, self.number, channel, event, data)

    def _say(self, process: Process, number: int, channel: str, event: str, data: Any) -> None:
        frame = orjson.dumps({"event": event, "channel": channel, "data": data, "id": number})
        connection = self.connections[process.name].number

        def arrive() -> None:
            known = self.connections.get(process.name)
            if known is not None and known.number == connection:
                process.machine.receive(self._source, [frame], process.now_ms())
                self._host.run_effects(process, ())

        process.later(1.0, arrive)  # one connection: in order

    def _repeat(self, process: Process, channel: str, since: Any = None) -> None:
        """A channel is joined: say what came after the event that the ingestor names."""
        since = since if since is not None else process.machine.resume_id(self._source, channel)
        if since is not None:
            self._say_again(process, lambda number, on: on == channel and number > since)

    def _say_again(self, process: Process, wanted: Callable[[int, str], bool]) -> None:
        for number, channel, event, data in self.log:
            if wanted(number, channel):
                self._say(process, number, channel, event, data)

    def ask_missed(self, process: Process, asked: AskMissed) -> None:
        """An ingestor asks for the events after one."""

        def hear(found: list[Any]) -> None:
            self._host.run_effects(process, process.machine.missed(asked, found, process.now_ms()))

        def serve() -> None:
            found = [
                Envelope(event, orjson.dumps(data), channel, number)
                for number, channel, event, data in self.log
                if number > int(asked.since)
            ]
            process.later(self._network.delay() * 3, lambda: hear(found))

        self._timeline.at(self._network.delay() * 3, serve)

    # --- requests ------------------------------------------------------------------------------------------------

    def fetch(self, process: Process, fetch: StartFetch) -> None:
        """A shard asks for an entry."""
        self.fetches += 1

        def serve() -> Response | UpstreamError:
            return Response(orjson.dumps(self.truth.get(fetch.key, {"missing": True})))

        def done(result: Response | UpstreamError) -> None:
            self._host.run_effects(process, process.machine.fetched(fetch, result, process.now_ms()))

        self._request(process, serve, done)

    def mutate(self, process: Process, call: StartMutation) -> None:
        """A shard sends a mutation's request."""

        def serve() -> Response | UpstreamError:
            if not self.carried_out[call.mutation]:
                self.carried_out[call.mutation] = 1
                self._timeline.note(f"carried out {call.mutation}")
            return Response(b'{"done":true}')

        def done(result: Response | UpstreamError) -> None:
            self._host.run_effects(process, process.machine.mutated(call, result, process.now_ms()))

        self._request(process, serve, done)

    def _request(
        self,
        process: Process,
        serve: Callable[[], Response | UpstreamError],
        done: Callable[[Response | UpstreamError], None],
    ) -> None:
        """Carry a request and its response; either may get lost, or find the upstream unlucky."""
        network, choose = self._network, self._timeline.random
        fate = choose.random() / network.faults.lose if network.faults.lose else 2.0

        def arrive() -> None:
            if network.heals_ms(process.name, UPSTREAM):
                process.later(network.faults.timeout_ms, lambda: done(UNREACHABLE))
                return
            result = serve() if fate > 0.5 else UpstreamError("unlucky", status=503)
            if fate < 1.0 or network.heals_ms(UPSTREAM, process.name):
                result = UpstreamError("unlucky", status=503) if fate < 0.5 else UNREACHABLE
            process.later(network.delay() * 5, lambda: done(result))

        self._timeline.at(network.delay() * 5, arrive)
