import orjson

from cluster.core.messages import Change, EntryView, Meta
from cluster.core.replica import Replica


def held() -> Replica:
    replica = Replica('["a"]', 2)
    replica.replace(EntryView('["a"]', 5, b'{"n":1}', 10, "success", "idle", stale_at=100.0))
    return replica


def test_it_becomes_what_a_snapshot_says() -> None:
    view = EntryView('["a"]', 6, b"2", 20, "error", "fetching", True, 90.0, ("UPSTREAM_ERROR", "no"))
    replica = held()
    replica.body = b"old"
    replica.replace(view)
    assert replica.view() == view
    assert replica.body is None
    assert (replica.shard, replica.parsed) == (2, ["a"])


def test_it_takes_changes_as_data_or_patch() -> None:
    replica = held()
    replica.heed(Meta('["a"]', "error", "fetching", True, 10.0, ("X", "y"), True))
    replica.body = b"old"
    replica.take(Change('["a"]', 5, 6, None, b'[{"op":"add","path":"/m","value":2}]', 1, 30, 200.0))
    assert replica.value is not None
    assert orjson.loads(replica.value.json()) == {"n": 1, "m": 2}
    assert (replica.version, replica.data_updated_at, replica.stale_at) == (6, 30, 200.0)
    assert (replica.status, replica.fetch_status, replica.is_invalidated, replica.error) == (
        "success",
        "idle",
        False,
        None,
    )
    assert replica.body is None
    replica.take(Change('["a"]', 6, 9, b"7", None, 1, 40))
    assert (replica.value.json(), replica.version, replica.stale_at) == (b"7", 9, None)


def test_staleness() -> None:
    replica = held()
    assert not replica.is_stale(99.0)
    assert replica.is_stale(100.0)
    replica.heed(Meta('["a"]', "success", "idle", False, None, None, False))
    assert not replica.is_stale(1e15)
    assert Replica('["a"]', 0).is_stale(0.0)
