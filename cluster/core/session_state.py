"""One client's conversation: its subscriptions and what is ready to be written.

What must not live here: replicas and topics (`gateway_state`), sockets (`cluster.gateway`).
"""

from cluster.core.degradation import Degradation, Step
from cluster.core.grants import Principal
from cluster.core.position import Scope
from cluster.core.presence_room import Attendance
from cluster.core.rate import RateLimit
from cluster.core.tenant import NOBODYS, Tenant
from cluster.core.topic import Subscription

COMMANDS = 256
"""Requests a client may have open. It gets an answer to each, so more are only good for exhausting the cluster."""
CONTROL = 256
"""Answers that wait to be written; while there are more the socket is not read."""
OUT_BYTES = 256 * 1024
"""Encoded and not yet taken; beyond it changes fold instead."""
OUTBOX_BYTES = 1024 * 1024
"""What may wait for one client, by default: 5,000 of them that stop reading at once take no more than 5 GiB."""


class SessionState:
    """See the module. `server_sent`: the client reads an event stream instead of WebSocket frames."""

    __slots__ = (
        "address",
        "attendance",
        "attention",
        "busy",
        "commands",
        "control",
        "control_bytes",
        "degradation",
        "due_ms",
        "frame_bytes",
        "id",
        "identity",
        "out",
        "out_bytes",
        "pace",
        "principal",
        "scope",
        "secret",
        "server_sent",
        "subscriptions",
        "told",
        "voided",
        "writes",
    )

    def __init__(
        self,
        session_id: str,
        *,
        server_sent: bool,
        principal: Principal | None,
        secret: str = "",
        scope: Scope = b"",
        address: str = "",
    ) -> None:
        self.id = session_id
        self.address = address
        """What it is counted by; "": by none."""
        self.pace: RateLimit | None = None
        """Of its messages; None: it has sent none."""
        self.identity = session_id
        """As others know it: another than `id` once it has resumed an earlier session."""
        self.secret = secret
        """By which it can be resumed, signed: its identity is the hash of it."""
        self.scope = scope
        """Of an event stream's tokens, which speak for all its subscriptions; of a socket empty."""
        self.attendance: Attendance | None = None
        """Its presence topics; None: it has been in none."""
        self.principal = principal
        """Whose it is; None: it has yet to say so."""
        self.server_sent = server_sent
        self.subscriptions: dict[bytes, Subscription] = {}
        """By the client's id of it."""
        self.control: list[bytes] = []
        """Whole messages that go first: answers, errors, notices."""
        self.control_bytes = 0
        self.out: list[bytes] = []
        """This tick's changes, encoded, for subscriptions in step."""
        self.out_bytes = 0
        self.attention: dict[Subscription, None] = {}
        """Subscriptions with something to write that is not in `out`."""
        self.busy = False
        """The shell is writing what it took."""
        self.frame_bytes = 0
        """Of that."""
        self.writes = 0
        """Frames it has taken."""
        self.degradation: Degradation | None = None
        """Its socket has held something up, and it is not over that yet."""
        self.told = Step.IN_STEP
        """The step of it that the client was told last."""
        self.due_ms = 0.0
        """Before this it gets no changes, as it is degraded."""
        self.commands = 0
        """Requests of this client that shards have not answered."""
        self.voided = False
        """An event stream has been reset: the id it holds must not be resumed from."""

    @property
    def tenant(self) -> Tenant:
        """Whose clients' words it is spoken to in."""
        return NOBODYS if self.principal is None else self.principal.tenant

    @property
    def owner(self) -> str:
        """Whom its resume token is given to."""
        assert self.principal is not None
        return self.principal.account

    @property
    def in_step(self) -> bool:
        """Whether it can be handed this tick's changes: what it was handed before has been written."""
        return not self.busy and self.out_bytes < OUT_BYTES and self.step is Step.IN_STEP

    @property
    def step(self) -> Step:
        """How far it is degraded."""
        return Step.IN_STEP if self.degradation is None else self.degradation.step

    def waiting_bytes(self) -> int:
        """Return what waits for it, and what its socket has not taken yet."""
        folded = sum(subscription.outbox.bytes for subscription in self.subscriptions.values())
        return self.control_bytes + self.out_bytes + self.frame_bytes + folded
