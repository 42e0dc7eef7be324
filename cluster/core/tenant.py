"""A tenant: everything of one customer stands under one element, and nobody of theirs sees that it does.

Inside the cluster a tenant's keys begin with its name, its topics and mutations with its name and a mark. Its clients say and are told
keys, topics and ids without that. Grants hold the name too (`grants`), so isolation does not rest on the translation: a key that
somebody forgot to root is covered by no grant of a tenant's.

A tenant's name has no character that means something in a key pattern, a topic or an id, so none can be mistaken for another's.

What must not live here: whose tenant somebody is of (`claims`, `grants`), where messages are made.
"""

import re
from typing import Any

import orjson

from cluster.core.query_key import MAX_KEY_BYTES, CanonicalKey
from cluster.errors import ErrorCode, LimitError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}\Z")
NAME_TEXT = "1 to 64 letters, digits and . _ : @ -, the first a letter or a digit"
TOPIC_MARK = "\0"
"""Between a tenant and its topic: patterns of topics are written by people, who do not write this."""
ID_MARK = "/"
"""Between a tenant and its mutation's id, which goes into a header."""
VARIABLE = "tenant"
"""The variable of a mutation that names the tenant of whoever began it."""


class Tenant:
    """See the module. Without a name it is nobody's, and translates nothing."""

    __slots__ = ("_head", "_id_head", "_topic_head", "name")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._head = orjson.dumps([name]).decode()[:-1] if name else ""
        self._topic_head = name + TOPIC_MARK if name else ""
        self._id_head = name + ID_MARK if name else ""

    def __bool__(self) -> bool:
        return bool(self.name)

    # --- keys ----------------------------------------------------------------------------------------------------

    def inside(self, key: CanonicalKey) -> CanonicalKey:
        """Return the cluster's key for what a client calls `key`.

        Raises:
            LimitError: `TOO_LARGE`, the tenant's name makes it too long.
        """
        if not self.name:
            return key
        rooted = self.cursor(key)
        size = len(rooted) if rooted.isascii() else len(rooted.encode("utf-8", "surrogatepass"))
        if size > MAX_KEY_BYTES:
            room = MAX_KEY_BYTES - (size - len(key.encode("utf-8", "surrogatepass")))
            raise LimitError(ErrorCode.TOO_LARGE, "key", room, f"a query key may have {room} bytes here")
        return CanonicalKey(rooted)

    def cursor(self, after: str) -> str:
        """Return the cluster's place in a listing for a client's, which may be any text."""
        if not self.name or not after.startswith("["):
            return after
        rest = after[1:]
        return self._head + (rest if rest == "]" else "," + rest)

    def outside(self, key: str) -> str:
        """Return what a client calls a key of the cluster's."""
        if not self._head or not key.startswith(self._head):
            return key
        return "[" + key[len(self._head) :].removeprefix(",")

    def holds(self, key: str) -> bool:
        """Whether a key, or all under a prefix, is this tenant's; without a name everything is."""
        return key.startswith(self._head + ",") or key == self._head + "]" if self.name else True

    def pattern(self, pattern: list[Any]) -> list[Any]:
        """Return a grant's key pattern as the cluster's keys are."""
        return [self.name, *pattern] if self.name else pattern

    # --- topics and mutations ------------------------------------------------------------------------------------

    def inside_topic(self, topic: str) -> str:
        """Return the cluster's topic, or pattern of topics, for a client's."""
        return self._topic_head + topic

    def outside_topic(self, topic: str) -> str:
        """Return what a client calls a topic."""
        return topic.removeprefix(self._topic_head)

    def inside_id(self, mutation: str) -> str:
        """Return the cluster's id for a client's mutation."""
        return self._id_head + mutation

    def outside_id(self, mutation: str) -> str:
        """Return what a client calls a mutation."""
        return mutation.removeprefix(self._id_head)

    def has_id(self, mutation: str) -> bool:
        """Whether a mutation was begun by somebody of this tenant; without a name every one was."""
        return mutation.startswith(self._id_head)

    # --- the rest ------------------------------------------------------------------------------------------------

    def text(self, message: str) -> str:
        """Return an error's message with keys and ids as a client calls them."""
        if not self.name:
            return message
        shown = message.replace(self._head + ",", "[").replace(self._head + "]", "[]")
        return shown.replace(self._topic_head, "").replace(f" {self._id_head}", " ")


NOBODYS = Tenant()
"""Of a cluster without tenants, and of operators who see them all."""


def of_topic(topic: str) -> tuple[str, str]:
    """Return the tenant (empty: none) and the name of a topic of the cluster's."""
    tenant, mark, name = topic.partition(TOPIC_MARK)
    return (tenant, name) if mark else ("", topic)


def is_name(given: object) -> bool:
    """Whether something can be a tenant's name."""
    return isinstance(given, str) and NAME.match(given) is not None
