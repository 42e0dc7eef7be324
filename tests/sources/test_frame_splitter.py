from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from cluster.sources.frame_splitter import FrameSplitter
from cluster.sources.pieces import FrameViolationError

LIMIT = 70_000


def frame(opcode, payload=b"", fin=True, **bits):
    return Frame(opcode, payload, fin, **bits).serialize(mask=False)


class Sink:
    def __init__(self, hold_at=()):
        self.log = []
        self.deliveries = 0
        self.hold_at = set(hold_at)
        self.splitter = FrameSplitter(self.deliver, self.control, self.refuse, LIMIT)

    def deliver(self, messages):
        self.log.extend(("message", message) for message in messages)
        self.deliveries += 1
        return self.deliveries not in self.hold_at

    def told(self, kind):
        return [each for each in self.log if each[0] == kind]

    def control(self, raw):
        self.log.append(("control", raw))

    def refuse(self, reason, size):
        self.log.append((reason, size))


def same(sink, expected):
    """Messages come together at the end of a read, so between those and the rest there is no order."""
    for kind in {each[0] for each in sink.log + expected}:
        assert sink.told(kind) == [each for each in expected if each[0] == kind]


payloads = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda n, c: bytes([c]) * n, st.sampled_from([125, 126, 127, 65_535, 65_536, LIMIT]), st.integers(0, 255)
    ),
)


@st.composite
def streams(draw):
    """Bytes of a well-formed stream, and what a splitter must say to it."""
    raw, log = [], []
    for kind in draw(
        st.lists(st.sampled_from(["text", "binary", "ping", "pieces", "huge", "huge_pieces"]), max_size=12)
    ):
        if kind in ("text", "binary"):
            payload = draw(payloads)
            raw.append(frame(Opcode.TEXT if kind == "text" else Opcode.BINARY, payload))
            log.append(("message", payload))
        elif kind == "ping":
            raw.append(frame(Opcode.PING, draw(st.binary(max_size=125))))
            log.append(("control", raw[-1]))
        elif kind == "pieces":
            pieces = draw(st.lists(st.binary(max_size=200), min_size=2, max_size=4))
            raw.append(frame(Opcode.TEXT, pieces[0], fin=False))
            if draw(st.booleans()):
                raw.append(frame(Opcode.PONG, b"between"))
                log.append(("control", raw[-1]))
            raw += [frame(Opcode.CONT, piece, fin=False) for piece in pieces[1:-1]]
            raw.append(frame(Opcode.CONT, pieces[-1]))
            log.append(("message", b"".join(pieces)))
        elif kind == "huge":
            raw.append(frame(Opcode.TEXT, bytes(LIMIT + 1)))
            log.append(("too_large", LIMIT + 1))
        else:
            raw += [frame(Opcode.BINARY, b"x" * 40_000, fin=False), frame(Opcode.CONT, b"y" * 40_000, fin=False)]
            raw.append(frame(Opcode.CONT, b"z" * draw(st.sampled_from([5, LIMIT + 5]))))
            log.append(("too_large", 80_000))
    return b"".join(raw), log


def cut(data, random):
    """Cut anywhere; mostly small pieces in small streams, large ones in large."""
    position = 0
    while position < len(data):
        size = random.choice((1, random.randint(1, 12), random.randint(1, 1 + len(data) // 4)))
        yield data[position : position + size]
        position += size


seeds = st.integers(0, 2**32).map(Random)


@given(streams(), seeds)
def test_any_cutting_gives_the_same_messages(stream, random):
    raw, expected = stream
    sink = Sink()
    for chunk in cut(raw, random):
        sink.splitter.feed(chunk)
    same(sink, expected)


@given(streams(), seeds, st.sets(st.integers(1, 12)))
def test_holding_loses_nothing_and_delivers_nothing(stream, random, hold_at):
    raw, expected = stream
    sink = Sink(hold_at=hold_at)
    for chunk in cut(raw, random):
        before = list(sink.log) if sink.splitter.held else None
        sink.splitter.feed(chunk)
        assert before is None or sink.log == before
        if random.random() < 0.3:
            sink.splitter.release()
    while sink.splitter.held:
        sink.splitter.release()
    same(sink, expected)


def test_a_skipped_frame_takes_no_memory():
    sink = Sink()
    raw = frame(Opcode.TEXT, b"a" * 10 * 1024 * 1024)
    for position in range(0, len(raw), 65_536):
        sink.splitter.feed(raw[position : position + 65_536])
        assert sum(map(len, sink.splitter._chunks)) <= 10
    sink.splitter.feed(frame(Opcode.TEXT, b"after"))
    assert sink.log == [("too_large", 10 * 1024 * 1024), ("message", b"after")]


def test_nothing_after_the_close_frame():
    sink = Sink()
    close = frame(Opcode.CLOSE, b"\x03\xe8")
    sink.splitter.feed(frame(Opcode.TEXT, b"1") + close + frame(Opcode.TEXT, b"2"))
    sink.splitter.feed(frame(Opcode.TEXT, b"3"))
    same(sink, [("message", b"1"), ("control", close)])
    assert sink.splitter.closed


def test_closed_here_only_control_frames_pass():
    sink = Sink()
    sink.splitter.feed(frame(Opcode.TEXT, b"begun", fin=False))
    sink.splitter.close()
    ping = frame(Opcode.PING, b"p")
    sink.splitter.feed(ping + frame(Opcode.TEXT, b"2"))
    assert sink.log == [("control", ping)]


@pytest.mark.parametrize(
    "raw",
    [
        Frame(Opcode.TEXT, b"masked").serialize(mask=True),
        b"\xc1\x01a",
        b"\x83\x01a",
        b"\x8b\x01a",
        b"\x09\x01a",
        b"\x89\x7e\x00\x80" + b"a" * 128,
        frame(Opcode.CONT, b"nothing begun"),
        frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.TEXT, b"b"),
        frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.BINARY, b"b" * (LIMIT + 1)),
        b"\x89\x7f" + (2**40).to_bytes(8, "big"),
    ],
    ids=[
        "masked",
        "rsv1",
        "opcode 3",
        "opcode 11",
        "ping in pieces",
        "long ping",
        "cont",
        "nested",
        "nested huge",
        "huge ping",
    ],
)
def test_violations(raw):
    sink = Sink()
    if raw[0] == 0x8B:
        sink.splitter.feed(raw)  # an unknown control opcode is the library's to judge
        assert sink.log == [("control", raw)]
        return
    with pytest.raises(FrameViolationError):
        sink.splitter.feed(raw)
    assert sink.log == []
