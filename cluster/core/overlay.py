"""What clients see of mutations that are not settled: their operations over the bases of entries.

An optimistic change must be seen at once, and must not be in the way of what streams and fetches bring meanwhile. Writing it into the
entry and putting a snapshot back where it fails would undo whatever came in between. So an entry keeps its base, which only
what is certain changes, and its view is made from it: the operations of pending mutations, applied in order, anew with every change of
the base (a rebase). A mutation that fails takes its operations away and nothing else.

Each view would cost as many operations as are pending, so a thousand changes that wait for a service would cost a million. The view made
last is gone on from where that comes to the same: something was laid on top, or the lowest was lifted and the base is now what that made
of it.

An item that a stream adds to an array into which a pending mutation creates one may be that very item, under the id it has been given.
Until it is known (the response, or two seconds) it is kept out of the view, or clients would see it twice.

A service's answer overtakes the event by which its stream tells the same. When two changes of one member are answered one after the other, the
event of the first comes when the base has the second already, and would be seen as a step back. So what a mutation did whose event is
still to come goes on lying over the base, as its echo, until that event or a second later.

What must not live here: which mutations there are (`mutation_queue`), numbering and sending changes (`shard_state`).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile
from typing import Any

import orjson
from msgspec import Struct, structs

from cluster.core.entry import Value
from cluster.core.messages import Lay
from cluster.core.operation import (
    Addition,
    Operation,
    Reducer,
    apply_all,
    array_at,
    identity,
    identity_in,
)
from cluster.errors import OperationError

HIDDEN_MS = 2_000.0
"""How long an item may be kept out of views: more than a service takes to answer, as a rule."""

ECHO_MS = 1_000.0
"""How long an echo may lie: many times what an event takes, and not long for what a fetch or another writer brings to be hidden."""

Place = tuple[str, Any]
"""(pointer to an array, identity of an item of it)."""


class Laid(Struct):
    """A mutation's operations on one entry."""

    mutation: str
    order: tuple[int, int]
    """(number of the mutation, its home)."""
    operations: list[Operation]
    creates: bool
    before: bytes | None = None
    """The base as it was, JSON, where it is to be put back should the mutation fail; None: it is not, or there was none."""
    restores: bool = False
    is_echo: bool = False


class _Made(Struct, frozen=True):
    """A view that was made."""

    base: bytes | None
    """JSON, as that of the view; None: there was none."""
    laid: list[Laid]
    view: bytes | None


class Remembered:
    """What lay over an entry in the life before, of which nothing was heard yet: only what it showed is known."""

    __slots__ = ("_shown",)

    def __init__(self, shown: Value) -> None:
        self._shown = shown

    def shown(self, _base: Value | None, _reducer: Reducer | None = None) -> Value | None:
        """Return the view, as it was."""
        return self._shown


class Overlay:
    """What lies over one entry."""

    __slots__ = ("_made", "hidden", "laid")

    def __init__(self) -> None:
        self.laid: list[Laid] = []
        """In the order in which they apply."""
        self.hidden: dict[Place, float] = {}
        """Items kept out of the view, and until when."""
        self._made: _Made | None = None

    def shown(self, base: Value | None, reducer: Reducer | None = None) -> Value | None:
        """Return the view of a base, which is not touched."""
        text = _text(base)
        made = None if self.hidden else self._goes_on(text, reducer)
        view = _value(text if made is None else made.view)
        if view is not None and self.hidden:
            self._hide(view)
        for each in self.laid if made is None else self.laid[len(made.laid) :]:
            view = apply_all(each.operations, view, reducer).value
        self._made = None if self.hidden else _Made(text, list(self.laid), _text(view))
        return view

    def _goes_on(self, base: bytes | None, reducer: Reducer | None) -> _Made | None:
        """Return the view of a base with the lowest of what is laid, if it was made already."""
        made = self._made
        if made is None or not made.laid:
            return None
        if made.base == base:
            return made if made.laid == self.laid[: len(made.laid)] else None
        lowest, *others = made.laid
        if others != self.laid[: len(others)]:
            return None
        lasts = apply_all(lowest.operations, _value(made.base), reducer).value
        return _Made(base, others, made.view) if _text(lasts) == base else None

    def _hide(self, view: Value) -> None:
        document = view.object()
        for at, known in self.hidden:
            array = array_at(document, at)
            for by in {each.by for laid in self.laid for each in _additions(laid.operations) if each.at == at}:
                array[:] = [item for item in array if identity(item, by) != known]
        view.mutated(document)

    def came(self, operations: list[Operation], base: Value | None, now_ms: float) -> None:
        """A stream is about to change the base: keep out of the view what may be a pending item."""
        creating = {each.at for laid in self.laid if laid.creates for each in _additions(laid.operations)}
        for operation in _additions(operations):
            if operation.at in creating:
                present = {identity(item, operation.by) for item in array_at(_document(base), operation.at)}
                for item in operation.items:
                    known = identity_in(item, operation.by)
                    if known is not None and known not in present:
                        self.hidden[operation.at, known] = now_ms + HIDDEN_MS

    def expired(self, now_ms: float) -> bool:
        """Show what was kept out of the view long enough. Returns whether there was any."""
        late = [place for place, until in self.hidden.items() if until <= now_ms]
        for place in late:
            del self.hidden[place]
        return bool(late)

    @property
    def has_echo(self) -> bool:
        """Whether an echo lies here."""
        return any(each.is_echo for each in self.laid)


