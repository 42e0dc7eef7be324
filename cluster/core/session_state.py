"""One client's conversation: its subscriptions and what is ready to be written.

What must not live here: replicas and topics (`gateway_state`), sockets (`cluster.gateway`).
"""

from collections import deque

from cluster.core.grants import Principal
from cluster.core.presence_room import Attendance
from cluster.core.tenant import NOBODYS, Tenant
from cluster.core.topic import Subscription

SUBSCRIPTIONS = 128
"""Per session."""
COMMANDS = 256
"""Requests a client may have open. It gets an answer to each, so more are only good for exhausting the cluster."""
CONTROL = 256
"""Answers that wait to be written; while there are more the socket is not read."""
OUT_BYTES = 256 * 1024
"""Encoded and not yet taken; beyond it changes fold instead."""


class SessionState:
    """See the module. `server_sent`: the client reads an event stream instead of WebSocket frames."""

    __slots__ = (
        "attendance",
        "attention",
        "busy",
        "commands",
        "control",
        "id",
        "identity",
        "out",
        "out_bytes",
        "principal",
        "resume_token",
        "server_sent",
        "stalled_since",
        "subscriptions",
        "voided",
    )

    def __init__(
        self, session_id: str, *, server_sent: bool, principal: Principal | None, resume_token: str = ""
    ) -> None:
        self.id = session_id
        self.identity = session_id
        """As others know it: another than `id` once it has resumed an earlier session."""
        self.resume_token = resume_token
        self.attendance: Attendance | None = None
        """Its presence topics; None: it has been in none."""
        self.principal = principal
        """Whose it is; None: it has yet to say so."""
        self.server_sent = server_sent
        self.subscriptions: dict[bytes, Subscription] = {}
        """By the client's id of it."""
        self.control: deque[bytes] = deque()
        """Whole messages that go first: answers, errors, notices."""
        self.out: list[bytes] = []
        """This tick's changes, encoded, for subscriptions in step."""
        self.out_bytes = 0
        self.attention: dict[Subscription, None] = {}
        """Subscriptions with something to write that is not in `out`."""
        self.busy = False
        """The shell is writing what it took."""
        self.stalled_since: float | None = None
        self.commands = 0
        """Requests of this client that shards have not answered."""
        self.voided = False
        """An event stream has been reset: the id it holds must not be resumed from."""

    @property
    def tenant(self) -> Tenant:
        """Whose clients' words it is spoken to in."""
        return NOBODYS if self.principal is None else self.principal.tenant

    @property
    def in_step(self) -> bool:
        """Whether it can be handed this tick's changes: what it was handed before has been written."""
        return not self.busy and self.out_bytes < OUT_BYTES
