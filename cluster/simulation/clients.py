"""Clients: sessions at gateways, which they leave and come back to, at any of them, with what they have subscribed to.

What must not live here: what a client insists on (`view`), writes and their acknowledgements (`writer`).
"""

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from cluster.core.client_message import client_frame
from cluster.core.gateway_state import GatewayState
from cluster.core.messages import Payload
from cluster.core.session_state import SessionState
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline
from cluster.simulation.view import View


class Client:
    """Subscriptions, views, a socket that may be slow or gone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lives = 0
        self.gateway: Process | None = None
        self.session: SessionState | None = None
        self.wanted: dict[int, dict[str, Any]] = {}
        """Subscribe messages, by id."""
        self.views: dict[int, View] = {}
        self.taking = False
        self.slow_ms = 1.0


class Host(Protocol):
    """What clients need of their world."""

    processes: dict[str, Process]

    def run_effects(self, process: Process, effects: Any) -> None:
        """Run what a machine wants."""
        ...


class Clients:
    """See the module."""

    def __init__(self, host: Host, timeline: Timeline, gateways: list[str]) -> None:
        self._host = host
        self._timeline = timeline
        self._gateways = gateways
        self.by_name: dict[str, Client] = {}
        self._tickets: dict[tuple[Process, int], Callable[[list[Payload] | None], None]] = {}
        self._ticket = 0
        self.saw: Callable[[str, int, Any], None] | None = None
        """Told of every version that anybody sees: key, version, data."""

    def gateway(self) -> Process | None:
        """Return a gateway that can be reached, if there is one."""
        living = [name for name in self._gateways if name in self._host.processes]
        if not living:
            return None
        return self._host.processes[living[0] if len(living) == 1 else self._timeline.random.choice(living)]

    def enter(self, name: str) -> Client:
        """Connect a client, for the first time or again; its subscriptions continue from their tokens."""
        client = self.by_name.setdefault(name, Client(name))
        if client.session is not None:
            return client
        gateway = self.gateway()
        if gateway is None:
            self._timeline.at(50.0, lambda: self._return(name))
            return client
        client.lives += 1
        client.gateway = gateway
        life = client.lives
        gateway.do(lambda: self._greet(client, gateway, life))
        return client

    def _return(self, name: str) -> None:
        self.enter(name)

    def _greet(self, client: Client, gateway: Process, life: int) -> None:
        """A gateway takes a client's connection, unless the client has given up waiting."""
        if client.lives != life or client.gateway is not gateway:
            return
        session = client.session = gateway.machine.open_session(f"{client.name}/{client.lives}")
        self._timeline.note(f"{client.name} connects to {gateway.name} as {session.id}")
        for sub, message in client.wanted.items():
            view = client.views[sub]
            token = view.token if view.complete else None
            if token is None:
                client.views[sub] = View()
            self.say(client, {**message, **({"since": token} if token else {})})

    def _new_id(self) -> str:
        return f"{self._timeline.random.getrandbits(128):032x}"

    def subscribe(self, client: Client, sub: int, **arguments: Any) -> None:
        """Subscribe, now and after each reconnect."""
        client.wanted[sub] = {"type": "subscribe", "id": sub, **arguments}
        client.views[sub] = View()
        self.say(client, client.wanted[sub])

    def say(self, client: Client, message: dict[str, Any]) -> None:
        """Send a client's message."""
        gateway, session = client.gateway, client.session
        if gateway is None or session is None:
            return
        frame = orjson.dumps(message)

        def hear() -> None:
            machine: GatewayState = gateway.machine
            if session.id in machine.sessions:
                effects = client_frame(
                    machine, session, frame, lambda _: 0, gateway.now_ms(), self._new_id, lambda _: None
                )
                self._host.run_effects(gateway, effects)

        gateway.do(hear)

    def disconnect(self, client: Client) -> None:
        """Cut a client's connection; what was on its way is lost."""
        gateway = client.gateway
        if gateway is None:
            return
        self._timeline.note(f"{client.name} disconnects")
        session = client.session
        self._hang_up(client, self._timeline.random.uniform(1, 500))
        if session is not None:
            gateway.do(lambda: self._close(gateway, session.id))

    def _close(self, gateway: Process, session_id: str) -> None:
        self._host.run_effects(gateway, gateway.machine.close_session(session_id, gateway.now_ms()))

    def lost(self, gateway: Process) -> None:
        """A gateway is gone: its clients look for another."""
        for client in self.by_name.values():
            if client.gateway is gateway:
                self._hang_up(client, 100.0)
        for waiting in [each for each in self._tickets if each[0] is gateway]:
            answered = self._tickets.pop(waiting)
            self._timeline.at(1.0, lambda answered=answered: answered(None))  # type: ignore[misc]

    # --- one-shot requests ---------------------------------------------------------------------------------------

    def request(
        self,
        ask: Callable[[Process, int], Any],
        answered: Callable[[list[Payload] | None], None],
    ) -> None:
        """Ask a gateway, as by HTTP: `ask` in it, with a ticket, then `answered`; with None where it is gone before that."""
        gateway = self.gateway()
        if gateway is None:
            self._timeline.at(50.0, lambda: answered(None))
            return
        self._ticket += 1
        ticket = self._ticket
        self._tickets[gateway, ticket] = answered

        def begin() -> None:
            if (gateway, ticket) in self._tickets:
                self._host.run_effects(gateway, ask(gateway, ticket))

        gateway.later(1.0, begin)

    def responded(self, gateway: Process, ticket: int, payloads: list[Payload]) -> None:
        """A gateway answers a request."""
        answered = self._tickets.pop((gateway, ticket), None)
        if answered is not None:
            self._timeline.at(1.0, lambda: answered(payloads))

    def _hang_up(self, client: Client, back_ms: float) -> None:
        client.session = client.gateway = None
        client.taking = False
        self._timeline.at(back_ms, lambda: self._return(client.name))

    def deliver(self, gateway: Process, session_id: str) -> None:
        """A session has output."""
        client = self.by_name.get(session_id.partition("/")[0])
        if client is None or client.session is None or client.session.id != session_id or client.taking:
            return
        client.taking = True
        gateway.later(0.0, lambda: self._take(client, gateway, session_id))

    def _take(self, client: Client, gateway: Process, session_id: str) -> None:
        session = client.session
        if session is None or session.id != session_id:
            return
        frame, effects = gateway.machine.take(session, gateway.now_ms())
        self._host.run_effects(gateway, effects)
        if frame is None:
            client.taking = False
            return

        def received() -> None:
            if client.session is not session:
                return
            self._timeline.note(f"{client.name} <- {frame.decode()}")
            for message in orjson.loads(frame):
                if "sub" in message:
                    view = client.views[message["sub"]]
                    view.take(message)
                    self._saw(view, message)
            gateway.do(lambda: self._written(client, gateway, session))

        self._timeline.at(self._timeline.random.expovariate(1.0 / client.slow_ms), received)

    def _saw(self, view: View, message: dict[str, Any]) -> None:
        if self.saw is not None and message["type"] in ("snapshot", "change") and message["version"]:
            key = orjson.dumps(message["key"]).decode()
            self.saw(key, message["version"], view.entries[key][1])

    def _written(self, client: Client, gateway: Process, session: SessionState) -> None:
        if client.session is session and session.id in gateway.machine.sessions:
            gateway.machine.written(session, gateway.now_ms())
            self._take(client, gateway, session.id)
