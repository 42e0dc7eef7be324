"""A machine loses power: any of the pages that were not synced may have reached the disk, and the store is what was synced last, or later.

What the disk has is made here from two images of the file: that of the last sync, over which any pages of a later moment are laid.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from cluster.clock import ManualClock
from cluster.core.role import Standing
from cluster.core.transaction import Stored, StoredEntry
from cluster.errors import StoreError
from cluster.storage import LmdbStore, lmdb_store, synced_state
from cluster.storage.lmdb_store import RENEW_S, RENEWED
from cluster.storage.synced_state import DATA, SYNCED
from tests.storage.test_stores import entry, transaction

PAGE = 4096


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Begins another life of the machine."""
    lives = iter(range(1_000))

    def begin() -> None:
        life = f"life-{next(lives)}"
        monkeypatch.setattr(synced_state, "boot_id", lambda: life)
        monkeypatch.setattr("cluster.storage.lmdb_store.boot_id", lambda: life)

    begin()
    return begin


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The steady clock."""
    made = ManualClock()
    monkeypatch.setattr(lmdb_store.time, "monotonic", lambda: made.now_ms() / 1000.0)
    return made


class Recording(LmdbStore):
    """Calls after each sync: those that come before the map grows too."""

    on_sync: Callable[[], None]

    def _write_through(self) -> None:
        super()._write_through()
        self.on_sync()


class Machine:
    """Commits at random, and remembers what was synced."""

    def __init__(self, directory: Path, seed: int, *, map_bytes: int = 16 * 1024 * 1024) -> None:
        self.directory = directory
        self.map_bytes = map_bytes
        self.random = random.Random(seed)
        self.number = 0
        self.synced: dict[str, int] = {}
        self.start()

    def start(self, sync: str = "window") -> None:
        """Begin, with what was synced."""
        self.rows = dict(self.synced)
        Recording.on_sync = self._on_sync
        self.store = Recording(self.directory, sync=sync, map_bytes=self.map_bytes)
        assert rows(self.store.load()) == self.synced

    def _on_sync(self) -> None:
        self.synced = dict(self.rows)
        if (self.directory / SYNCED).exists():
            self.images = (self.directory / DATA).read_bytes(), (self.directory / SYNCED).read_bytes()

    def commit(self) -> None:
        self.number += 1
        entries: dict[str, StoredEntry | None] = {}
        rows = dict(self.rows)
        for key in self.random.sample(range(200), self.random.randint(1, 12)):
            name = f"k{key}"
            if self.random.random() < 0.2:
                entries[name] = None
                rows.pop(name, None)
            else:
                length = self.random.choice((10, 300, 300, 900, 9_000))
                entries[name] = entry(name, b'"' + b"x" * length + b'"', self.number)
                rows[name] = self.number
        self.store.commit(transaction(self.number, entries=entries, cursors={"s": (1, self.number)}))
        self.rows = rows

    def lose_power(self) -> None:
        """Have the file be what was synced, with any of what came later."""
        later = (self.directory / DATA).read_bytes()
        self.store.close()
        before = self.images[0].ljust(len(later), b"\0")
        pages = [n for n in range(len(later) // PAGE) if before[n * PAGE :][:PAGE] != later[n * PAGE :][:PAGE]]
        image = bytearray(before)
        for page in self.random.choice(
            (pages, pages[:2], pages[: len(pages) // 2], self.random.sample(pages, len(pages) // 2), pages[2:])
        ):
            image[page * PAGE : page * PAGE + PAGE] = later[page * PAGE : page * PAGE + PAGE]
        (self.directory / DATA).write_bytes(image)
        (self.directory / SYNCED).write_bytes(self.images[1])
        (self.directory / "lock.mdb").unlink()


def rows(stored: Stored | None) -> dict[str, int]:
    return {} if stored is None else {each.key: each.version for each in stored.entries}


@pytest.mark.parametrize("seed", range(20))
def test_what_was_synced_is_there_and_nothing_of_what_came_later(
    tmp_path: Path, restart: Callable[[], None], seed: int
) -> None:
    machine = Machine(tmp_path / "store", seed, map_bytes=256 * 1024)  # which grows
    for _ in range(3):
        for _ in range(machine.random.randint(0, 6)):
            for _ in range(machine.random.randint(0, 8)):
                machine.commit()
            machine.store.sync()
        for _ in range(machine.random.randint(0, 30)):
            machine.commit()
        machine.lose_power()
        restart()
        machine.start()
    machine.store.close()


@pytest.mark.parametrize("noted", ["nothing", "a part", "all"])
def test_power_may_go_while_what_was_synced_is_noted(tmp_path: Path, restart: Callable[[], None], noted: str) -> None:
    machine = Machine(tmp_path / "store", 1)
    for _ in range(4):
        machine.commit()
        machine.store.sync()
    before, old = dict(machine.synced), machine.images[1]
    machine.commit()
    machine.store.sync()
    data, new = machine.images
    changed = next(n for n in range(0, len(new), 4096) if old[n : n + 4096] != new[n : n + 4096])
    torn = new[: changed + 100] + old[changed + 100 :]
    machine.images = (data, {"nothing": old, "a part": torn, "all": new}[noted])
    for _ in range(10):
        machine.commit()
    machine.lose_power()
    restart()
    machine.store = LmdbStore(machine.directory)
    assert rows(machine.store.load()) == (machine.synced if noted == "all" else before)
    machine.store.close()


def test_what_a_killed_process_has_committed_counts_where_the_machine_lives_on(
    tmp_path: Path, restart: Callable[[], None]
) -> None:
    machine = Machine(tmp_path / "store", 2)
    machine.commit()
    machine.store.sync()
    machine.commit()
    machine.store.close()
    assert machine.rows != machine.synced
    for held in (machine.rows, machine.synced):
        store = LmdbStore(machine.directory)
        assert rows(store.load()) == held
        store.close()
        restart()


@pytest.mark.parametrize(
    "fault", [lmdb.Error("mdb_env_sync: Input/output error"), OSError(28, "No space left on device")]
)
def test_a_disk_that_takes_nothing_keeps_nobody_from_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    machine = Machine(tmp_path / "store", 5)
    machine.commit()
    machine.store.close()

    def broken(*_: object) -> None:
        raise fault

    store = LmdbStore(machine.directory)
    with monkeypatch.context() as failing:
        failing.setattr(synced_state.SyncedState, "note", broken)
        assert rows(store.load()) == machine.rows
        with pytest.raises(StoreError, match=r"Input/output error|No space left"):
            store.commit(transaction(9, entries={"a": entry("a")}))
    store.commit(transaction(9, entries={"a": entry("a")}))
    store.sync()
    assert rows(store.load()).keys() == {*machine.rows, "a"}
    store.close()


def test_a_store_of_which_nothing_was_synced_is_begun_anew(tmp_path: Path, restart: Callable[[], None]) -> None:
    machine = Machine(tmp_path / "store", 3)
    machine.commit()
    machine.lose_power()
    restart()
    store = LmdbStore(machine.directory)
    assert store.load() is None
    store.close()


@pytest.mark.parametrize("sync", ["always", "never"])
def test_who_writes_otherwise_begins_with_what_was_synced_and_goes_on_without_notes(
    tmp_path: Path, restart: Callable[[], None], sync: str
) -> None:
    machine = Machine(tmp_path / "store", 4)
    machine.commit()
    machine.store.sync()
    for _ in range(9):
        machine.commit()
    machine.lose_power()
    restart()
    machine.start(sync)
    machine.commit()
    machine.store.sync()
    machine.store.close()
    assert not (machine.directory / SYNCED).exists()
    restart()
    store = LmdbStore(machine.directory)
    assert rows(store.load()) == machine.rows
    store.close()


def test_pages_are_used_again_once_a_later_state_is_synced(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    data = b'"' + b"x" * 50_000 + b'"'
    sizes = []
    for number in range(60):
        store.commit(transaction(number, entries={"a": entry("a", data, number)}))
        store.sync()
        sizes.append(store.size())
    assert sizes[-1] == sizes[10]
    store.close()


class Environment:
    """LMDB's, on a disk that takes no sync, and no copy either if `is_full`."""

    def __init__(self, environment: Any, *, is_full: bool = False) -> None:
        self._environment = environment
        self.is_full = is_full

    def sync(self, _: bool) -> None:
        raise lmdb.Error("mdb_env_sync: Input/output error")

    def copy(self, path: str) -> None:
        self._environment.copy(path)
        if self.is_full:
            raise lmdb.Error("mdb_env_copy: No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)


def failed(machine: Machine, monkeypatch: pytest.MonkeyPatch, *, is_full: bool = False) -> Environment:
    """Have a sync fail."""
    made = Environment(machine.store._env, is_full=is_full)
    monkeypatch.setattr(machine.store, "_env", made)
    with pytest.raises(StoreError, match="Input/output error"):
        machine.store.sync()
    return made


def test_a_disk_that_did_not_take_what_was_synced_is_believed_when_all_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    machine = Machine(tmp_path / "store", 6)
    for _ in range(5):
        machine.commit()
    machine.store.sync()
    machine.commit()
    failed(machine, monkeypatch)
    file = (machine.directory / DATA).stat().st_ino
    with pytest.raises(StoreError, match="Input/output error"):
        machine.store.sync()
    machine.commit()
    assert (machine.directory / DATA).stat().st_ino != file, "every page is of the new one"
    machine.store.sync()
    held = dict(machine.rows)
    for _ in range(20):
        machine.commit()
    machine.lose_power()
    restart()
    store = LmdbStore(machine.directory)
    assert rows(store.load()) == held
    store.close()


def test_while_the_disk_takes_no_new_file_commits_go_on_and_nothing_counts_as_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    machine = Machine(tmp_path / "store", 7)
    machine.commit()
    machine.store.sync()
    disk = failed(machine, monkeypatch, is_full=True)
    for _ in range(10):
        machine.commit()
        with pytest.raises(StoreError, match="No space left on device"):
            machine.store.sync()
    assert not (machine.directory / RENEWED).exists(), "what was written of it takes no room"
    disk.is_full = False
    machine.commit()
    with pytest.raises(StoreError, match="No space left on device"):
        machine.store.sync()
    clock.advance(RENEW_S * 1000.0)
    machine.store.stand(Standing(1, is_whole=True))
    machine.store.sync()
    assert rows(machine.store.load()) == machine.rows
    machine.store.close()


def test_a_file_that_cannot_be_put_in_its_place_yet_is_put_there_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    machine = Machine(tmp_path / "store", 8)
    machine.commit()
    failed(machine, monkeypatch)

    def broken(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(lmdb_store, "SyncedState", broken)
        with pytest.raises(StoreError):
            machine.commit()
    clock.advance(RENEW_S * 1000.0)
    machine.commit()
    machine.store.sync()
    assert rows(machine.store.load()) == machine.rows
    machine.store.close()


def test_a_note_that_could_not_be_written_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    machine = Machine(tmp_path / "store", 5)
    machine.commit()

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(synced_state, "_sync", broken)
        with pytest.raises(StoreError, match="Input/output error"):
            machine.store.sync()
    assert (machine.directory / SYNCED).stat().st_size == 8192, "there is room for it, whatever else fills the disk"
    machine.store.sync()
    held = dict(machine.rows)
    machine.commit()
    machine.lose_power()
    restart()
    store = LmdbStore(machine.directory)
    assert rows(store.load()) == held
    store.close()


def test_meta_pages_are_where_they_are_sought(tmp_path: Path) -> None:
    environment = lmdb.open(str(tmp_path))
    for _ in range(3):
        with environment.begin(write=True) as writing:
            writing.put(b"a", b"b")
        with environment.begin() as reading:
            handle = os.open(tmp_path / DATA, os.O_RDONLY)
            page = reading.id() % 2 * environment.stat()["psize"]
            assert synced_state.txnid_of(os.pread(handle, synced_state.META_BYTES, page)) == reading.id()
            os.close(handle)
    environment.close()
    assert synced_state.txnid_of(bytes(200)) == 0
