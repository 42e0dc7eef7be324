"""An entry as a shard holds it, as readers see it, and as its memory counts it."""

from typing import Any

import pytest
from msgspec.structs import replace

from cluster.core import template
from cluster.core.declared_query import DeclaredQuery
from cluster.core.entry import Value
from cluster.core.memory import DECODED, ENTRY_BYTES
from cluster.core.messages import EntryView, KeyInfo
from cluster.core.query_cache import CANCELLED
from cluster.core.query_key import canonical
from cluster.core.shard_entry import UNDECLARED, ShardEntry, error_of
from cluster.errors import UnavailableError, UpstreamError

KEY = canonical(["a", 7])
QUERY = DeclaredQuery(template.parse(["a", "{id}"]), "api", template.parse("/a/{id}"), stale_time=500.0, gc_time_ms=9.0)


def entry(json: bytes | None = None, **members: Any) -> ShardEntry:
    made = ShardEntry(KEY, QUERY)
    if json is not None:
        made.value, made.status, made.data_updated_at, made.version = Value.from_json(json), "success", 1_000.0, 41
    for name, value in members.items():
        setattr(made, name, value)
    return made


def test_a_new_one_has_nothing_to_show() -> None:
    assert entry().view(is_offline=False) == EntryView(KEY, 0, None, 0, "pending", "idle", False, 0.0)


def test_what_readers_see() -> None:
    held = entry(b"[1]", origin="fetch:api", fetched_at=990.9)
    expected = EntryView(KEY, 41, b"[1]", 1_000, "success", "idle", False, 1_500.0, None, True, "fetch:api", 990)
    assert held.view(is_offline=True) == expected


def test_a_failure_is_seen_beside_the_data() -> None:
    held = entry(
        b"[1]",
        status="error",
        error=UpstreamError("no"),
        is_invalidated=True,
        cause="fetch:api failed",
        cause_at=1_200.5,
    )
    view = held.view(is_offline=False)
    assert (view.data, view.error, view.stale_at) == (b"[1]", ("UPSTREAM_ERROR", "no"), 0.0)
    assert view.doubt == ("fetch:api failed", 1_200)


def test_what_is_not_to_last_goes_to_another_shard_all_the_same() -> None:
    assert entry().moved() is None
    held = entry(b"[1]", query=replace(QUERY, persist=False))
    moved, stored = held.moved(), held.stored()
    assert moved is not None
    assert stored is not None
    assert (moved.data, moved.version, stored.data, stored.version) == (b"[1]", 41, b"", 41)


def test_there_is_a_doubt_only_as_long_as_it_is_invalidated() -> None:
    held = entry(b"1", cause="api:invalidate", cause_at=1_200.0)
    assert held.doubt is None
    held.is_invalidated = True
    assert held.doubt == ("api:invalidate", 1_200)


def test_a_row_of_a_listing() -> None:
    held = entry(b"1")
    assert held.info(1_499.0, 3) == KeyInfo(KEY, 41, "success", False, 3)
    assert held.info(1_500.0, 0) == KeyInfo(KEY, 41, "success", True, 0)


def test_one_of_a_query_has_its_options_and_can_be_had_again() -> None:
    held = entry()
    assert (held.options, held.is_refetchable) == (QUERY.options, True)
    assert (held.options.own_stale_time, held.options.own_gc_time) == (500.0, 9.0)


def test_another_stays_until_somebody_removes_it() -> None:
    other = ShardEntry(KEY, None)
    assert (other.options, other.is_refetchable) == (UNDECLARED, False)
    assert (other.collect_at, other.stale_at) == (None, 0.0)
    other.value = Value.from_json(b"1")
    assert other.stale_at is None
    other.idle_since = 0.0
    assert other.collect_at is None


def test_bytes() -> None:
    assert entry().bytes_held() == ENTRY_BYTES + len(KEY)
    held = entry(b"[1,2,3]")
    assert held.bytes_held() == ENTRY_BYTES + len(KEY) + 7
    assert held.value is not None
    held.value.mutated([*held.value.object(), 4])
    assert held.bytes_held() == ENTRY_BYTES + len(KEY) + 9 * (1 + DECODED)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, None),
        (UpstreamError("no answer", status=503), ("UPSTREAM_ERROR", "no answer")),
        (UnavailableError("later"), ("UNAVAILABLE", "later")),
        (CANCELLED, ("UPSTREAM_ERROR", "the fetch was cancelled")),
    ],
)
def test_what_a_fetch_failed_with(error: Any, told: tuple[str, str] | None) -> None:
    assert error_of(error) == told
