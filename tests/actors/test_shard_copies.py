"""A shard's copies for backups: one at a time, by steps that may come twice."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.actors.shard_copies import ShardCopies
from cluster.errors import ErrorCode
from cluster.observability.logs import Log
from cluster.storage import LmdbStore
from cluster.storage.lmdb_store import COPY
from cluster.wire.backup import Done, Piece, Refused
from tests.storage.test_stores import entry, transaction


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    made = LmdbStore(tmp_path / "shard-0")
    made.commit(transaction(entries={"a": entry("a")}))
    yield made
    made.close()


@pytest.fixture
async def copies() -> ShardCopies:
    return ShardCopies(0, Log(component="shard-0"), lambda: 5.0, lambda: False)


async def test_a_backup_from_its_begin_to_its_end(store: LmdbStore, copies: ShardCopies) -> None:
    for step in ("begin", "begin", "take", "settle"):
        assert await copies.step(store, step, "b", 0) == Done()  # type: ignore[arg-type]
    piece = await copies.step(store, "piece", "b", 0)
    assert isinstance(piece, Piece)
    assert piece.whole is not None
    assert (piece.whole.digest, piece.whole.taken_ms) == (store.content_digest(), 5.0)
    assert await copies.step(store, "piece", "b", 0) == piece
    assert await copies.step(store, "drop", "b", 0) == Done()
    assert await copies.step(store, "drop", "b", 0) == Done()
    assert not (store.directory / COPY).exists()


async def test_windows_go_on_while_tables_are_read(
    store: LmdbStore, copies: ShardCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_read = threading.Event(), threading.Event()
    read: list[str] = []

    def rows(*tables: Any) -> Any:
        read.extend(tables)
        reading.set()
        assert may_read.wait(5.0), "nobody else can do anything meanwhile"
        return iter(())

    monkeypatch.setattr(store, "rows", rows)
    for step, table in (("begin", "checkpoint"), ("settle", "mutation")):
        making = asyncio.create_task(copies.step(store, step, "b", 0))  # type: ignore[arg-type]
        again = asyncio.create_task(copies.step(store, step, "b", 0))  # type: ignore[arg-type]
        await asyncio.to_thread(reading.wait, 5.0)
        store.commit(transaction(entries={step: entry(step)}))
        growing = asyncio.create_task(asyncio.to_thread(store._grow))
        may_read.set()
        assert [await making, await again] == [Done(), Done()]
        await growing
        assert table in read
        reading.clear()
        may_read.clear()
    may_read.set()
    await copies.step(store, "drop", "b", 0)


async def test_one_is_made_at_a_time(store: LmdbStore, copies: ShardCopies) -> None:
    await copies.step(store, "begin", "b", 0)
    refused = await copies.step(store, "begin", "c", 0)
    assert isinstance(refused, Refused)
    assert refused.code == ErrorCode.CONFLICT
    await copies.step(store, "drop", "c", 0)  # which is none of its business
    assert isinstance(await copies.step(store, "begin", "c", 0), Refused)
    await copies.step(store, "drop", "b", 0)
    assert await copies.step(store, "begin", "c", 0) == Done()
    await copies.step(store, "drop", "c", 0)


async def test_a_new_life_knows_nothing_of_it(store: LmdbStore, copies: ShardCopies) -> None:
    refused = await copies.step(store, "take", "b", 0)
    assert refused == Refused(ErrorCode.UNAVAILABLE, "shard-0 has begun anew since the backup began")
    await copies.step(store, "drop", "b", 0)


async def test_without_a_store_there_is_nothing_to_copy(copies: ShardCopies) -> None:
    refused = await copies.step(None, "begin", "b", 0)
    assert refused == Refused(ErrorCode.UNSUPPORTED, "shard-0 keeps nothing on a disk (storage.path)")


@pytest.mark.parametrize("since", ["begin", "take", "settle"])
async def test_of_a_store_that_lacks_what_was_acknowledged_none_is_made(store: LmdbStore, since: str) -> None:
    is_behind = False
    copies = ShardCopies(0, Log(component="shard-0"), lambda: 5.0, lambda: is_behind)
    for step in ("begin", "take", "settle"):
        is_behind = is_behind or step == since
        answer = await copies.step(store, step, "b", 0)  # type: ignore[arg-type]
        if is_behind:
            assert isinstance(answer, Refused)
            assert answer.code == ErrorCode.UNAVAILABLE
            assert answer.message.startswith("shard-0: its store lacks what could not be written")
        else:
            assert answer == Done()
    assert await copies.step(store, "drop", "b", 0) == Done()
    assert not (store.directory / COPY).exists()
    is_behind = False
    assert await copies.step(store, "begin", "c", 0) == Done(), "the next may be begun"
    await copies.step(store, "drop", "c", 0)


async def test_a_disk_that_takes_nothing_ends_it(store: LmdbStore, copies: ShardCopies) -> None:
    await copies.step(store, "begin", "b", 0)
    (store.directory / COPY).write_text("in the way")
    refused = await copies.step(store, "take", "b", 0)
    assert isinstance(refused, Refused)
    assert "File exists" in refused.message
    assert await copies.step(store, "begin", "c", 0) == Done(), "the next may be begun"
    await copies.step(store, "drop", "c", 0)


async def test_one_that_nobody_asks_for_goes(store: LmdbStore, copies: ShardCopies) -> None:
    await copies.step(store, "begin", "b", 0)
    await copies.step(store, "take", "b", 0)
    due = copies._timer.when()  # type: ignore[union-attr]
    await copies.step(store, "begin", "c", 0)
    assert copies._timer.when() == due, "others do not keep it alive"  # type: ignore[union-attr]
    copies._forget()
    assert not (store.directory / COPY).exists()
    assert isinstance(await copies.step(store, "piece", "b", 0), Refused)
    await copies.step(store, "drop", "b", 0)
