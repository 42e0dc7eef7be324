"""Key factories: the keys of a kind of thing, named in one place, as TanStack's query key factories do."""

from typing import Any

Key = list[Any]


class Prefix(list[Any]):
    """A key that may also be called for: `projects.all` and `projects.all()` are the same."""

    def __call__(self) -> Key:
        """Return the key, as a list of its own."""
        return list(self)


class KeyFactory:
    """Keys that begin with a name: `keys("projects").detail(7)` is `["projects", "detail", 7]`.

    Every key is a list of its own, which the caller may go on with: `[*projects.lists(), {"owner": 1}]`.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"keys({self.name!r})"

    @property
    def all(self) -> Prefix:
        """The prefix of every key of the kind."""
        return Prefix([self.name])

    def lists(self) -> Key:
        """Return the prefix of all lists."""
        return [self.name, "list"]

    def list(self, filters: Any = None) -> Key:
        """Return the key of the list with these filters; without filters `lists()`."""
        return self.lists() if filters is None else [*self.lists(), filters]

    def details(self) -> Key:
        """Return the prefix of all details."""
        return [self.name, "detail"]

    def detail(self, identity: Any) -> Key:
        """Return the key of one thing."""
        return [*self.details(), identity]

    def key(self, *parts: Any) -> Key:
        """Return any other key of the kind."""
        return [self.name, *parts]


def keys(name: str) -> KeyFactory:
    """Return the factory of a kind's keys."""
    return KeyFactory(name)
