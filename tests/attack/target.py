"""What fuzzers aim at: a session of a gateway before real shard machines, without sockets.

Whatever is said, what follows is messages that a client can read, or the end of the connection; never an exception.
"""

from itertools import count

from cluster.core import template
from cluster.core.declared_query import DeclaredQuery
from cluster.core.mutation import DeclaredMutation
from cluster.core.presence_room import Pattern
from cluster.errors import ErrorCode
from tests.in_process import Client, InProcess

QUERIES = [DeclaredQuery(key=template.parse(["q", "{id}"]), service="api", path=template.parse("/q/{id}"), retry=0)]
MUTATIONS = {
    "rename": DeclaredMutation("rename", "api", "PUT", template.parse("/{id}"), scope=template.parse("n:{id}"))
}
PATTERNS = (Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),)
CODES = frozenset(ErrorCode)
_numbers = count()


class Target:
    """See the module."""

    def __init__(self) -> None:
        self.world = InProcess(shards=2, queries=QUERIES, mutations=MUTATIONS, patterns=PATTERNS)
        self.open()

    def open(self) -> None:
        """Begin a session."""
        self.client = Client(self.world, f"s{next(_numbers)}")

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
        other = Client(self.world, f"s{next(_numbers)}")
        other.say(type="ping", id="still there")
        assert other.read() == [{"type": "pong", "re": "still there"}]
        other.close()


def one(target: Target, data: bytes) -> None:
    """One input of a fuzzer: frames, with a byte 0 between."""
    for frame in data.split(b"\0"):
        target.say(frame)
