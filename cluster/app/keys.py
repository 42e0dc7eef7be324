"""Key factories: the keys of a kind of thing, named in one place."""

from typing import Any

Key = list[Any]


class KeyFactory:
    """Keys that begin with a name: `keys("projects").detail(7)` is `["projects", "detail", 7]`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def all(self) -> Key:
        """Return the prefix of every key of the kind."""
        return [self.name]

    def lists(self) -> Key:
        """Return the prefix of all lists."""
        return [self.name, "list"]

    def list(self, filters: Any = None) -> Key:
        """Return the key of a list; without filters that of the list of all."""
        return [self.name, "list"] if filters is None else [self.name, "list", filters]

    def details(self) -> Key:
        """Return the prefix of all details."""
        return [self.name, "detail"]

    def detail(self, identity: Any) -> Key:
        """Return the key of one thing."""
        return [self.name, "detail", identity]

    def key(self, *parts: Any) -> Key:
        """Return any other key of the kind."""
        return [self.name, *parts]


def keys(name: str) -> KeyFactory:
    """Return the factory of a kind's keys."""
    return KeyFactory(name)
