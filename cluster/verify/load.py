"""Load: writers and readers over HTTP, each waiting for its answer before it goes on, and what they know of their keys.

A write that gets no answer may have happened or yet happen: its key is left alone from then on, and either is right.

What must not live here: asking (`asker`), judging (`contract_oracle`), what is chosen (`plan`).
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from cluster.verify.asker import PAGE_KEYS, Answer, Asker, refusal
from cluster.verify.contract_oracle import Rule, Seen, Truth, Violation
from cluster.verify.plan import Choices, Settings
from cluster.verify.write_oracle import Begun, Owned, Shared, check_repeat, stale_write_taken

REST_S = 20.0
"""For an answer when all is over."""
CLEAN_S = 60.0
"""For all of it: a cluster that is gone is not waited for longer."""
CLEANINGS = 5
CLEAN_PAUSE_S = 0.5
"""For a write that was on its way when its client was stopped."""
SHARED_KEYS = 3
"""Of each kind."""
READERS = 2
READ_PAUSE_S = 0.05
LIST_PAUSE_S = 0.1
"""Between looks at everything, where it is one page: what is lost is seen before it is written over."""
MUTATION_PAUSE_S = 0.2


class Load(Asker):
    """See the module."""

    def __init__(self, url: str, token: str | None, settings: Settings, root: list[Any], truth: Truth) -> None:
        super().__init__(url, token)
        self._settings = settings
        self._truth = truth
        self._root = root
        self._ids = root[-1]
        self._request = 0
        self.keys = [[*root, "own", n] for n in range(settings.keys)]
        self.owned = [Owned(truth, text(key)) for key in self.keys]
        self._numbers = [0] * settings.keys
        self.counted = [Shared(truth, text([*root, "counted", n])) for n in range(SHARED_KEYS)]
        self.contended = [Shared(truth, text([*root, "contended", n])) for n in range(SHARED_KEYS)]
        self._known: dict[str, Seen] = {}
        """Of contended keys."""
        self._mutations = 0
        self.is_stopped = False
        self.has_written = False

    @property
    def _every(self) -> list[Owned | Shared]:
        return [*self.owned, *self.counted, *self.contended]

    # --- writers -------------------------------------------------------------------------------------------------

    async def _write(
        self,
        method: str,
        key: str,
        body: bytes | None,
        *,
        repeats: bool = False,
        base: int | None = None,
        kind: str = "application/json",
    ) -> Answer | None:
        """Write. Returns None where nothing is known of it.

        Raises:
            Violation: it was refused for good, a repeat was answered otherwise, or it met an entry that is behind what was acknowledged.
        """
        self._request += 1
        headers = {"Idempotency-Key": f"{self._ids}-{self._request}", "Content-Type": kind}
        acks = self._settings.acks
        params = {"key": key} | ({} if base is None else {"base_version": str(base)})
        if acks:
            params["ack"] = acks[self._request % len(acks)]
        kept = self._truth.kept(key)
        if method == "DELETE":
            self._truth.deleting(key)
        answer = await self.answered(method, "/v1/entries", body=body, params=params, headers=headers)
        if answer is None:
            self.counts["writes without an answer"] += 1
            return None
        if answer.status not in (200, 204, 409):
            raise Violation(Rule.REFUSED, key, "a write that is taken", f"HTTP {answer.status}: {answer.body}")
        if repeats and answer.status != 409:
            again = await self.answered(method, "/v1/entries", body=body, params=params, headers=headers)
            if again is not None:
                self.counts["repeated requests"] += 1
                check_repeat(key, (answer.status, answer.body), (again.status, again.body))
        if answer.status != 409:
            self.counts["acknowledged writes"] += 1
        if answer.status == 409:
            current = _current(answer)
            self._truth.found(key, kept, None if current is None else current.version)
        elif method != "DELETE":
            self._truth.follows(key, kept, answer.body["version"])
        if answer.status != 409 and params.get("ack") != "memory":
            self._truth.acknowledged(key, None if method == "DELETE" else answer.body["version"])
        return answer

    async def begin(self) -> None:
        """Make the keys that several writers count up.

        Raises:
            HarborError: the cluster cannot be reached, or does not let us.
        """
        for shared in (*self.counted, *self.contended):
            answer = await self.once("PUT", "/v1/entries", body=b'{"n":0}', params={"key": shared.key})
            if answer.status != 200:
                raise refusal(answer, f"{shared.key} cannot be written")
            self.has_written = True
            self._truth.saw(shared.key, answer.body["version"], {"n": 0})
        if self._settings.mutation:
            _, body = self._next_mutation()
            answer = await self.once("POST", "/v1/mutations", body=body)
            if answer.status != 200:
                raise refusal(answer, f"{self._settings.mutation} cannot be begun")

    async def writer(self, number: int) -> None:
        """Write at its share of the rate, until stopped.

        Raises:
            Violation: the contract did not hold.
        """
        settings = self._settings
        choices = Choices(settings.seed, number)
        mine = range(number, settings.keys, settings.writers)
        pace_s = settings.writers / settings.rate
        loop = asyncio.get_running_loop()
        due = loop.time() + pace_s * number / settings.writers
        while not self.is_stopped:
            await asyncio.sleep(max(due - loop.time(), 0.0))
            due = max(
                due + pace_s, loop.time() - 1.0
            )  # what an answer took too long for is made up for a second, no longer
            act = choices.act()
            index = mine[choices.one_of(len(mine))]
            shared = choices.one_of(SHARED_KEYS)
            repeats, pad = choices.repeats(), choices.pad()
            if act == "count":
                await self._count(self.counted[shared], repeats=repeats)
            elif act == "contend":
                await self._contend(self.contended[shared], repeats=repeats)
            elif self.owned[index].is_sure:
                await self._act(act, index, pad, repeats=repeats)

    async def _act(self, act: str, index: int, pad: str, *, repeats: bool) -> None:
        owned = self.owned[index]
        key, held = owned.key, owned.value
        if act == "delete" and held is not None:
            if (await self._write("DELETE", key, None, repeats=repeats)) is None:
                owned.unsure(None)
            else:
                owned.wrote(None, None)
            return
        self._numbers[index] += 1
        said = {"n": self._numbers[index], "t": int(time.time() * 1000)}
        value = {**said, "pad": pad}
        if act in (
            "patch",
            "merge",
        ):  # a member that edits of the other kind leave as it is: missing if this one is lost
            said[act] = self._numbers[index]
        base: int | None = None
        kind, method, body = "application/json", "PUT", orjson.dumps(value)
        if held is not None and act == "patch":
            value = held | said
            kind, method = "application/json-patch+json", "PATCH"
            body = orjson.dumps([{"op": "add", "path": f"/{name}", "value": each} for name, each in said.items()])
        elif held is not None and act == "merge":
            value, method = held | said, "PATCH"
            body = orjson.dumps({"operations": [{"merge": {"value": said}}]})
        elif act == "conditional":
            base = owned.version
        elif act == "stale" and owned.version > 1:
            base = owned.version - 1
        answer = await self._write(method, key, body, base=base, repeats=repeats, kind=kind)
        if answer is None:
            owned.unsure(value)
        elif answer.status == 200:
            if base is not None and base != owned.version:
                raise stale_write_taken(key, base, owned.version, answer.body["version"])
            owned.wrote(answer.body["version"], value)
        else:
            self._conflicted(owned, base, answer)

    def _conflicted(self, owned: Owned, base: int | None, answer: Answer) -> None:
        self.counts["conflicts"] += 1
        current = _current(answer)
        at = 0 if current is None else current.version
        if base is None:
            raise Violation(Rule.CONFLICT, owned.key, "a write without a condition is taken", "VERSION_CONFLICT")
        if at != owned.version:
            raise Violation(Rule.LOST_WRITE, owned.key, f"version {owned.version}, as acknowledged", f"version {at}")
        owned.refused(base, at)

    async def _count(self, shared: Shared, *, repeats: bool) -> None:
        body = b'{"operations":[{"increment":{"at":"/n"}}]}'
        answer = await self._write("PATCH", shared.key, body, repeats=repeats)
        if answer is None:
            shared.unsure()
        elif answer.status == 200:
            shared.counted()
        else:
            raise Violation(Rule.CONFLICT, shared.key, "a write without a condition is taken", "VERSION_CONFLICT")

    async def _contend(self, shared: Shared, *, repeats: bool) -> None:
        known = self._known.get(shared.key)
        if known is None:
            read = await self.answered("GET", "/v1/entries", params={"key": shared.key})
            if read is None or read.status != 200:
                return
            known = self._known[shared.key] = Seen(read.body["version"], read.body["data"])
        value = {"n": known.data["n"] + 1, "t": int(time.time() * 1000)}
        body = orjson.dumps(value)
        answer = await self._write("PUT", shared.key, body, base=known.version, repeats=repeats)
        if answer is None:
            shared.unsure()
            self._known.pop(shared.key, None)
        elif answer.status == 200:
            shared.won(known.version, answer.body["version"], value)
            self._know(shared.key, Seen(answer.body["version"], value))
        else:
            self.counts["conflicts"] += 1
            current = _current(answer)
            shared.lost(known.version, 0 if current is None else current.version)
            if current is None:
                raise Violation(Rule.LOST_WRITE, shared.key, "the entry", "no entry")
            self._truth.saw(shared.key, current.version, current.data)
            self._know(shared.key, current)

    def _know(self, key: str, seen: Seen) -> None:
        known = self._known.get(key)
        if known is None or known.version < seen.version:
            self._known[key] = seen

    # --- readers -------------------------------------------------------------------------------------------------

    async def reader(self, number: int) -> None:
        """Read, until stopped.

        Raises:
            Violation: the contract did not hold.
        """
        choices = Choices(self._settings.seed, -1 - number)
        while not self.is_stopped:
            await asyncio.sleep(READ_PAUSE_S)
            key = self.owned[choices.one_of(len(self.owned))].key
            kept = self._truth.kept(key)
            seen = await self._read(key)
            self.counts["reads"] += 1
            if seen is not None:
                self._truth.saw(key, seen.version, seen.data)
            if self._truth.is_lost(key, kept, None if seen is None else seen.version):
                await self._look(key, [key])  # a gateway may be behind others, its shard may not

    async def lister(self) -> None:
        """List everything, until stopped.

        Raises:
            Violation: an entry is behind what was acknowledged.
        """
        keys = [each.key for each in self._every]
        while not self.is_stopped:
            await asyncio.sleep(LIST_PAUSE_S * max(1.0, len(keys) / PAGE_KEYS))
            await self._look(text(self._root), keys)

    async def _look(self, prefix: str, keys: Sequence[str]) -> None:
        """Compare entries under a prefix with what was acknowledged before; listings are shards' own answers, whatever gateways hold."""
        kept = {key: self._truth.kept(key) for key in keys}
        found: dict[str, int] = {}
        async for rows in self.pages(prefix, self.give_up_s):
            if rows is None:
                return
            found |= {text(row["key"]): row["version"] for row in rows}
        self.counts["listings"] += 1
        for key, version in kept.items():
            self._truth.found(key, version, found.get(key))

    async def _read(self, key: str) -> Seen | None:
        """Return an entry as it is stored.

        Raises:
            Violation: it cannot be read, or its ETag is of another version.
        """
        answer = await self.answered("GET", "/v1/entries", params={"key": key})
        if answer is None or answer.status == 404:
            return None
        if answer.status != 200:
            raise Violation(Rule.REFUSED, key, "an entry or none", f"HTTP {answer.status}: {answer.body}")
        if answer.etag != f'"{answer.body["version"]}"':
            raise Violation(Rule.VALUE, key, f"the ETag of version {answer.body['version']}", answer.etag)
        return Seen(answer.body["version"], answer.body["data"])

    # --- mutations -----------------------------------------------------------------------------------------------

    def _next_mutation(self) -> tuple[Begun, bytes]:
        self._mutations += 1
        mutation = f"verify-{self._ids}-{self._mutations}"
        said = {"name": self._settings.mutation, "variables": self._settings.variables, "id": mutation}
        return Begun(mutation), orjson.dumps(said)

    async def mutator(self) -> None:
        """Begin mutations, each twice, and follow each until it is settled, or the run ends.

        Raises:
            Violation: the contract did not hold.
        """
        while not self.is_stopped:
            begun, body = self._next_mutation()
            for _ in range(2):
                await self._ask_for(begun, "POST", "/v1/mutations", body)
            self.counts["mutations"] += 1
            while not self.is_stopped and not begun.is_settled:
                await asyncio.sleep(MUTATION_PAUSE_S)
                await self._ask_for(begun, "GET", f"/v1/mutations/{begun.mutation}", None)
            if begun.is_settled:
                self.counts["settled mutations"] += 1
                await self._ask_for(begun, "POST", "/v1/mutations", body)

    async def _ask_for(self, begun: Begun, method: str, path: str, body: bytes | None) -> None:
        answer = await self.answered(method, path, body=body)
        if answer is None:
            return
        if answer.status not in (200, 404):
            raise Violation(
                Rule.REFUSED, begun.mutation, "a mutation that is known", f"HTTP {answer.status}: {answer.body}"
            )
        begun.told(answer.body if answer.status == 200 else None)

    # --- the end -------------------------------------------------------------------------------------------------

    async def stored(self) -> dict[str, Seen | None]:
        """Return what is stored of every key, and compare it with what was acknowledged.

        Raises:
            Violation: they differ, or a key cannot be read.
        """
        found: dict[str, Seen | None] = {}
        for each in self._every:
            answer = await self.answered(
                "GET", "/v1/entries", give_up_s=REST_S, params={"key": each.key, "fetch": "never"}
            )
            if answer is None or answer.status not in (200, 404):
                got = "no answer" if answer is None else f"HTTP {answer.status}: {answer.body}"
                raise Violation(Rule.REFUSED, each.key, "an entry or none", got)
            seen = Seen(answer.body["version"], answer.body["data"]) if answer.status == 200 else None
            each.rest(seen)
            found[each.key] = seen
        return found

    async def clean_up(self, root: list[Any]) -> int:
        """Delete what this run has made, until nothing more comes of requests that were on their way. Returns how many entries may be left."""
        left = 1
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEAN_S):
                for _ in range(CLEANINGS):
                    found, left = await self._clean(root)
                    if found == 0:
                        return 0
                    await asyncio.sleep(CLEAN_PAUSE_S)
        return left

    async def _clean(self, root: list[Any]) -> tuple[int, int]:
        """Return how many entries there were, and how many of them could not be deleted."""
        found = left = 0
        async for rows in self.pages(text(root), REST_S):
            if rows is None:
                return found + 1, left + 1
            for row in rows:
                found += 1
                gone = await self.answered("DELETE", "/v1/entries", give_up_s=REST_S, params={"key": text(row["key"])})
                left += gone is None or gone.status not in (204, 404)
        return found, left


def _current(answer: Answer) -> Seen | None:
    """Return the entry that a conditional write met."""
    current = answer.body["error"].get("details", {}).get("current")
    return None if current is None else Seen(current["version"], current.get("data"))


def text(key: list[Any]) -> str:
    """Return a key as requests name it, and messages do when written again."""
    return orjson.dumps(key).decode()
