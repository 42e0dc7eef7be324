"""Messages made as text are the JSON that the protocol promises, framed for sockets and event streams."""

from typing import Any

import orjson
import pytest

from cluster.core import protocol
from cluster.core.messages import EntryView
from cluster.errors import ConflictError, ErrorCode, UnavailableError

KEY = b'["k",{"a":"\xc3\xa4\\""}]'


def view(**changes: Any) -> EntryView:
    members: dict[str, Any] = {
        "key": KEY.decode(),
        "version": 7,
        "data": b'{"n": 1}',
        "data_updated_at": 1000,
        "status": "success",
        "fetch_status": "idle",
        **changes,
    }
    return EntryView(**members)


def body(message: protocol.Typed) -> dict[str, Any]:
    members: dict[str, Any] = orjson.loads(b"{%b}" % message[1])
    return {"type": message[0].decode(), **members}


PARSED = ["k", {"a": 'ä"'}]


class TestMessages:
    def test_change(self) -> None:
        assert body(protocol.change(KEY, 3, 7, b"[1]", None, 2)) == {
            "type": "change", "key": PARSED, "from": 3, "version": 7, "data": [1], "coalesced": 2,
        }  # fmt: skip
        assert body(protocol.change(KEY, 3, 7, None, b"[]", 1)) == {
            "type": "change", "key": PARSED, "from": 3, "version": 7, "patch": [], "coalesced": 1,
        }  # fmt: skip

    def test_snapshot(self) -> None:
        assert body(protocol.snapshot(view(), 2000.0)) == {
            "type": "snapshot", "key": PARSED, "version": 7, "data": {"n": 1}, "data_updated_at": 1000,
            "status": "success", "is_stale": False, "is_offline": False,
        }  # fmt: skip

    def test_a_snapshot_without_data_has_none(self) -> None:
        told = body(protocol.snapshot(view(data=None, status="error", error=("TIMEOUT", 'say "x"')), 2000.0))
        assert "data" not in told
        assert told["is_stale"] is True
        assert told["error"] == {"code": "TIMEOUT", "message": 'say "x"', "temporary": True}

    def test_null_is_data(self) -> None:
        told = body(protocol.snapshot(view(data=b"null"), 2000.0))
        assert told["data"] is None
        assert told["is_stale"] is False

    def test_entry(self) -> None:
        assert orjson.loads(protocol.entry(view(is_invalidated=True, stale_at=2000.0), 2000.0)) == {
            "key": PARSED, "data": {"n": 1}, "version": 7, "data_updated_at": 1000, "status": "success",
            "fetch_status": "idle", "is_stale": True, "is_invalidated": True, "is_offline": False,
            "origin": {"kind": None, "at": 1000, "stale_at": 2000},
        }  # fmt: skip
        told = orjson.loads(protocol.entry(view(data=None, error=("UPSTREAM_ERROR", "m")), 2000.0))
        assert (told["data"], told["error"]["temporary"]) == (None, True)

    @pytest.mark.parametrize(("stale_at", "stale"), [(None, False), (2001.0, False), (2000.0, True), (0.0, True)])
    def test_stale_from_its_time_on(self, stale_at: float | None, stale: bool) -> None:
        assert protocol.is_stale(view(stale_at=stale_at), 2000.0) is stale

    def test_the_small_ones(self) -> None:
        assert body(protocol.snapshot_end(b"p1.0-1-2")) == {"type": "snapshot_end", "position": "p1.0-1-2"}
        assert body(protocol.removed(KEY, 9)) == {"type": "removed", "key": PARSED, "version": 9}
        assert body(protocol.invalidated(KEY)) == {"type": "invalidated", "key": PARSED}
        assert body(protocol.reset(KEY)) == {"type": "reset", "key": PARSED}
        assert body(protocol.reset(None)) == {"type": "reset"}
        assert orjson.loads(protocol.message("pong", re="x")) == {"type": "pong", "re": "x"}

    def test_errors(self) -> None:
        assert protocol.error_of(UnavailableError("later")) == {
            "code": "UNAVAILABLE", "message": "later", "temporary": True,
        }  # fmt: skip
        assert protocol.error_of(ConflictError("lost", details={"current": 1})) == {
            "code": "VERSION_CONFLICT", "message": "lost", "temporary": False, "details": {"current": 1},
        }  # fmt: skip
        assert protocol.error_body(ErrorCode.LIMITED, "m", temporary=False)["temporary"] is False


MESSAGES = [
    protocol.change(KEY, 1, 2, b'{"t":\n\r"x"}', None, 1),
    protocol.removed(KEY, 3),
    protocol.reset(None),
]


class TestFrames:
    @pytest.mark.parametrize("token", [None, b"p1.0-1-2"])
    @pytest.mark.parametrize("sub", [b'"s"', b"7"])
    def test_over_a_socket_each_names_its_subscription(self, sub: bytes, token: bytes | None) -> None:
        frame = orjson.loads(b"[%b]" % protocol.websocket(sub, protocol.bodies(MESSAGES), token))
        expected = [{"sub": orjson.loads(sub), **body(message)} for message in MESSAGES]
        if token is not None:
            expected.append({"sub": orjson.loads(sub), "type": "position", "token": token.decode()})
        assert frame == expected

    def test_a_position_alone(self) -> None:
        assert orjson.loads(protocol.websocket(b"1", [], b"p1.0-1-2")) == {
            "sub": 1, "type": "position", "token": "p1.0-1-2",
        }  # fmt: skip

    def test_as_server_sent_events(self) -> None:
        text = protocol.event_stream(protocol.events(MESSAGES), b"p1.0-1-2")
        assert text.endswith(b"\n\n")
        blocks = text[:-2].split(b"\n\n")
        assert len(blocks) == 3
        told = []
        for block in blocks:
            lines = dict(line.split(b": ", 1) for line in block.split(b"\n"))
            told.append({"type": lines[b"event"].decode(), **orjson.loads(lines[b"data"])})
        assert told == [body(message) for message in MESSAGES]
        assert blocks[-1].endswith(b"\nid: p1.0-1-2")
        assert b"id:" not in b"".join(blocks[:-1])

    def test_without_a_token_they_are_only_joined(self) -> None:
        parts = protocol.events(MESSAGES)
        assert protocol.event_stream(parts, None) == b"".join(parts)
