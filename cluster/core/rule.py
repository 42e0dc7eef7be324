"""Rules: what an event means, compiled once.

A stream of the configuration says: on this channel, this event makes these operations. Interpreting that per event would cost ten
times what the operation does, so the rules for an event's name are compiled when it first comes: exactly the members that a rule reads are
decoded (into a struct made for it, payloads stay raw), and keys come from a memo by captured value. All channels of a stream share them; a
`Route`, of which there is one for each channel, adds no more than what the channel captures.

It is one thing: reading an envelope, finding its routes and running them share the reasons for which an event is dropped.

What must not live here: the configuration's syntax (`cluster.config`), folding, connections.
"""

import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
import orjson
from msgspec import UNSET, Raw, Struct, UnsetType

from cluster.core import broadcast, template
from cluster.core.dead_letters import Fault
from cluster.core.json_pointer import escape, resolve
from cluster.core.json_pointer import tokens as pointer_tokens
from cluster.core.operation import (
    Append,
    Call,
    Delete,
    Guard,
    Increment,
    Invalidate,
    Merge,
    MergeWhere,
    Missing,
    Operation,
    Prepend,
    Remove,
    Set,
    Upsert,
    json_equal,
)
from cluster.core.query_key import CanonicalKey
from cluster.core.relation import Contains, Relations
from cluster.core.reserved import unreserved
from cluster.core.template import HeadIndex, Hole, Literal, MissingCapture, Node, Path
from cluster.core.tenant import is_name
from cluster.core.transform import HeardOn, Shape, Transform, TransformFunction, compile_transform
from cluster.errors import ErrorCode, HarborError, OperationError, RequestError

BROADCAST = frozenset({"entity", "relation", "confirm"})
"""Operations that name no key: which entries, or mutations, they are about is found in the shards."""
MEMO = 100_000
"""Keys remembered per route and routes per source; a memo that is full starts over."""
KNOWN_CHANNELS = 1_000
"""Channels whose reach is remembered (a gap asks for one of them about every entry); more start over."""
MAX_FAULTS = 100
"""Faults of events that wait to be looked at: those of one frame, which may hold any number."""
Made = tuple[CanonicalKey, Operation]


class FrameFault(Exception):  # noqa: N818 - what is wrong with a frame, counted by reason
    """A frame that cannot be an event: not_json, not_object, no_event."""

    def __init__(self, reason: str, detail: str = "", sample: Raw | bytes = b"", event: str | None = None) -> None:
        """`sample`: the frame, or the element of it, that it is about; `event`: its name, where that could be read."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.sample = sample
        self.event = event


class Envelope(Struct, frozen=True, gc=False):
    """An event as it came."""

    event: str
    data: Raw | bytes
    channel: str | None = None
    id: str | int | None = None


_MessageInt = typing.Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


def held_id(event_id: str | int | None) -> str | int | None:
    """Return an id as messages can hold it: of an integer beyond 64 bits its digits."""
    return str(event_id) if isinstance(event_id, int) and not -(2**63) <= event_id < 2**64 else event_id


def kept(envelope: Envelope) -> Envelope:
    """Return it with data of its own, to be kept: as it came it holds on to all that came with it."""
    return Envelope(envelope.event, bytes(envelope.data), envelope.channel, envelope.id)


Head = tuple[str | None, str]
"""(channel, name) of an event."""
MAX_ALIKE = 64
"""Kinds of events for which a source keeps a decoder of their own."""
SLICE = 256
"""Frames, or payloads, that are decoded by one call where there are many: texts of more than 128 KiB would come from the kernel, and go back to
it, page by page, each time; and what was just copied is in a near cache still."""
_NAME = attrgetter("event")
_VALUE = attrgetter("value")
_RAW = msgspec.json.Decoder(Raw).decode


class RuleOperation(Struct, frozen=True):
    """One operation of a rule, as configured: templates are parsed, options are plain."""

    kind: str
    """The contract's name: set, merge, append, ...; or `confirm`, which no rule of a configuration says."""
    key: Node
    at: Node = Literal("")
    value: Node | None = None
    """`value` or `item`."""
    where: Node | None = None
    by: Any = None
    """Member name, or what `increment` adds (a template)."""
    max_items: int = 0
    missing: Missing | None = None
    default: bytes | None = None
    exact: bool = False
    refetch: str = "active"
    each: Node | None = None
    when: tuple[tuple[str, Any], ...] = ()
    """(pointer into the event's data, value)."""
    guard: tuple[str, Node] | None = None
    type: Node | None = None
    """Of an entity or a relation."""
    identity: Node | None = None
    """Of what a relation is about."""
    tenant: Node | None = None
    """Whose entries alone it is for."""
    identities: tuple[tuple[str, str], ...] = ()
    """Member that identifies an entity, by type."""
    function: str = ""
    """What a call calls."""
    mutation: str = ""
    """Which mutation an event may confirm."""
    source: str = ""
    """What stands for the channel of an event that has none, there."""
    optional: bool = False
    """Of a mutation: it is left out where a variable that it needs is not there."""


class Stream(Struct, frozen=True):
    """One stream of the configuration."""

    source: str
    channel: Node | None
    """Template; None: events of any channel, or of none."""
    on: dict[str, tuple[RuleOperation, ...]]
    profile: int = 0
    always: bool = False
    linger_ms: float = 30_000.0
    max_rate: float | None = None
    """Events a second of each channel; more are left out, and what the channel feeds is fetched anew."""
    origins: dict[str, int] = {}
    """Number, among the rules of all streams, by event."""
    transform: Transform | None = None
    """What happens to its events before rules see them."""


