"""The stores of a shard on this node: which there are, and which one an actor takes.

Each has an id of its own, behind the shard's name in that of its directory: `<path>/<cluster>/shard-3-<id>`. A node may have several: of two
actors, or of an earlier time when the shard was here. One is taken with its lock, so two actors never have the same.

What must not live here: which of them counts (`core.shard_roles`).
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cluster.core.role import Standing
from cluster.core.transaction import Stored
from cluster.errors import StoreError
from cluster.storage.backup_directory import sync_names
from cluster.storage.lmdb_store import LOCK_POLL_S, UNREADABLE, LmdbStore, require_readable, set_aside

ADOPTED = "adopted"
"""File in a store that was put there from outside, and is on no record yet."""


LEFT = ".left"
"""What a shard has gone on without is kept under its name with this behind it; of a shard the last only."""


class Tidied(NamedTuple):
    """What became of the stores that nobody had taken."""

    removed: list[str]
    """Ids of those that held nothing of their own."""
    left: list[Path]
    """Where those are kept of which that is not known."""


class Taken(NamedTuple):
    """A store that is this process's own."""

    id: str
    store: LmdbStore
    standing: Standing
    come_to: tuple[int, int]
    """(epoch, offset)."""


class ShardStores:
    """See the module."""

    def __init__(self, root: Path, shard: str, new_id: Callable[[], str], *, sync: str = "window") -> None:
        """`root`: of the cluster; `new_id`: makes ids; `sync`: as `storage.sync`."""
        self._root = root
        self._shard = shard
        self._new_id = new_id
        self._sync = sync
        self.unreadable = ""
        """Why the last one that was set aside cannot be read."""
        self._aside: set[Path] = set()

    def ids(self) -> list[str]:
        """Return the ids of all that are here."""
        prefix = f"{self._shard}-"
        found = (path.name.removeprefix(prefix) for path in self._root.glob(f"{prefix}*") if path.is_dir())
        return sorted(each for each in found if each.isalnum())

    def directory(self, store: str) -> Path:
        """Return where a store is."""
        return self._root / f"{self._shard}-{store}"

    def adopt(self) -> str:
        """Give a store without an id, of an earlier version or restored from a backup, one. Returns that of the last such that is on no record yet; "": there is none.

        Raises:
            StoreError: it cannot be renamed.
        """
        old = self._root / self._shard
        marked = [store for store in self.ids() if self._mark(store).exists()]
        if not old.is_dir():
            return max(marked, key=lambda store: self._mark(store).stat().st_mtime_ns, default="")
        store = self._new_id()
        try:
            (old / ADOPTED).touch()
            sync_names(old)
            old.rename(self.directory(store))
            sync_names(self._root)
        except OSError as error:
            raise StoreError(f"{old}: {error.strerror}") from error
        for earlier in marked:
            self.recorded(earlier)
        return store

    def _mark(self, store: str) -> Path:
        return self.directory(store) / ADOPTED

    def recorded(self, store: str) -> None:
        """A store is on record: from now on it counts as that says.

        Raises:
            StoreError: its mark cannot be removed.
        """
        try:
            self._mark(store).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._mark(store)}: {error.strerror}") from error

    def take(self, wanted: str = "", wait_s: float = 0.0) -> Taken | None:
        """Take the store that is wanted, else the one that is whole under the highest epoch and has come furthest; None: there is none.

        A store that cannot be read is set aside. `wait_s`: how long to wait where another process has all of them.

        Raises:
            StoreError: the directory cannot be used.
        """
        give_up = time.monotonic() + wait_s
        while True:
            taken, is_held = self._best(wanted)
            if taken is not None or not is_held or time.monotonic() > give_up:
                return taken
            time.sleep(LOCK_POLL_S)

    def _best(self, wanted: str) -> tuple[Taken | None, bool]:
        best: Taken | None = None
        is_held = False
        for store in [wanted] if wanted in self.ids() else self.ids():
            try:
                require_readable(self.directory(store))
                opened = LmdbStore(self.directory(store), sync=self._sync)
            except StoreError as error:
                if isinstance(error.__cause__, BlockingIOError):
                    is_held = True
                    continue
                if isinstance(error.__cause__, OSError):
                    raise
                self._set_aside(store, error)
                continue
            try:
                found = opened.standing()
            except StoreError as error:
                opened.close()
                self._set_aside(store, error)
                continue
            taken = Taken(store, opened, *(found or (Standing(0, is_whole=False), (0, 0))))
            if best is None or _rank(taken) > _rank(best):
                best, taken = taken, best
            if taken is not None:
                taken.store.close()
        return best, is_held

    def _set_aside(self, store: str, error: StoreError) -> None:
        """Keep a store that cannot be read for somebody to look at."""
        self.unreadable = error.message
        self._keep(store, UNREADABLE)

    def _keep(self, store: str, suffix: str) -> Path:
        """Keep a store under another name, in place of what earlier lives have kept so."""
        for old in set(self._root.glob(f"{self._shard}-*{suffix}")) - self._aside:
            shutil.rmtree(old, ignore_errors=True)
        aside = set_aside(self.directory(store), suffix)
        self._aside.add(aside)
        return aside

    def load(self, taken: Taken) -> Stored | None:
        """Return what a store holds; None: nothing, or it cannot be read and was set aside, and then it is closed."""
        try:
            return taken.store.load()
        except StoreError as error:
            taken.store.close()
            self._set_aside(taken.id, error)
            return None

    def begin(self) -> Taken:
        """Begin a new store.

        Raises:
            StoreError: the directory cannot be used.
        """
        store = self._new_id()
        try:
            begun = LmdbStore(self.directory(store), sync=self._sync)
        except StoreError as error:
            if isinstance(error.__cause__, BlockingIOError):
                return self.begin()  # whoever looks for a store was quicker
            shutil.rmtree(self.directory(store), ignore_errors=True)
            raise
        return Taken(store, begun, Standing(0, is_whole=False), (0, 0))

    def tidy(self, since: int) -> Tidied:
        """Remove what nobody has taken and is in what the shard has now (`core.shard_roles.Record.since`), and set aside what may not be.

        Raises:
            StoreError: one cannot be set aside.
        """
        tidied = Tidied([], [])
        for store in self.ids():
            try:
                require_readable(self.directory(store))
                held = LmdbStore(self.directory(store), sync=self._sync)
            except StoreError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    self._set_aside(store, error)
                continue
            try:  # it is not closed before: somebody might take it
                standing, come_to = held.standing() or (Standing(0, is_whole=False), (0, 0))
                if self._mark(store).exists() or (standing.is_whole and standing.epoch < since and come_to > (0, 0)):
                    tidied.left.append(self._keep(store, LEFT))
                else:
                    shutil.rmtree(self.directory(store), ignore_errors=True)
                    tidied.removed.append(store)
            except StoreError as error:
                self._set_aside(store, error)
            finally:
                held.close()
        return tidied


def _rank(taken: Taken) -> tuple[bool, int, tuple[int, int]]:
    return (taken.standing.is_whole, taken.standing.epoch, taken.come_to)
