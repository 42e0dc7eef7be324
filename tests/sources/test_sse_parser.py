import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sources import sse_parser
from cluster.sources.sse_parser import EndlessEventError, SseParser


def literal(stream: bytes):
    """WHATWG HTML 9.2.6, word by word, on the whole stream at once; (events with ids of their own, reconnection time)."""
    text = stream.decode("utf-8", "replace")
    text = text.removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text)
    lines.pop()  # not ended by a line end
    data, event_type, own_id, retry, events = "", "", "", None, []
    for line in lines:
        if line == "":
            if data != "":
                events.append((event_type or "message", data.removesuffix("\n"), own_id or None))
            data, event_type, own_id = "", "", ""
            continue
        if line.startswith(":"):
            continue
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id":
            if "\0" not in value:
                own_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return events, retry


def parse(chunks):
    parser = SseParser()
    events = []
    for chunk in chunks:
        events += [(e.event, e.data.decode("utf-8", "replace"), e.id) for e in parser.feed(chunk)]
    return events, parser.retry_ms


pieces = st.sampled_from(
    [
        *(b"data", b"event", b"id", b"retry", b"other", b"dat", b"Data", b"data x"),
        *(b":", b": ", b":  ", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"),
        *(b"x", b"12", b"1a", b"\x00", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xc3", b"data: a\n", b"id: 7\n", b"event: e\n"),
        *(b"data: a\n\n", b"data\n\n", b"data:\n\n", b"id\n\n", b"retry: 5\n", b"retry:\n"),
    ]
)


@settings(max_examples=1500)
@given(st.lists(pieces, max_size=40), st.lists(st.integers(0, 200), max_size=30))
def test_equals_the_standard_however_it_is_cut(parts, cuts):
    stream = b"".join(parts)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    assert parse(chunks) == literal(stream)
    assert parse([bytes([byte]) for byte in stream]) == literal(stream)


def test_the_standards_examples():
    assert parse([b"data: YHOO\ndata: +2\ndata: 10\n\n"])[0] == [("message", "YHOO\n+2\n10", None)]
    assert parse([b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"]) == (
        [("message", "first event", "1"), ("message", "second event", None)],
        None,
    )
    assert parse([b"data\n\ndata\ndata\n\ndata:"])[0] == [("message", "", None), ("message", "\n", None)]
    assert parse([b"data:test\n\ndata: test\n\n"])[0] == [("message", "test", None)] * 2


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_cut_at_every_byte(end):
    stream = end.join([b"id: 1", b"data: a", b"data: b", b"", b": c", b"data: d", b"", b""])
    for position in range(len(stream) + 1):
        assert parse([stream[:position], stream[position:]])[0] == [("message", "a\nb", "1"), ("message", "d", None)]
    assert parse([bytes([byte]) for byte in stream]) == literal(stream)


def test_an_id_does_not_stick_to_later_events():
    events = SseParser().feed(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid: 3\ndata: incomplete\n")
    assert [event.id for event in events] == ["1", None, None]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_too_large_event_is_dropped_and_the_stream_goes_on(size):
    parser = SseParser(max_event_bytes=1000)
    lines = b"".join(b"data: %b\n" % (b"y" * 90) for _ in range(20))
    stream = b"id: 1\ndata: %b\n\ndata: ok\n\n%b\ndata: again\n\n" % (b"x" * 5000, lines)
    events, held = [], 0
    for position in range(0, len(stream), size):
        events += parser.feed(stream[position : position + size])
        held = max(held, sum(map(len, parser._tail)) + sum(map(len, parser._data)))
    assert [event.data for event in events] == [b"ok", b"again"]
    assert len(parser.refused) == 2
    assert parser.refused[0] >= 5000
    assert held <= 1000 + size


def feed_often(parser, chunk):
    for _ in range(100):
        parser.feed(chunk)


def test_what_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(sse_parser, "ENDLESS_BYTES", 50_000)
    for chunk in (b"x" * 1000, b"data: xx\n" * 100):
        parser = SseParser(max_event_bytes=2000)
        with pytest.raises(EndlessEventError):
            feed_often(parser, chunk)
