"""Transforms: which events of a stream are taken, and what of their data, before any rule sees them.

The steps, in this order: an event's name becomes ours; `when` decides by members of the data whether the event is taken; a function gives
other data, or leaves the event out; `pick` says which members stay; `rename` what they are called.

Compiled once per stream and event. Members are found and moved as raw JSON, so that numbers stay as they were written, and what is not asked for is
skipped, not decoded. Only a function gets data that is decoded whole.

What must not live here: how functions are found and run (`cluster.app`), what an event's data means (`rule`).
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cluster.core.json_pointer import index, tokens
from cluster.core.operation import json_equal
from cluster.errors import OperationError

Json = Raw | bytes
TransformFunction = Callable[[str, dict[str, Any]], bytes | None]
"""Calls a function by its reference with an event: JSON, or None to leave the event out. Raises `OperationError`."""
HeardOn = tuple[str | None, ...]
"""Where an event came from: its channel, and what the stream's template captures of that."""
Shape = Callable[[HeardOn, Json, str | int | None], Json | None]
"""What a transform makes of an event's data; None: the event is left out. It is told where it was heard, and its id.

Raises what a decoder does (the data is not of the kind wanted), and `OperationError`."""


class Transform(Struct, frozen=True):
    """What is configured."""

    when: dict[str, Any] = {}
    """Pointer into the data -> what is to stand there."""
    function: str = ""
    pick: tuple[str, ...] | dict[str, str] | None = None
    """Members that stay; or our name -> pointer into the data."""
    rename: dict[str, str] = {}
    """Their name of a member -> ours."""
    event: dict[str, str] = {}
    """Their name of an event -> ours."""

    @property
    def shapes(self) -> bool:
        """Whether it does anything to events that have their name."""
        return bool(self.when or self.function or self.pick is not None or self.rename)

    def heard_as(self, event: str) -> str:
        """Return our name of an event."""
        return self.event.get(event, event)


def compile_transform(
    transform: Transform, tell: Callable[[HeardOn], Mapping[str, Any]], call: TransformFunction
) -> Shape:
    """Return what a transform does to events of one name. `tell`: what its function is told of each, beside data and id."""
    steps: list[Shape] = []
    if transform.when:
        steps.append(_when(transform.when))
    if transform.function:
        steps.append(_function(transform.function, tell, call))
    if transform.pick is not None:
        steps.append(_pick(transform.pick, transform.rename))
    elif transform.rename:
        steps.append(_rename(transform.rename))
    if len(steps) == 1:
        return steps[0]

    def run(heard: HeardOn, data: Json, event_id: str | int | None) -> Json | None:
        shaped: Json | None = data
        for step in steps:
            shaped = step(heard, data, event_id)
            if shaped is None:
                return None
            data = shaped
        return shaped

    return run


def _when(conditions: Mapping[str, Any]) -> Shape:
    read = _reader([tokens(pointer) for pointer in conditions])
    wanted = list(conditions.values())
    decode = msgspec.json.decode

    def run(_: HeardOn, data: Json, __: str | int | None) -> Json | None:
        for value, expected in zip(read(data), wanted, strict=True):
            if isinstance(value, UnsetType) or not json_equal(decode(value), expected):
                return None
        return data

    return run


def _function(reference: str, tell: Callable[[HeardOn], Mapping[str, Any]], call: TransformFunction) -> Shape:
    decode = msgspec.json.decode

    def run(heard: HeardOn, data: Json, event_id: str | int | None) -> Json | None:
        return call(reference, {**tell(heard), "data": decode(data), "id": event_id})

    return run


def _pick(pick: Sequence[str] | Mapping[str, str], rename: Mapping[str, str]) -> Shape:
    """`rename` is of the names that stay."""
    names = [rename.get(name, name) for name in pick]
    encode = msgspec.json.encode
    if isinstance(pick, Mapping):
        read = _reader([tokens(pointer) for pointer in pick.values()])
    elif all(map(_can_be_field, pick)):
        read = _members(list(pick))
    else:
        listed = list(pick)

        def read(data: Json) -> list[Json | UnsetType]:
            members = _OBJECT.decode(data)
            return [members.get(name, UNSET) for name in listed]

    def run(_: HeardOn, data: Json, __: str | int | None) -> Json:
        found = zip(names, read(data), strict=True)
        return encode({name: value for name, value in found if value is not UNSET})

    return run


def _rename(rename: Mapping[str, str]) -> Shape:
    pairs = list(rename.items())
    encode = msgspec.json.encode

    def run(_: HeardOn, data: Json, __: str | int | None) -> Json:
        members = _OBJECT.decode(data)
        moved = {ours: members.pop(theirs) for theirs, ours in pairs if theirs in members}
        if not moved:
            return data
        members.update(moved)  # all at once, so that two can change places
        return encode(members)

    return run


_Read = Callable[[Json], Sequence[Json | UnsetType]]
"""Gives what stands at each of some places."""
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_CONTAINER = msgspec.json.Decoder(dict[str, Raw] | list[Raw])


def _reader(places: Sequence[tuple[str, ...]]) -> _Read:
    """Return what reads some places, where there are such."""
    heads = list(dict.fromkeys(place[0] for place in places if place))
    if not all(places) or not all(map(_names_member, heads)):
        return lambda data: [_below(data, place) for place in places]
    members = _members(heads)
    below = [(heads.index(place[0]), place[1:]) for place in places]
    nothing = [UNSET] * len(places)

    def read(data: Json) -> Sequence[Json | UnsetType]:
        try:
            found = members(data)
        except msgspec.ValidationError:  # no object, so it has no members
            return nothing
        return [_below(found[position], rest) for position, rest in below]

    return read


def _members(names: Sequence[str]) -> Callable[[Json], Sequence[Json | UnsetType]]:
    """Return what reads members of an object, and skips the others. It raises `ValidationError` where the data is no object."""
    fields = [(f"f{position}", Raw | UnsetType, UNSET) for position in range(len(names))]
    rename = {f"f{position}": name for position, name in enumerate(names)}
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
        msgspec.defstruct("Members", fields, rename=rename, frozen=True, gc=False)
    )
    decode = decoder.decode
    get: Callable[[Any], Any] = attrgetter(*rename)
    if len(names) == 1:
        return lambda data: (get(decode(data)),)
    return lambda data: get(decode(data))


def _below(value: Json | UnsetType, place: tuple[str, ...]) -> Json | UnsetType:
    for token in place:
        if isinstance(value, UnsetType):
            return UNSET
        try:
            container = _CONTAINER.decode(value)
            value = container.get(token, UNSET) if isinstance(container, dict) else container[index(token, _LONG)]
        except (msgspec.ValidationError, OperationError, IndexError):  # a scalar; or no such item
            return UNSET
    return value


_LONG = 2**31
"""No array has so many items; `-`, which names the one after the last, is beyond any."""


def _can_be_field(name: str) -> bool:
    """Whether a struct can have a member of that name."""
    return name.isprintable() and not {'"', "\\"} & set(name)


def _names_member(token: str) -> bool:
    """Whether a pointer's token can only be the name of a member, which a struct can have."""
    return not token.isdigit() and token != "-" and _can_be_field(token)