class Route:
    """What to do with an event of one name on one channel."""

    __slots__ = ("feed", "heard", "keys", "max_rate", "origin", "profile", "step", "stream")

    def __init__(
        self,
        feed: str,
        profile: int,
        step: "_Step",
        heard: HeardOn,
        origin: int,
        max_rate: float | None = None,
        keys: "_KeysOf | None" = None,
        stream: int = 0,
    ) -> None:
        self.stream = stream
        """The position of its stream."""
        self.keys = keys
        """Where each event sets a key to its data as it is: the keys of many events at once. None: it is not so."""
        self.max_rate = max_rate
        self.feed = feed
        self.profile = profile
        self.step = step
        self.heard = heard
        self.origin = origin

    def apply(self, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
        """Return the operations that an event makes."""
        return self.step(self.heard, data, event_id)


class Router:
    """The rules of one source."""

    def __init__(
        self,
        source: str,
        envelope: dict[str, str] | None,
        streams: Sequence[Stream],
        call: TransformFunction | None = None,
    ) -> None:
        """`call` runs the functions of transforms."""
        self.source = source
        self.dropped: Counter[str] = Counter()
        """Events, or operations of events, that came to nothing, by reason."""
        self.faults: list[Fault] = []
        """Why, of the newest that were ill-shaped; for whoever hands events in to take."""
        self._call = call or _no_function
        self._steps: dict[tuple[int, str], tuple[_Step, _KeysOf | None]] = {}
        """Compiled rules, by the position of their stream and the event's name."""
        self._streams = [stream for stream in streams if stream.source == source]
        self._names = envelope or {"event": "event", "data": "data", "channel": "channel", "id": "id"}
        struct = self._envelope(str, str | None)
        lenient: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._envelope(str, str | None, int))
        self._decode = lenient.decode
        self._elements = msgspec.json.Decoder(list[Raw])
        events: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[struct])  # type: ignore[valid-type]
        self._decode_events = events.decode
        self._mapped = envelope is not None
        self._alike: dict[Head, msgspec.json.Decoder[Any]] = {}

    def _envelope(self, event: Any, channel: Any, number: Any = _MessageInt) -> type:
        """Return the struct of this source's events, whose names and channels are of these types, and ids that are no text."""
        members: dict[str, tuple[Any, Any]] = {
            "event": (event, ""),
            "data": (Raw, Raw(b"null")),
            "channel": (channel, None),
            "id": (str | number | None, None),
        }
        return msgspec.defstruct(
            "SourceEnvelope",
            [(ours, *members[ours]) if ours != "event" or event is str else (ours, event) for ours in self._names],
            namespace={ours: default for ours, (_, default) in members.items() if ours not in self._names},
            rename=self._names,
            frozen=True,
            gc=False,
            kw_only=True,
        )

    @property
    def takes_any_channel(self) -> bool:
        """Whether there are rules for events without a channel."""
        return any(stream.channel is None for stream in self._streams)

    def decode(self, frames: Sequence[bytes]) -> tuple[list[Any], list[FrameFault]]:
        """Read frames, each an envelope or a JSON array of them. Returns the envelopes, and what is none."""
        # As elements of one array they cost half of what they do one by one. Frames that are broken at commas, in such ways that the
        # number comes out right, are not noticed then; what is taken is whole values still.
        joined = frames[0] if len(frames) == 1 else b",".join(frames)
        try:
            _check_text(joined)
            events: list[Any] = self._decode_events(b"[%b]" % joined)
            if len(events) == len(frames) and all(map(_NAME, events)):
                return events, []
        except (msgspec.DecodeError, RecursionError, FrameFault):
            pass  # one by one, to see what is wrong with which
        events = []
        faults: list[FrameFault] = []
        for frame in frames:
            try:
                self._decode_frame(frame, events, faults)
            except FrameFault as fault:
                fault.sample = frame
                faults.append(fault)
        return events, faults

    def decode_alike(self, frames: Sequence[bytes], head: Head) -> list[Any] | None:
        """Read frames that are all events of one name on one channel, for less than others; None: they are not."""
        decoder = self._alike.get(head)
        if decoder is None:
            if len(self._alike) >= MAX_ALIKE:
                self._alike.clear()
            channel, event = head
            struct: Any = self._envelope(typing.Literal[event], None if channel is None else typing.Literal[channel])
            decoder = self._alike[head] = msgspec.json.Decoder(list[struct])
        events: list[Any] = []
        try:
            for first in range(0, len(frames), SLICE):
                joined = b",".join(frames[first : first + SLICE])
                _check_text(joined)
                events += decoder.decode(b"[%b]" % joined)
                if len(events) != min(first + SLICE, len(frames)):
                    return None
        except (msgspec.DecodeError, RecursionError, FrameFault):
            return None
        return events

    def _decode_frame(self, frame: bytes, events: list[Any], faults: list[FrameFault]) -> None:
        _check_text(frame)
        if frame.lstrip()[:1] != b"[":
            events.append(self._decode_one(frame))
            return
        try:
            found: list[Any] = self._decode_events(frame)
            if all(map(_NAME, found)):
                events.extend(found)
                return
        except (msgspec.DecodeError, RecursionError):
            pass
        try:
            elements = self._elements.decode(frame)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _frame_fault(error) from None
        for element in elements:
            try:
                events.append(self._decode_one(element))
            except FrameFault as fault:
                fault.sample = element
                faults.append(fault)

    def _decode_one(self, frame: Raw | bytes) -> Any:
        try:
            envelope = self._decode(frame)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _frame_fault(error) from None
        if not envelope.event:
            raise FrameFault("no_event")
        if (held := held_id(envelope.id)) is not envelope.id:
            return msgspec.structs.replace(envelope, id=held)
        return envelope

    def decode_events(
        self, events: Sequence[Envelope], *, asks: bool
    ) -> tuple[Sequence[Any], list[str | int | None], list[FrameFault]]:
        """Read events whose name and data a transport has read: as they are, or where an envelope is configured the JSON in their data.

        Returns the envelopes, the id after which an upstream would go on for each (`asks`: those in the data will do), and what is none.
        """
        try:
            if not self._mapped:
                _check_text(b" ".join([event.data for event in events]))
                for event in events:
                    _RAW(event.data)
                return events, [event.id for event in events], []
        except (msgspec.DecodeError, RecursionError, FrameFault):
            pass  # one by one
        envelopes: list[Any] = []
        ids: list[str | int | None] = []
        faults: list[FrameFault] = []
        for event in events:
            try:
                envelope = self._decode_event(event)
            except FrameFault as fault:
                fault.sample, fault.event = event.data, event.event
                faults.append(fault)
                continue
            envelopes.append(envelope)
            ids.append(envelope.id if event.id is None and asks else event.id)
        return envelopes, ids, faults

    def _decode_event(self, event: Envelope) -> Any:
        data = bytes(event.data)
        _check_text(data)
        if self._mapped:
            if data.lstrip()[:1] == b"[":
                raise FrameFault("not_object")
            return self._decode_one(data)
        try:
            _RAW(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise FrameFault("not_json", str(error)) from None
        return event

    def route(self, event: str, channel: str | None) -> tuple[Route, ...]:
        """Return what to do with an event of this name on this channel; the caller keeps the answer."""
        routes = []
        for position, stream in enumerate(self._streams):
            name = event if stream.transform is None else stream.transform.heard_as(event)
            if name not in stream.on:
                continue
            captures: dict[Path, Any] = {}
            if stream.channel is not None:
                if channel is None or not template.match_text(stream.channel, channel, captures):
                    continue
            feed = self.source if stream.channel is None else f"{self.source}/{channel}"
            compiled = self._steps.get((position, event))
            if compiled is None:
                compiled = self._steps[position, event] = self._compile(stream, event, name)
            step, keys = compiled
            heard = (channel, *captures.values())
            origin = stream.origins.get(name, -1)
            routes.append(Route(feed, stream.profile, step, heard, origin, stream.max_rate, keys, position))
        return tuple(routes)

    def _compile(self, stream: Stream, event: str, name: str) -> "tuple[_Step, _KeysOf | None]":
        """Compile the rules for an event, which come to it as `name`."""
        captured: dict[Path, None] = {} if stream.channel is None else dict.fromkeys(template.holes(stream.channel))
        places = {path[0]: place for place, path in enumerate(captured, 1)}
        drop = partial(self._fault, event)
        compiled = [_compile_operation(_of_event(each, name), name, places, drop) for each in stream.on[name]]
        rules, keys = compiled[0] if len(compiled) == 1 else (partial(_run_all, [step for step, _ in compiled]), None)
        if stream.transform is None or not stream.transform.shapes:
            return rules, keys

        def tell(heard: HeardOn) -> dict[str, Any]:
            return {"event": name, "channel": heard[0], "captures": _captures(places, heard)}

        return self._transformed(compile_transform(stream.transform, tell, self._call), rules, drop), None

    def _fault(self, event: str, reason: str, detail: str, data: Raw | bytes, heard: HeardOn) -> None:
        """An event, or an operation of one, comes to nothing since it is ill-shaped."""
        self.dropped[reason] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(reason, event, heard[0], detail, data))

    def _transformed(self, shape: Shape, rules: "_Step", drop: "_Drop") -> "_Step":
        def run(heard: HeardOn, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
            try:
                shaped = shape(heard, data, event_id)
            except _FAULTS as fault:
                drop("transform_failed", str(fault), data, heard)
                return []
            if shaped is None:
                self.dropped["filtered"] += 1
                return []
            return rules(heard, shaped, event_id)

        return run


def _check_text(data: bytes) -> None:
    """Check for UTF-8, which decoding JSON does not do for what stays raw.

    Raises:
        FrameFault: it is none.
    """
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            raise FrameFault("not_json", "invalid UTF-8") from None


def _frame_fault(error: Exception) -> FrameFault:
    if not isinstance(error, msgspec.ValidationError):
        return FrameFault("not_json", str(error))
    return FrameFault("no_event" if "`$." in str(error) else "not_object", str(error))


def _no_function(reference: str, _: dict[str, Any]) -> bytes | None:
    raise OperationError(f"function {reference} cannot be run here")


_Step = Callable[[HeardOn, Raw | bytes, str | int | None], list[Made]]
"""One operation of a rule, run on one event; it counts what it drops, and raises nothing that an upstream can cause."""
_KeysOf = Callable[[HeardOn, Sequence[Raw | bytes]], list[CanonicalKey] | None]
"""The key that each of several events sets, from their data; None: they are to be taken one by one, for one of them is ill-shaped."""
_Drop = Callable[[str, str, Raw | bytes, HeardOn], None]
"""Told of what comes to nothing: reason, detail, data, where it was heard."""
_MISSING = (MissingCapture, AttributeError)  # an attribute of an unset member
# What an upstream can send: no JSON, nested too deep, integers beyond 64 bits in what is written again, texts too long for a key.
_FAULTS = (
    *_MISSING,
    msgspec.DecodeError,
    orjson.JSONDecodeError,
    orjson.JSONEncodeError,
    UnicodeDecodeError,
    RecursionError,
    HarborError,
)


def _reason(fault: Exception) -> str:
    if isinstance(fault, _MISSING):
        return "missing_capture"
    if isinstance(fault, HarborError) and not isinstance(fault, OperationError):
        return "bad_key"
    return "bad_data"


def _run_all(steps: list[_Step], heard: HeardOn, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
    made: list[Made] = []
    for step in steps:
        made.extend(step(heard, data, event_id))
    return made


def _captures(places: dict[str, int], heard: HeardOn) -> dict[str, str | None]:
    return {name: heard[place] for name, place in places.items()}


def _of_event(operation: RuleOperation, name: str) -> RuleOperation:
    """Put the event's name in."""
    known = {"event": name}
    N = TypeVar("N", Node, Node | None)

    def put(node: N) -> N:
        return None if node is None else template.substitute(node, known)

    return msgspec.structs.replace(
        operation,
        key=put(operation.key),
        at=template.substitute(operation.at, {"event": escape(name)}),
        value=put(operation.value),
        where=put(operation.where),
        each=put(operation.each),
        guard=None if operation.guard is None else (operation.guard[0], put(operation.guard[1])),
        type=put(operation.type),
        identity=put(operation.identity),
        tenant=put(operation.tenant),
    )


class _Scope:
    """Decodes exactly the members of a JSON value that a rule reads.

    Members that only become values stay raw. Where one wanted member lies inside another the value is decoded whole.
    """

    def __init__(self, name: str, parsed: set[Path], raw: set[Path]) -> None:
        self.name = name
        paths = (parsed | raw) - {()}
        nested = any(one != other and other[: len(one)] == one for one in paths for other in paths)
        self.whole = () in parsed or nested
        self.raw = frozenset() if self.whole else frozenset(raw - parsed - {()})
        wanted = paths
        self.decode: Callable[[Any], Any] | None = None
        self._getters: dict[Path, Callable[[Any], Any]] = {}
        if self.whole:
            self.decode = msgspec.json.decode
        elif wanted:
            decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._struct(wanted, self.raw))
            self.decode = decoder.decode
            for path in wanted:
                self._getters[path] = attrgetter(".".join(_field(token) for token in path))

    def _struct(self, paths: set[Path], raw: frozenset[Path]) -> type:
        heads: dict[str, set[Path]] = {}
        for path in paths:
            heads.setdefault(path[0], set()).add(path[1:])
        fields: list[Any] = []
        for head, tails in heads.items():
            if tails == {()}:
                kind: Any = Raw if (head,) in raw else Any
            else:
                inner = frozenset(path[1:] for path in raw if path[0] == head)
                kind = self._struct(tails, inner)
            fields.append((_field(head), kind | UnsetType if kind is not Any else Any, UNSET))
        return msgspec.defstruct(
            "Members", fields, rename={_field(head): head for head in heads}, frozen=True, gc=False
        )

    def get(self, path: Path) -> Callable[[Any], Any]:
        """Return a getter, from what `decode` gave, of the value at `path`.

        The getter raises `MissingCapture` (or `AttributeError`, below an absent member) where there is nothing.
        """
        if self.whole:

            def walk(value: Any) -> Any:
                for token in path:
                    if not isinstance(value, dict) or token not in value:
                        raise MissingCapture
                    value = value[token]
                return value

            return walk
        getter = self._getters[path]

        def get(members: Any) -> Any:
            value = getter(members)
            if value is UNSET:
                raise MissingCapture
            return value

        return get


def _field(token: str) -> str:
    """A member's name as a struct's field: any text, told apart from every other."""
    return "f_" + token.encode().hex()


class _Reader:
    """Turns templates into functions of one event: (data, decoded data, item, decoded item, event id, where it was heard)."""

    def __init__(self, data: _Scope, item: _Scope, places: dict[str, int]) -> None:
        self._scopes = {"data": data, "item": item}
        self._places = places

    def value(self, path: Path) -> Callable[..., Any]:
        """Return a function that gives the decoded value of a placeholder."""
        place = self._places.get(path[0])
        if place is not None:
            return (lambda *event: event[-1][place]) if len(path) == 1 else _nothing
        if path == ("event_id",):
            return _event_id
        scope = self._scopes[path[0]]
        get = scope.get(path[1:])
        if path[1:] in scope.raw:
            parsed = get

            def get(members: Any) -> Any:
                return msgspec.json.decode(parsed(members))

        if path[0] == "data":
            return lambda data, members, *_: get(members)
        return lambda data, members, item, item_members, *_: get(item_members)

    def json(self, node: Node) -> Callable[..., bytes]:
        """Return a function that gives a filled-in template as JSON text."""
        match node:
            case Literal(value=literal):
                text = orjson.dumps(literal)
                return lambda *_: text
            case Hole(path=("data",)):
                return lambda data, *_: bytes(data)
            case Hole(path=("item",)):
                return lambda data, members, item, *_: bytes(item)
            case Hole(path=path) if path[0] in self._scopes and path[1:] in self._scopes[path[0]].raw:
                get = self._scopes[path[0]].get(path[1:])
                if path[0] == "data":
                    return lambda data, members, *_: bytes(get(members))
                return lambda data, members, item, item_members, *_: bytes(get(item_members))
            case _:
                fill = self.build(node)
                return lambda *event: orjson.dumps(fill(*event))

    def build(self, node: Node) -> Callable[..., Any]:
        """Return a function that gives a filled-in template."""
        if isinstance(node, Literal):
            return lambda *_: node.value
        if isinstance(node, Hole):
            return self.value(node.path)
        readers = {path: self.value(path) for path in template.holes(node)}

        def fill(*event: Any) -> Any:
            return template.build(node, lambda path: readers[path](*event))

        return fill


def _nothing(*_: Any) -> Any:
    raise MissingCapture


def _event_id(data: Any, members: Any, item: Any, item_members: Any, event_id: str | int | None, heard: HeardOn) -> Any:
    if event_id is None:
        raise MissingCapture
    return event_id


def _reads(operation: RuleOperation) -> tuple[set[Path], set[Path]]:
    """Return the placeholders an operation needs decoded, and those it only passes on."""
    parsed: set[Path] = set()
    passed: set[Path] = set()
    for node in (
        operation.key,
        operation.at,
        operation.where,
        operation.by,
        operation.type,
        operation.identity,
        operation.tenant,
    ):
        if isinstance(node, Hole | template.Text | template.ListNode | template.DictNode):
            parsed.update(template.holes(node))
    for node in (operation.value, operation.each, None if operation.guard is None else operation.guard[1]):
        if isinstance(node, Hole):
            passed.add(node.path)
        elif node is not None:
            parsed.update(template.holes(node))
    return parsed, passed


def _compile_operation(
    operation: RuleOperation, event: str, places: dict[str, int], drop_as: _Drop
) -> tuple[_Step, _KeysOf | None]:
    """`places`: where in `HeardOn` the captures of the channel are, by name."""
    parsed, passed = _reads(operation)
    names = sorted(".".join(path) for path in parsed | passed if path not in ALWAYS_THERE and path[0] not in places)
    needs = f"{operation.kind} needs {', '.join(f'{{{name}}}' for name in names)}"

    def drop(fault: Exception, data: Raw | bytes, heard: HeardOn) -> None:
        drop_as(_reason(fault), needs if isinstance(fault, _MISSING) else str(fault), data, heard)

    each = operation.each
    for pointer, _ in operation.when:
        parsed.add(("data", *pointer_tokens(pointer)) if _plain(pointer) else ("data",))

    def scope(name: str) -> _Scope:
        return _Scope(
            name,
            {path[1:] for path in parsed if path[0] == name},
            {path[1:] for path in passed if path[0] == name},
        )

    data_scope, item_scope = scope("data"), scope("item")
    reader = _Reader(data_scope, item_scope, places)
    make = _maker(operation, reader, event, places)
    decode, decode_item = data_scope.decode, item_scope.decode
    conditions: list[_Condition] = [
        (reader.value(("data", *pointer_tokens(pointer))), (), wanted)
        if _plain(pointer)
        else (reader.value(("data",)), pointer_tokens(pointer), wanted)
        for pointer, wanted in operation.when
    ]

    if isinstance(each, Hole):
        elements = reader.json(each)

        def run_each(heard: HeardOn, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
            made: list[Made] = []
            try:
                members = decode(data) if decode is not None else None
                if conditions and not _holds(conditions, data, members, event_id, heard):
                    return made
                items = _ITEMS.decode(elements(data, members, None, None, event_id, heard))
            except _FAULTS as fault:
                drop(fault, data, heard)
                return made
            for item in items:
                try:
                    item_members = decode_item(item) if decode_item is not None else None
                    made.append(make(data, members, item, item_members, event_id, heard))
                except _FAULTS as fault:
                    drop(fault, item, heard)
            return made

        return run_each, None

    if not conditions:
        fast = _fast_set(operation, data_scope, places, drop)
        if fast is not None:
            return fast

    def run(heard: HeardOn, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
        try:
            members = decode(data) if decode is not None else None
            if conditions and not _holds(conditions, data, members, event_id, heard):
                return []
            return [make(data, members, None, None, event_id, heard)]
        except _FAULTS as fault:
            drop(fault, data, heard)
        return []

    return run, None


def compile_operations(operations: Sequence[RuleOperation], drop: _Drop) -> _Step:
    """Compile operations that belong to no event of a stream; `drop` is told of those that come to nothing."""
    return partial(_run_all, [_compile_operation(each, "", {}, drop)[0] for each in operations])


ALWAYS_THERE = (("data",), ("item",))
_ITEMS = msgspec.json.Decoder(list[Raw])


def _plain(pointer: str) -> bool:
    """Whether a pointer leads through members only, as far as its text tells, and a struct can have members of such names."""
    return all(
        not token.isdigit() and token != "-" and token.isprintable() and not {'"', "\\"} & set(token)
        for token in pointer_tokens(pointer)
    )


_Condition = tuple[Callable[..., Any], tuple[str, ...], Any]
"""(what reads a value, pointer into that, what is to stand there)."""


def _holds(conditions: list[_Condition], data: Any, members: Any, event_id: str | int | None, heard: HeardOn) -> bool:
    for read, rest, wanted in conditions:
        try:
            value = resolve(read(data, members, None, None, event_id, heard), rest)
        except (MissingCapture, AttributeError, OperationError):
            return False
        if not json_equal(value, wanted):
            return False
    return True


def _fast_set(
    operation: RuleOperation,
    scope: _Scope,
    places: dict[str, int],
    drop: Callable[[Exception, Raw | bytes, HeardOn], None],
) -> tuple[_Step, _KeysOf] | None:
    """The commonest rule, `set {key: [..., "{data.id}"], value: "{data}"}`, without the general machinery (half its time)."""
    paths = dict.fromkeys(template.holes(operation.key))
    read = [path for path in paths if path[0] not in places]
    if (
        operation.kind != "set"
        or operation.value != Hole(("data",))
        or operation.at != Literal("")
        or operation.guard is not None
        or operation.missing is Missing.SKIP
        or not paths
        or [path[0] for path in read] not in ([], ["data"])
        or any(len(path) != (1 if path[0] in places else 2) for path in paths)
        or scope.whole
    ):
        return None
    node = operation.key
    memo: dict[Any, CanonicalKey] = {}

    def learn(heard: HeardOn, value: Any, known: Any) -> CanonicalKey:
        if value is UNSET:
            raise MissingCapture
        key = unreserved(template.build(node, lambda p: heard[places[p[0]]] if p[0] in places else value))
        if _is_exact(value):
            _remember(memo, known, key)
        return key

    if not read:

        def run_without(heard: HeardOn, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
            key = memo.get(heard)
            try:
                return [(learn(heard, "", heard) if key is None else key, Set(bytes(data)))]
            except _FAULTS as fault:
                drop(fault, data, heard)
            return []

        def keys_without(heard: HeardOn, data: Sequence[Raw | bytes]) -> list[CanonicalKey] | None:
            try:
                return [memo.get(heard) or learn(heard, "", heard)] * len(data)
            except _FAULTS:
                return None

        return run_without, keys_without
    name = read[0][1]
    member = msgspec.defstruct("Member", [("value", Any, UNSET)], rename={"value": name}, frozen=True, gc=False)
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(member)
    decode = decoder.decode
    exact = msgspec.defstruct("Exact", [("value", str | int)], rename={"value": name}, frozen=True, gc=False)
    all_of: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[exact])  # type: ignore[valid-type]
    decode_all = all_of.decode
    is_captured = len(paths) > 1

    def run(heard: HeardOn, data: Raw | bytes, event_id: str | int | None) -> list[Made]:
        try:
            value = decode(data).value
            kind = value.__class__
            known = (heard, value) if is_captured else value
            key = memo.get(known) if kind is str or kind is int else None
            return [(learn(heard, value, known) if key is None else key, Set(bytes(data)))]
        except _FAULTS as fault:
            drop(fault, data, heard)
        return []

    def keys(heard: HeardOn, data: Sequence[Raw | bytes]) -> list[CanonicalKey] | None:
        # One decoding of them all, and look-ups in a row: half of what they cost one by one.
        try:
            values: list[Any] = []
            for first in range(0, len(data), SLICE):
                values += map(_VALUE, decode_all(b"[%b]" % b",".join(data[first : first + SLICE])))
            known = [(heard, value) for value in values] if is_captured else values
            made: list[CanonicalKey] = list(map(memo.get, known))  # type: ignore[arg-type]  # see the next line
            if None in made:
                made = [memo.get(each) or learn(heard, value, each) for each, value in zip(known, values, strict=True)]
        except _FAULTS:
            return None
        return made if len(made) == len(data) else None

    return run, keys


def _is_exact(value: Any) -> bool:
    """Whether a value can be looked up: equal texts and integers have equal keys, while 1 also equals 1.0 and true."""
    return value.__class__ is str or value.__class__ is int


def _remember(memo: dict[Any, CanonicalKey], known: Any, key: CanonicalKey) -> None:
    if len(memo) > MEMO:
        memo.clear()
    memo[known] = key


def _key(operation: RuleOperation, reader: _Reader) -> Callable[..., CanonicalKey]:
    node = operation.key
    if isinstance(node, Literal):
        try:
            key = unreserved(node.value)
        except RequestError as error:  # by the event's name
            return _raising(error.code, error.message)
        return lambda *_: key
    paths = list(dict.fromkeys(template.holes(node)))
    readers = [reader.value(path) for path in paths]
    memo: dict[Any, CanonicalKey] = {}

    def build(*event: Any) -> CanonicalKey:
        values = [read(*event) for read in readers]
        known = tuple(values)
        is_exact = all(map(_is_exact, values))
        key = memo.get(known) if is_exact else None
        if key is None:
            key = unreserved(template.build(node, dict(zip(paths, values, strict=True)).__getitem__))
            if is_exact:
                _remember(memo, known, key)
        return key

    return build


def _raising(code: ErrorCode, message: str) -> Callable[..., CanonicalKey]:
    def refuse(*_: Any) -> CanonicalKey:
        raise RequestError(code, message)

    return refuse


def _at(operation: RuleOperation, reader: _Reader) -> Callable[..., str]:
    node = operation.at
    if isinstance(node, Literal):
        at = str(node.value)
        return lambda *_: at
    parts: tuple[str | Path, ...] = node.parts if isinstance(node, template.Text) else tuple(template.holes(node))
    readers = {path: reader.value(path) for path in template.holes(node)}

    def build(*event: Any) -> str:
        return "".join(
            part if isinstance(part, str) else escape(template.as_text(readers[part](*event))) for part in parts
        )

    return build


def _maker(operation: RuleOperation, reader: _Reader, event: str, places: dict[str, int]) -> Callable[..., Made]:
    """Return the function that makes the operation and its key from one event."""
    key, at = _key(operation, reader), _at(operation, reader)
    value = _no_value if operation.value is None else reader.json(operation.value)
    where = _no_value if operation.where is None else reader.json(operation.where)
    missing = Missing.SKIP if operation.missing is None else operation.missing
    default, max_items = operation.default, operation.max_items
    guard: Callable[..., Guard | None] = lambda *_: None  # noqa: E731 - a default among closures
    if operation.guard is not None:
        guard_at, guard_value = operation.guard[0], reader.json(operation.guard[1])
        guard = lambda *event: Guard(guard_at, guard_value(*event))  # noqa: E731 - as above
    match operation.kind:
        case "entity":
            return _entity_maker(operation, reader)
        case "relation":
            return _relation_maker(operation, reader)
        case "confirm":
            return _confirm_maker(operation)
        case "call":
            function = operation.function

            def call(
                data: Any, members: Any, item: Any, item_members: Any, event_id: str | int | None, heard: HeardOn
            ) -> Made:
                head = orjson.dumps({"event": event, "captures": _captures(places, heard)})[:-1]
                told = b'%b,"data":%b,"id":%b' % (head, bytes(data), orjson.dumps(event_id))
                told += b"}" if item is None else b',"item":%b}' % bytes(item)
                made = Call(function, told, missing=missing, default=default, guard=None)
                return key(data, members, item, item_members, event_id, heard), made

            return call
        case "set":
            creating = Missing.CREATE if operation.missing is None else operation.missing
            return lambda *e: (key(*e), Set(value(*e), at(*e), creating, default, guard(*e)))
        case "merge":
            return lambda *e: (key(*e), Merge(value(*e), at(*e), missing, default, guard(*e)))
        case "append" | "prepend" as kind:
            add = Append if kind == "append" else Prepend
            by = operation.by or "id"
            return lambda *e: (key(*e), add((value(*e),), at(*e), max_items, by, missing, default, guard(*e)))
        case "upsert":
            by = operation.by or "id"
            return lambda *e: (key(*e), Upsert((value(*e),), at(*e), by, missing, default, guard(*e)))
        case "merge_where":
            return lambda *e: (key(*e), MergeWhere(where(*e), value(*e), at(*e), missing, default, guard(*e)))
        case "remove":
            return lambda *e: (key(*e), Remove(where(*e), at(*e), missing, default, guard(*e)))
        case "increment":
            amount = _amount(operation, reader)
            return lambda *e: (key(*e), Increment(at(*e), amount(*e), missing, default, guard(*e)))
        case "delete":
            return lambda *e: (key(*e), Delete(at(*e), guard(*e)))
        case "invalidate":
            invalidate = Invalidate(operation.exact, operation.refetch)
            if operation.exact:
                return lambda *e: (key(*e), invalidate)
            return lambda *e: (broadcast.under(key(*e)), invalidate)
        case kind:
            raise AssertionError(f"no such operation: {kind}")


def _entity_maker(operation: RuleOperation, reader: _Reader) -> Callable[..., Made]:
    assert operation.type is not None
    assert operation.value is not None
    type_, value, whose = reader.build(operation.type), reader.json(operation.value), _whose(operation, reader)
    members = dict(operation.identities)

    def make(*event: Any) -> Made:
        name, json = type_(*event), value(*event)
        if name not in members:
            raise MissingCapture
        entity = orjson.loads(json)
        known = entity.get(members[name]) if isinstance(entity, dict) else None
        if known is None or isinstance(known, dict | list):
            raise MissingCapture
        return broadcast.name("entity", [name, known, *whose(*event)]), Merge(json)

    return make


def _relation_maker(operation: RuleOperation, reader: _Reader) -> Callable[..., Made]:
    assert operation.type is not None
    assert operation.identity is not None
    type_, identity = reader.build(operation.type), reader.build(operation.identity)
    invalidate, whose = Invalidate(False, operation.refetch), _whose(operation, reader)
    return lambda *event: (broadcast.name("relation", [type_(*event), identity(*event), *whose(*event)]), invalidate)


def _whose(operation: RuleOperation, reader: _Reader) -> Callable[..., list[str]]:
    """Return what gives the tenant for whose entries alone a broadcast is, as the last of what it is about."""
    if operation.tenant is None:
        return lambda *_: []
    named = reader.build(operation.tenant)

    def whose(*event: Any) -> list[str]:
        name = named(*event)
        if not is_name(name):
            raise MissingCapture
        return [name]

    return whose


def _confirm_maker(operation: RuleOperation) -> Callable[..., Made]:
    """Tell every shard that an event came which may confirm a mutation: those of one window go as one list."""
    name = broadcast.name("confirm", [operation.mutation])

    def make(data: Any, members: Any, item: Any, item_members: Any, event_id: str | int | None, heard: HeardOn) -> Made:
        channel = operation.source if heard[0] is None else heard[0]
        told = b'{"channel":%b,"id":%b,"data":%b}' % (orjson.dumps(channel), orjson.dumps(event_id), bytes(data))
        return name, Append((told,), by="")  # all count: their ids are those of their channels

    return make


def _no_value(*_: Any) -> bytes:
    return b"null"


def _amount(operation: RuleOperation, reader: _Reader) -> Callable[..., int | float]:
    if isinstance(operation.by, Hole):
        read = reader.value(operation.by.path)

        def amount(*event: Any) -> int | float:
            value = read(*event)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise OperationError(f"an increment is a number, got {value!r:.60}")
            if not -(2.0**63) < value < 2.0**63:
                raise OperationError("an increment has at most 64 bits")
            return value

        return amount
    fixed: int | float = 1 if operation.by is None else operation.by
    return lambda *_: fixed


class _Reach(Struct, frozen=True):
    """Which entries a rule can change."""

    key: Node
    under: bool
    """What is under the key too: an invalidation."""
    contains: bool = False
    """`key` is an element that keys have somewhere."""


_Fed = tuple[_Reach, dict[Path, Any]]
"""What a rule reaches, with the captures of the channel."""


def _reaches(stream: Stream) -> list[_Reach]:
    """Return what the rules of a stream reach by keys of their own, once where several reach the same."""
    found: list[_Reach] = []
    for rules in stream.on.values():
        for rule in rules:
            reach = _Reach(rule.key, rule.kind == "invalidate" and not rule.exact)
            if rule.kind not in BROADCAST and reach not in found:
                found.append(reach)
    return found


def _related(stream: Stream, relations: Relations) -> list[_Reach]:
    """Return what the rules of a stream reach through relations."""
    types: set[str] = set()
    for rules in stream.on.values():
        for rule in rules:
            if rule.kind == "relation":
                types.update([str(rule.type.value)] if isinstance(rule.type, Literal) else relations.types)
    return [
        _Reach(member.element, False, contains=True) if isinstance(member, Contains) else _Reach(member, True)
        for type_ in types
        for member in relations.members(type_)
    ]


class FeedIndex:
    """Which channels feed which keys: the rules, read backwards."""

    def __init__(self, streams: Sequence[Stream], relations: Relations | None = None) -> None:
        self._streams = streams
        self._relations = relations or Relations({})
        self._linger = {stream.source: stream.linger_ms for stream in streams}
        self._reaches = [_reaches(stream) for stream in streams]
        self._joined_for = HeadIndex(
            (reach.key, (stream.source, stream.channel, frozenset(template.holes(stream.channel)), reach))
            for stream, reaches in zip(streams, self._reaches, strict=True)
            if stream.channel is not None and not stream.always
            for reach in reaches
            # Of what a channel captures, a key that is one placeholder says nothing.
            if not isinstance(reach.key, Hole) or isinstance(stream.channel, Literal)
        )
        self._feeding: dict[tuple[str, str | None], HeadIndex[_Fed]] = {}

    def channels_for(self, key: list[Any]) -> list[tuple[str, str]]:
        """Return (source, channel) to join for a key to be live: the channels whose captures it determines."""
        found: dict[tuple[str, str], None] = {}
        for source, channel, wanted, reach in self._joined_for.candidates(key):
            captures: dict[Path, Any] = {}
            if template.match(reach.key, key, captures, under=reach.under) and wanted <= captures.keys():
                try:
                    found[source, str(template.build(channel, captures.__getitem__))] = None
                except MissingCapture:  # the key holds no text there
                    continue
        return list(found)

    def joins_for(self, first: str | None) -> bool:
        """Whether any channel may be to be joined for keys that begin with a text; None: with something else."""
        return bool(self._joined_for.candidates([first]))

    def channels_under(self, prefix: list[Any]) -> list[tuple[str, str]]:
        """Return (source, channel), of channels without captures, that may create entries under a prefix."""
        found: dict[tuple[str, str], None] = {}
        for stream in self._streams:
            if stream.always or not isinstance(stream.channel, Literal):
                continue
            if any(template.compatible(reach.key, prefix) for reach in _reaches(stream)):
                found[stream.source, str(stream.channel.value)] = None
        return list(found)

    def fed_by(self, source: str, channel: str | None, key: list[Any]) -> bool:
        """Whether a source (through any of its channels, where `channel` is None) feeds a key."""
        feeding = self._feeding.get((source, channel))
        if feeding is None:
            if len(self._feeding) >= KNOWN_CHANNELS:
                self._feeding.clear()
            feeding = self._feeding[source, channel] = HeadIndex(self._fed(source, channel))
        return any(_feeds(reach, key, captures) for reach, captures in feeding.candidates(key))

    def _fed(self, source: str, channel: str | None) -> Iterator[tuple[Node, "_Fed"]]:
        for stream, reaches in zip(self._streams, self._reaches, strict=True):
            if stream.source != source:
                continue
            captures: dict[Path, Any] = {}
            if stream.channel is None or channel is None or template.match_text(stream.channel, channel, captures):
                yield from ((reach.key, (reach, captures)) for reach in reaches)
                for reach in _related(stream, self._relations):
                    # What an event says of relations has nothing to do with what its channel captures.
                    yield (Hole(()) if reach.contains else reach.key), (reach, {})

    def heads_fed_by(self, source: str, channel: str | None) -> list[str] | None:
        """Return first elements of which every key has one that a source feeds; None: it may feed any key."""
        heads = [template.head(node) for node, _ in self._fed(source, channel)]
        texts = [head for head in heads if head is not None]
        return list(dict.fromkeys(texts)) if len(texts) == len(heads) else None

    def entities_fed_by(self, source: str, channel: str | None) -> set[str] | None:
        """Return the types of entities that a source's events change; None: any."""
        found: set[str] = set()
        for stream in self._streams:
            if stream.source != source:
                continue
            if (
                stream.channel is not None
                and channel is not None
                and not template.match_text(stream.channel, channel, {})
            ):
                continue
            for rules in stream.on.values():
                for rule in rules:
                    if rule.kind == "entity":
                        if not isinstance(rule.type, Literal):
                            return None
                        found.add(str(rule.type.value))
        return found

    def concerns(self, source: str, key: list[Any], *, prefix: bool) -> bool:
        """Whether what a source sends may change a key, or entries under a prefix."""
        if self.fed_by(source, None, key):
            return True
        return prefix and any(
            template.compatible(reach.key, key)
            for stream, reaches in zip(self._streams, self._reaches, strict=True)
            if stream.source == source
            for reach in reaches
        )

    def always(self) -> list[tuple[str, str]]:
        """Return the channels that are joined whether or not anybody watches."""
        return [
            (stream.source, str(stream.channel.value))
            for stream in self._streams
            if stream.always and isinstance(stream.channel, Literal)
        ]

    def linger_ms(self, source: str, channel: str) -> float:
        """Return how long a channel stays joined after its last watcher."""
        for stream in self._streams:
            if stream.source == source and stream.channel is not None:
                if template.match_text(stream.channel, channel, {}):
                    return stream.linger_ms
        return self._linger.get(source, 0.0)


def _feeds(reach: _Reach, key: list[Any], captures: dict[Path, Any]) -> bool:
    """Whether a channel's events reach a key; its captures are text, so a number in the key equals its digits."""
    found: dict[Path, Any] = {}
    if reach.contains:
        return any(template.match(reach.key, element, {}) for element in key)
    if not template.match(reach.key, key, found, under=reach.under):
        return False
    return all(path not in captures or template_text(value) == captures[path] for path, value in found.items())


def template_text(value: Any) -> str | None:
    """Return a scalar as text, or None."""
    try:
        return template.as_text(value)
    except MissingCapture:
        return None
