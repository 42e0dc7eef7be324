"""Watchers: which there are, and what of an event stream counts when it is cut."""

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from cluster.verify.contract_oracle import Seen, Truth, Violation
from cluster.verify.figures import Ages
from cluster.verify.watchers import SocketWatcher, StreamWatcher, Wanted, _is_final, wanted_watchers

ROOT = ["v"]


def test_there_are_all_kinds() -> None:
    made = wanted_watchers(24, ROOT, [[*ROOT, "own", n] for n in range(5)])
    assert (made[0].prefix, made[0].server_sent, made[0].habit) == (True, False, "stay")
    assert {(each.server_sent, each.mode, each.prefix) for each in made} == {
        (server_sent, mode, prefix)
        for server_sent in (True, False)
        for mode in ("data", "patch")
        for prefix in (True, False)
        if (mode, prefix) != ("data", False)
    }
    assert {each.habit for each in made if not each.server_sent} == {"stay", "pause", "return"}
    assert {each.habit for each in made if each.server_sent} == {"stay", "return"}
    assert {len(each.roots) for each in made if each.server_sent and not each.prefix} == {3}
    assert {len(each.roots) for each in made if not each.server_sent or each.prefix} == {1}
    assert [len(each.roots) for each in wanted_watchers(12, ROOT, [[*ROOT, "own", 0]])] == [1] * 12
    assert all(each.root == ROOT if each.prefix else each.root[:2] == ["v", "own"] for each in made)


def event(kind: str, event_id: str = "", **members: Any) -> bytes:
    named = b"id: %b\n" % event_id.encode() if event_id else b""
    return b"event: %b\n%bdata: %b\n\n" % (kind.encode(), named, orjson.dumps(members))


def snapshot(key: str, n: int) -> bytes:
    return event("snapshot", key=["v", key], version=n, data={"n": n})


def change(start: int, version: int, event_id: str = "") -> bytes:
    return event("change", event_id, key=["v", "a"], **{"from": start}, version=version, data={"n": version})


async def read(watcher: StreamWatcher, stream: bytes, size: int = 7) -> None:
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)] + [b""]

    async def readany() -> bytes:
        return chunks.pop(0)

    watcher._opened()
    response: Any = SimpleNamespace(content=SimpleNamespace(readany=readany))
    await watcher._read(response)


def stream_watcher() -> StreamWatcher:
    wanted = Wanted(0, ROOT, True, "data", True, "stay")
    return StreamWatcher(wanted, "http://127.0.0.1:1", None, Truth(), Ages(), 1)


async def test_what_has_no_id_behind_it_comes_again_after_a_cut() -> None:
    watcher = stream_watcher()
    begun = snapshot("a", 5) + snapshot("b", 5) + event("snapshot_end", "p1", position="p1")
    await read(watcher, b": alive\n\n" + begun + change(5, 6, "p2") + change(6, 7))
    assert watcher.course.token == "p2"
    assert watcher.course.entries['["v","a"]'] == Seen(6, {"n": 6})
    await read(watcher, change(6, 8, "p3"))
    assert watcher.course.entries['["v","a"]'] == Seen(8, {"n": 8})
    assert (watcher.connections, watcher.resumes) == (2, 1)


async def test_a_snapshot_that_was_cut_begins_anew() -> None:
    watcher = stream_watcher()
    await read(watcher, snapshot("a", 5))
    assert watcher.course.entries == {}
    await read(watcher, snapshot("a", 5) + event("snapshot_end", "p1", position="p1"))
    assert watcher.resumes == 0
    assert watcher.course.is_complete


def stream_of_two() -> StreamWatcher:
    wanted = Wanted(0, ["v", "a"], False, "data", True, "stay", [["v", "b"]])
    return StreamWatcher(wanted, "http://127.0.0.1:1", None, Truth(), Ages(), 1)


async def test_a_reset_of_a_stream_is_about_all_its_keys() -> None:
    watcher = stream_of_two()
    end = event("snapshot_end", position="of-one")
    begun = snapshot("a", 5) + end + snapshot("b", 5) + event("snapshot_end", "p1", position="of-one")
    await read(watcher, begun + change(5, 6, "p2"))
    assert (watcher.course.token, watcher.course.is_complete) == ("p2", True)
    again = event("reset") + snapshot("b", 5) + event("snapshot_end", "p3", position="of-one")
    await read(watcher, again)
    assert (watcher.resumes, watcher.course.is_complete) == (1, False)
    with pytest.raises(Violation, match="something was lost"):
        await read(stream_of_two(), begun + again + change(6, 7, "p4"))


@pytest.mark.parametrize(("temporary", "raised"), [(True, ConnectionError), (False, Violation)])
def test_a_subscription_that_is_refused_for_now_is_asked_for_again(temporary: bool, raised: type[Exception]) -> None:
    wanted = Wanted(0, ROOT, True, "data", False, "stay")
    watcher = SocketWatcher(wanted, "http://127.0.0.1:1", None, Truth(), Ages(), 1)
    error = {"type": "error", "re": watcher._name, "code": "LIMITED", "message": "later", "temporary": temporary}
    with pytest.raises(raised):
        watcher._frame(orjson.dumps([error]))


def test_statuses_after_which_nobody_comes_back() -> None:
    assert [status for status in (200, 401, 403, 404, 429, 500, 503) if _is_final(status)] == [401, 403, 404]