class Known(Struct):
    """A mutation whose operations are laid here."""

    home: int
    name: str
    variables: dict[str, Any]
    created_ms: float
    keys: dict[str, None] = {}
    is_confirmed: bool = False
    """A stream's event of it has come by here: the bases have what it did, and what came after it."""
    is_echo: bool = False
    """It is settled; only its event is still to come."""
    scope: str = ""


class Overlays:
    """What lies over the entries of a shard, whoever's the mutations are."""

    __slots__ = ("_echoes", "_hiding", "by_key", "mutations")

    def __init__(self) -> None:
        self.by_key: dict[str, Overlay] = {}
        self.mutations: dict[str, Known] = {}
        self._hiding: dict[str, None] = {}
        """Keys of entries of which something is kept out of the view."""
        self._echoes: dict[str, float] = {}
        """Until when echoes lie, by mutation, the first to end first."""

    def of(self, key: str) -> Overlay | None:
        """Return what lies over an entry."""
        return self.by_key.get(key)

    def lay(self, lay: Lay, home: int, base: dict[str, Value | None]) -> list[str]:
        """Take a mutation's operations in place of those it had. Returns the keys whose views may have changed.

        `base`: of the keys that it is about.
        """
        by_key: dict[str, list[Operation]] = {}
        for key, operation in lay.operations:
            by_key.setdefault(key, []).append(operation)
        known = self.mutations.get(lay.mutation)
        held = {} if known is None else {key: self._laid(key, lay.mutation) for key in known.keys}
        keys = list(dict.fromkeys([*self._drop(lay.mutation, keep_hidden=True), *by_key]))
        if not by_key:
            return keys
        for key, operations in by_key.items():
            overlay = self.by_key.setdefault(key, Overlay())
            laid = Laid(lay.mutation, (lay.number, home), operations, bool(lay.temporary))
            before = held.get(key)
            if before is not None:
                laid.before, laid.restores = before.before, before.restores
            elif lay.restores:
                value = base.get(key)
                laid.before, laid.restores = None if value is None else value.json(), True
            overlay.laid.append(laid)
            overlay.laid.sort(key=lambda each: each.order)
        again = known is not None and known.is_confirmed
        variables = orjson.loads(lay.variables)
        keyed = dict.fromkeys(by_key)
        self.mutations[lay.mutation] = Known(home, lay.name, variables, lay.created_ms, keyed, again, scope=lay.scope)
        return keys

    def lift(self, mutation: str, renamed: Any = None) -> dict[str, Laid]:
        """Take a mutation's operations away; `renamed`: the id of what it has created. Returns what lay, by key."""
        known = self.mutations.get(mutation)
        if known is None:
            return {}
        held = {key: laid for key in known.keys if (laid := self._laid(key, mutation)) is not None}
        for key, laid in held.items():
            for each in _additions(laid.operations):
                self.by_key[key].hidden.pop((each.at, identity({each.by: renamed}, each.by)), None)
        self._drop(mutation)
        return held

    def echo(
        self, mutation: str, known: Known, order: tuple[int, int], did: dict[str, list[Operation]], now_ms: float
    ) -> None:
        """Let what a mutation did, by key, lie on: it was lifted, and its event is still to come."""
        for key, operations in did.items():
            overlay = self.by_key.setdefault(key, Overlay())
            overlay.laid.append(Laid(mutation, order, operations, creates=False, is_echo=True))
            overlay.laid.sort(key=lambda each: each.order)
        known.keys, known.is_echo = dict.fromkeys(did), True
        self._echoes[mutation] = now_ms + ECHO_MS
        self.mutations[mutation] = known

    def moved(self, key: str) -> tuple[list[Laid], list[tuple[str, Known, float | None]], list[tuple[str, Any, float]]]:
        """Return what lies over an entry, as it goes to another shard: laid, mutations, what is kept out of the view."""
        overlay = self.by_key.get(key)
        if overlay is None:
            return [], [], []
        known = [
            (each.mutation, self.mutations[each.mutation], self._echoes.get(each.mutation)) for each in overlay.laid
        ]
        return overlay.laid, known, [(at, item, until) for (at, item), until in overlay.hidden.items()]

    def take_in(
        self,
        key: str,
        laid: list[Laid],
        known: list[tuple[str, Known, float | None]],
        hidden: list[tuple[str, Any, float]],
    ) -> None:
        """Have lie over an entry what lay there in another shard."""
        overlay = self.by_key[key] = Overlay()
        overlay.laid = sorted(laid, key=lambda each: each.order)
        overlay.hidden = {(at, item): until for at, item, until in hidden}
        if hidden:
            self._hiding[key] = None
        for mutation, said, until in known:
            fresh = structs.replace(said, keys={})
            self.mutations.setdefault(mutation, fresh).keys[key] = None
            if until is not None:
                self._echoes.setdefault(mutation, until)

    def rehome(self, home_of: Callable[[str], int]) -> None:
        """Mutations have other homes, by their scopes."""
        for known in self.mutations.values():
            known.home = home_of(known.scope)

    def let_go(self, keys: Iterable[str]) -> None:
        """Entries are another shard's now, with what lies over them."""
        for key in keys:
            overlay = self.by_key.pop(key, None)
            self._hiding.pop(key, None)
            for laid in () if overlay is None else overlay.laid:
                known = self.mutations.get(laid.mutation)
                if known is not None:
                    known.keys.pop(key, None)
                    if not known.keys:
                        del self.mutations[laid.mutation]
                        self._echoes.pop(laid.mutation, None)

    def silence(self, key: str) -> None:
        """An entry is written past all mutations: what they did does not lie over that."""
        overlay = self.by_key.get(key)
        for each in [] if overlay is None else [each.mutation for each in overlay.laid if each.is_echo]:
            del self.mutations[each].keys[key]
        if overlay is not None:
            overlay.laid = [each for each in overlay.laid if not each.is_echo]
            if not overlay.laid and not overlay.hidden:
                del self.by_key[key]

    def clear(self, home: int) -> list[str]:
        """Take away all that a shard has laid here. Returns the keys."""
        keys: dict[str, None] = {}
        for mutation in [each for each, known in self.mutations.items() if known.home == home]:
            keys.update(dict.fromkeys(self._drop(mutation)))
        return list(keys)

    def _laid(self, key: str, mutation: str) -> Laid | None:
        overlay = self.by_key.get(key)
        return None if overlay is None else next((each for each in overlay.laid if each.mutation == mutation), None)

    def _drop(self, mutation: str, *, keep_hidden: bool = False) -> list[str]:
        known = self.mutations.pop(mutation, None)
        self._echoes.pop(mutation, None)
        keys = [] if known is None else list(known.keys)
        for key in keys:
            overlay = self.by_key[key]
            overlay.laid = [each for each in overlay.laid if each.mutation != mutation]
            if not keep_hidden and not any(each.creates for each in overlay.laid):
                overlay.hidden.clear()
            if not overlay.hidden:
                self._hiding.pop(key, None)
            if not overlay.laid and not overlay.hidden:
                del self.by_key[key]
        return keys

    def came(self, key: str, operations: list[Operation], base: Value | None, now_ms: float) -> None:
        """A stream is about to change an entry's base: see `Overlay.came`."""
        overlay = self.by_key.get(key)
        if overlay is not None:
            overlay.came(operations, base, now_ms)
            if overlay.hidden:
                self._hiding[key] = None

    def deadline(self) -> float | None:
        """When something is to be shown, or to lie no longer."""
        times = [at for key in self._hiding for at in self.by_key[key].hidden.values()]
        times.extend(islice(self._echoes.values(), 1))
        return min(times, default=None)

    def faded(self, now_ms: float) -> list[str]:
        """Return the mutations whose echoes have lain long enough; they are to be lifted."""
        return list(takewhile(lambda mutation: self._echoes[mutation] <= now_ms, self._echoes))

    def expired(self, now_ms: float) -> Iterator[str]:
        """Yield the keys of entries of which something was kept out of the view for long enough."""
        for key in list(self._hiding):
            overlay = self.by_key[key]
            if overlay.expired(now_ms):
                if not overlay.hidden:
                    del self._hiding[key]
                if not overlay.laid and not overlay.hidden:
                    del self.by_key[key]
                yield key


def missing(operations: list[Operation], base: Value | None) -> list[Operation]:
    """Return what of optimistic operations is to be added to a base: not the items that a stream has brought already."""
    kept: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Addition):
            array = array_at(_document(base), operation.at)
            present = {identity(item, operation.by) for item in array} - {None}
            if any(identity_in(item, operation.by) in present for item in operation.items):
                continue
        kept.append(operation)
    return kept


def _additions(operations: list[Operation]) -> Iterator[Addition]:
    return (each for each in operations if isinstance(each, Addition))


def _text(value: Value | None) -> bytes | None:
    return None if value is None else value.json()


def _value(text: bytes | None) -> Value | None:
    return None if text is None else Value.from_json(text)


def _document(base: Value | None) -> Any:
    try:
        return None if base is None else base.object()
    except OperationError:
        return None
