"""What fuzzers aim at: a session of a gateway before real shard machines, without sockets.

Whatever is said, what follows is messages that a client can read, or the end of the connection; never an exception.
"""

from cluster.core import template
from cluster.core.declared_query import DeclaredQuery
from cluster.core.grants import ANYBODY, ApiKeys, Grants, line
from cluster.core.mutation import DeclaredMutation
from cluster.core.position import SHIFT, scope_of
from cluster.core.presence_room import Pattern
from cluster.core.presence_session import identity_of
from cluster.errors import ErrorCode
from tests.in_process import TOKENS, Client, InProcess

QUERIES = [DeclaredQuery(key=template.parse(["q", "{id}"]), service="api", path=template.parse("/q/{id}"), retry=0)]
MUTATIONS = {
    "rename": DeclaredMutation("rename", "api", "PUT", template.parse("/{id}"), scope=template.parse("n:{id}"))
}
PATTERNS = (Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),)
CODES = frozenset(ErrorCode)
GRANTS = {
    "ann": Grants(read=[[]], write=[[]], mutate=["*"], presence=["*"]),
    "bob": Grants(read=[["a"]], write=[], mutate=[], presence=[]),
}
KEYS = {subject: f"hk_{subject}" for subject in GRANTS}
SUBJECTS = [ANYBODY.account, *GRANTS]
FIRST = 5 << SHIFT
POSITIONS = [
    TOKENS.position(scope_of([(key, is_prefix)]), positions).decode()
    for key, is_prefix in (('["a"]', False), ("[]", True))
    for positions in ([], [(0, (5, FIRST)), (1, (5, FIRST + 3))], [(1, (2**40, 1))])
]
"""Of `key: ["a"]` and of `prefix: []`, from the beginning, from what a shard may have, and from what nobody has."""
RESUMES = [TOKENS.session(f"secret {n}", subject) for n in range(3) for subject in SUBJECTS]
"""Of the first sessions of a target."""


class Target:
    """See the module."""

    def __init__(self, *, has_keys: bool = False) -> None:
        """`has_keys`: sessions have to say whose they are (`KEYS`)."""
        self.world = InProcess(shards=2, queries=QUERIES, mutations=MUTATIONS, patterns=PATTERNS)
        self.has_keys = has_keys
        if has_keys:
            lines = (line(subject, key, GRANTS[subject]) for subject, key in KEYS.items())
            self.world.gateway.authority = ApiKeys.parse("\n".join(lines))
        self.opened = 0
        self.open()

    def open(self) -> None:
        """Begin a session."""
        self.client = self.another()

    def another(self) -> Client:
        """Return a client with a session of its own."""
        more = {"principal": None} if self.has_keys else {}
        secret = f"secret {self.opened}"
        client = Client(self.world, identity_of(secret), secret=secret, **more)
        self.opened += 1
        return client

    def say(self, frame: bytes) -> None:
        """Say something, let it be carried out, and check what comes."""
        session = self.client.session
        self.client.say_raw(frame)
        while self.world.step():
            pass
        self.world.advance(5.0)
        while self.world.step():
            pass
        self.world.fetches.clear()
        self.world.sent.clear()
        for message in self.client.read():
            assert isinstance(message["type"], str)
            if message["type"] == "error":
                assert message["code"] in CODES - {ErrorCode.INTERNAL}, message
        ended = [each for each in self.world.closed if each.session == session.id]
        self.world.closed.clear()
        assert len(session.control) == 0
        if ended:
            assert 3000 <= ended[0].code < 4000
            self.client.close()
            assert not self.world.gateway.sessions
            self.open()

    def is_well(self) -> None:
        """Check that another client still gets answers."""
        other = self.another()
        if self.has_keys:
            other.say(type="hello", token=KEYS["ann"])
            assert [each["type"] for each in other.read()] == ["welcome"]
        other.say(type="ping", id="still there")
        assert other.read() == [{"type": "pong", "re": "still there"}]
        other.close()


def one(target: Target, data: bytes) -> None:
    """One input of a fuzzer: frames, with a byte 0 between."""
    for frame in data.split(b"\0"):
        target.say(frame)
