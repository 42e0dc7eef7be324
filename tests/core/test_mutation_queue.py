"""When mutations are sent, in which order, and what settles them."""

from typing import Any

import msgspec
import orjson
import pytest

from cluster.config import compile_config, load_mapping
from cluster.core import mutation_queue, mutation_shares
from cluster.core.declared_query import Response
from cluster.core.messages import Failure, Lay, Lift, ListMutations, Mutate, MutationView
from cluster.core.mutation import Status
from cluster.core.mutation_queue import (
    KEPT,
    MAX_RESULT_BYTES,
    MAX_SETTLED,
    MEMORY_MS,
    PARALLEL,
    MutationQueue,
    MutationRecord,
    StartMutation,
)
from cluster.core.service_health import PROBE_MS
from cluster.errors import ErrorCode, HarborError, LimitError, UpstreamError

START = 1_000_000.0
DOWN = UpstreamError("no route")
BROKEN = UpstreamError("http 500", status=500)
REFUSED = UpstreamError("http 422", status=422, retryable=False)
CHANGED = UpstreamError("http 409", status=409, retryable=False, etag='"9"', body={"current": {"version": 9}})

PUT: dict[str, Any] = {
    "request": {"service": "api", "method": "PUT", "path": "/{id}", "body": "{variables}"},
    "optimistic": [{"set": {"key": ["t", "{id}"], "value": "{variables}"}}],
    "scope": "{scope}",
}
DOCUMENT: dict[str, Any] = {
    "services": {"api": {"base_url": "http://api"}},
    "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
    "streams": [
        {"source": "events", "channel": "t:{id}", "on": {"done": {"set": {"key": ["t", "{id}"], "value": "{data}"}}}}
    ],
    "mutations": {
        "put": PUT,
        "again": {**PUT, "retry": 1, "retry_delay": "1s"},
        "stubborn": {**PUT, "retry": True, "retry_delay": "1s", "max_age": "5s"},
        "old": {**PUT, "max_age": "10s"},
        "late": {**PUT, "delay": "5s"},
        "over": {**PUT, "conflict": "overwrite"},
        "merged": {**PUT, "conflict": "merge"},
        "told": {**PUT, "confirm_on": {"stream": "t:{id}", "event": "done"}},
        "new": {**PUT, "temp_id": "{variables.id}"},
        "made": {**PUT, "temp_id": "{variables.id}", "confirm_on": {"stream": "t:{scope}", "event": "done"}},
    },
}
DECLARED = compile_config(load_mapping(DOCUMENT, {})).mutations


class Queue:
    """A queue of shard 0 of two; keys and scopes of an even length are the other's."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.queue = MutationQueue(0, 2, lambda key: (len(key) + 1) % 2, DECLARED, self.stored.add)
        self.now = START
        self.number = 0

    def begin(
        self,
        name: str,
        mutation: str,
        scope: str = "s",
        delay_ms: float | None = None,
        account: str = "",
        **variables: Any,
    ) -> MutationView:
        self.number += 1
        given = orjson.dumps({"id": "a", "scope": scope, **variables})
        asked = Mutate(self.number, mutation, name, given, f"scope:{scope}", delay_ms, account=account)
        return self.queue.begin(asked, "gateway-0", self.now)

    def tell(self) -> None:
        """Have this home hear what became of temporary ids."""
        for item in self.items(0):
            if isinstance(item, Lift):
                self.queue.rename(item, self.now)

    def listed(self, **asked: Any) -> tuple[list[str], bool]:
        found = self.queue.listed(ListMutations(1, **asked))
        return [view.mutation for view in found.mutations], found.more

    def sent(self) -> list[StartMutation]:
        calls, self.queue.calls = self.queue.calls, []
        return calls

    def names(self) -> list[str]:
        return [call.mutation for call in self.sent()]

    def answer(self, call: StartMutation, result: Any = None) -> None:
        answer = (
            result if isinstance(result, UpstreamError) else Response(None if result is None else orjson.dumps(result))
        )
        self.queue.responded(call, answer, self.now)

    def wait(self, ms: float) -> None:
        self.now += ms
        self.queue.wake(self.now)

    def status(self, mutation: str) -> Status:
        return self.queue.records[mutation].status

    def items(self, shard: int) -> list[Lay | Lift]:
        return self.queue.items.pop(shard, [])


def test_of_one_scope_they_go_one_after_another_and_of_many_side_by_side() -> None:
    queue = Queue()
    for n in range(3):
        queue.begin("put", f"a{n}", "one")
    queue.begin("put", "b", "two")
    first, other = queue.sent()
    assert (first.mutation, other.mutation) == ("a0", "b")
    queue.answer(first)
    assert queue.names() == ["a1"]
    for n in range(PARALLEL + 5):
        queue.begin("put", f"c{n}", f"of its own {n}")
    assert len(queue.sent()) == PARALLEL - 2, "as many as there are connections"


def weighed(queue: Queue) -> int:
    """What waits, in bytes; counted as it is anew."""
    waiting = [each for each in queue.queue.records.values() if not each.status.is_settled]
    sizes = {
        each.id: len(each.variables) + sum(len(key) + len(getattr(made, "value", b"")) for key, made in each.laid)
        for each in waiting
    }
    accounts: dict[str, tuple[int, int]] = {}
    for each in waiting:
        count, size = accounts.get(each.account, (0, 0))
        accounts[each.account] = count + 1, size + sizes[each.id]
    shares = queue.queue._shares
    assert (queue.queue.unsettled, shares.size) == (len(sizes), sum(sizes.values()))
    accounts.pop("", None)
    assert {name: (share.count, share.size) for name, share in shares._accounts.items()} == accounts
    return shares.size


def by(queue: Queue, author: str, mutation: str, name: str = "put") -> None:
    given = orjson.dumps({"id": mutation, "scope": mutation})
    asked = Mutate(1, mutation, name, given, f"scope:{mutation}", author=author)
    queue.queue.begin(asked, "gateway-0", queue.now)


def test_who_comes_back_is_told_of_its_own_and_of_what_is_settled_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_queue, "MAX_REGAINED", 2)
    queue = Queue()
    for name in ("first", "second", "third", "open"):
        by(queue, "a", name)
        queue.now += 1
    by(queue, "b", "others")
    by(queue, "", "nobodys")
    for call in queue.sent():
        if call.mutation in ("first", "second", "third"):
            queue.answer(call, {})
            queue.now += 1
    queue.stored.clear()
    said = queue.queue.regained("a", "gateway-1")
    assert [view.mutation for view in said] == ["second", "third", "open"]
    assert queue.queue.records["open"].others == ["gateway-1"]
    assert queue.stored == {"open"}, "a later life of this home tells that gateway as well"
    assert [view.mutation for view in queue.queue.regained("a", "gateway-0")] == ["second", "third", "open"]
    assert queue.queue.records["open"].others == ["gateway-1"]
    assert queue.queue.regained("", "gateway-1") == queue.queue.regained("c", "gateway-1") == []


def test_answers_of_which_who_comes_back_is_told_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_queue, "MAX_REGAINED_BYTES", 20)
    queue = Queue()
    for n in range(4):
        by(queue, "a", f"m{n}")
        queue.answer(queue.sent()[0], {"said": n})  # 10 bytes
        queue.now += 1
    assert [view.mutation for view in queue.queue.regained("a", "gateway-0")] == ["m2", "m3"]


def test_authors_are_forgotten_with_their_mutations() -> None:
    queue = Queue()
    for name in ("moves", "settles"):
        by(queue, "a", name)
    calls = {call.mutation: call for call in queue.sent()}
    queue.answer(calls["settles"], {})
    moving = queue.queue.records["moves"]
    queue.queue.let_go([moving])
    assert [view.mutation for view in queue.queue.regained("a", "gateway-0")] == ["settles"]
    for shard in (0, 1):
        queue.queue.lifted(shard, "settles")
    queue.now += MEMORY_MS + 1
    queue.begin("put", "another")
    assert not queue.queue._authors
    queue.queue.take_in([moving], queue.now)
    assert [view.mutation for view in queue.queue.regained("a", "gateway-0")] == ["moves"]


def test_a_mutation_that_was_stored_before_authors_were_is_nobodys() -> None:
    queue = Queue()
    by(queue, "a", "stored")
    row = msgspec.to_builtins(queue.queue.records["stored"])[:-3]
    later = Queue()
    later.queue.restore([msgspec.convert(row, MutationRecord)], later.now)
    assert later.queue.records["stored"].author == ""
    assert later.begin("put", "stored", other=1).mutation == "stored", "nor is it known what its variables were"
    assert later.queue.regained("a", "gateway-0") == []


def test_the_newest_of_some_statuses_are_listed_the_oldest_first() -> None:
    queue = Queue()
    for n in range(3):
        queue.begin("put", f"a{n}", "one")
    assert queue.listed(statuses=["queued"], newest=1) == (["a2"], False)
    assert queue.listed(newest=2) == (["a1", "a2"], False)


def test_a_listing_comes_page_by_page_and_holds_what_is_asked_for_alone() -> None:
    queue = Queue()
    for n in range(3):
        queue.begin("put", f"a{n}", "one")
    queue.now += 1
    queue.begin("late", "acme/b", "one")
    assert queue.listed(limit=2) == (["a0", "a1"], True)
    (second,) = queue.queue.listed(ListMutations(1, "a1")).mutations
    assert queue.listed(limit=2, after=second.place) == (["a2", "acme/b"], False)
    assert queue.listed(limit=9, names=[]) == ([], False)
    assert queue.listed(limit=9, names=["pu*"]) == (["a0", "a1", "a2"], False)
    assert queue.listed(limit=1, names=["put"], tenant="acme/") == ([], False)
    assert queue.listed(limit=1, names=None, tenant="acme/") == (["acme/b"], False)


def test_a_page_ends_where_results_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_queue, "MAX_LISTED_BYTES", 20)
    queue = Queue()
    for n in range(3):
        queue.begin("put", f"a{n}", "one")
        (call,) = queue.sent()
        queue.answer(call, "x" * 13)
    assert queue.listed(limit=3) == (["a0"], True)
    (first,) = queue.queue.listed(ListMutations(1, "a0")).mutations
    assert queue.listed(limit=2, after=first.place) == (["a1"], True)


def test_the_same_id_is_the_same_mutation() -> None:
    queue = Queue()
    assert queue.begin("put", "m").status == "pending"
    assert queue.begin("put", "m").status == "pending"
    (call,) = queue.sent()
    queue.answer(call, {"ok": True})
    assert queue.begin("put", "m") == MutationView("m", "put", "success", int(START), 0, b'{"ok":true}', number=1)
    assert queue.sent() == []


def test_an_id_tells_nothing_of_a_mutation_of_another_name() -> None:
    queue = Queue()
    queue.begin("put", "m")
    queue.answer(queue.sent()[0], {"secret": 1})
    with pytest.raises(HarborError, match="that of another mutation") as raised:
        queue.begin("late", "m")
    assert raised.value.code == ErrorCode.CONFLICT


def test_an_id_with_other_variables_is_no_repeat() -> None:
    queue = Queue()
    queue.begin("put", "m", text="a", more=1)
    (call,) = queue.sent()
    for _ in range(2):
        with pytest.raises(HarborError, match="with other variables") as raised:
            queue.begin("put", "m", text="b", more=1)
        assert raised.value.code == ErrorCode.CONFLICT
        assert queue.begin("put", "m", more=1, text="a").mutation == "m", "in any order"
        queue.answer(call, {"secret": 1})  # after which what it was made of is forgotten


def test_a_repeat_names_temporary_ids_as_it_did() -> None:
    queue = Queue()
    queue.begin("new", "m1", id="temp")
    queue.begin("put", "m2", parent="temp")
    queue.answer(queue.sent()[0], {"id": "real"})
    queue.queue.rename(next(item for item in queue.items(0) if isinstance(item, Lift)), queue.now)
    assert b"real" in queue.queue.records["m2"].variables
    queue.begin("put", "m3", parent="temp")
    assert b"real" in queue.queue.records["m3"].variables
    for mutation in ("m2", "m3"):
        assert queue.begin("put", mutation, parent="temp").mutation == mutation
        with pytest.raises(HarborError, match="with other variables"):
            queue.begin("put", mutation, parent="other")


def test_a_service_that_cannot_be_reached_pauses_them_and_they_go_on_in_order() -> None:
    queue = Queue()
    for n in range(3):
        queue.begin("put", f"m{n}")
    queue.answer(queue.sent()[0], DOWN)
    assert [queue.status(f"m{n}") for n in range(3)] == [Status.PAUSED, Status.QUEUED, Status.QUEUED]
    assert queue.queue.deadline() == START + PROBE_MS
    queue.wait(PROBE_MS)
    (probe,) = queue.sent()
    assert (probe.mutation, probe.attempt) == ("m0", 2)
    queue.answer(probe, UpstreamError("http 503", status=503))
    queue.wait(PROBE_MS)
    assert queue.sent() == [], "the second wait is longer"
    queue.wait(PROBE_MS)
    (probe,) = queue.sent()
    queue.answer(probe)
    for name in ("m1", "m2"):
        (call,) = queue.sent()
        assert call.mutation == name
        queue.answer(call)
    assert queue.queue.unsettled == 0
    assert queue.queue.settled == {"success": 3}


def test_another_call_that_reaches_the_service_ends_the_pause() -> None:
    queue = Queue()
    queue.begin("put", "m")
    queue.answer(queue.sent()[0], DOWN)
    queue.queue.reached("api", queue.now)
    assert queue.names() == ["m"]


def test_what_has_waited_too_long_is_given_up_and_so_are_those_behind_it() -> None:
    queue = Queue()
    for n in range(2_000):
        queue.begin("old", f"m{n}")
    queue.answer(queue.sent()[0], DOWN)
    queue.wait(10_001.0)
    assert queue.queue.settled == {"error": 2_000}
    assert queue.queue.records["m7"].error == (
        ErrorCode.UPSTREAM_OFFLINE,
        "it has waited for over 10 s for service api",
    )


def test_a_failure_is_retried_as_declared_with_the_same_key() -> None:
    queue = Queue()
    queue.begin("again", "m")
    (call,) = queue.sent()
    queue.answer(call, BROKEN)
    assert queue.status("m") is Status.PENDING
    queue.wait(999.0)
    assert queue.sent() == []
    queue.wait(1.0)
    (again,) = queue.sent()
    assert again.request.idempotency_key == call.request.idempotency_key == "m"
    queue.answer(again, BROKEN)
    assert queue.queue.records["m"].error == ("UPSTREAM_ERROR", "http 500")


def test_a_head_that_keeps_failing_blocks_its_scope_no_longer_than_it_may_wait() -> None:
    queue = Queue()
    queue.begin("stubborn", "m")
    queue.begin("put", "n")
    while queue.status("m") is Status.PENDING:
        (call,) = queue.sent()
        queue.answer(call, BROKEN)
        assert queue.now < START + 10_000.0
        queue.wait(1_000.0)
    assert queue.queue.records["m"].error == ("UPSTREAM_ERROR", "http 500")
    assert queue.names() == ["n"]


def test_it_can_be_undone_until_it_is_sent() -> None:
    queue = Queue()
    view = queue.begin("late", "m")
    assert (view.status, view.due_at) == ("scheduled", int(START + 5_000))
    queue.begin("late", "n")
    cancelled = queue.queue.undo("m", queue.now)
    assert isinstance(cancelled, MutationView)
    assert cancelled.status == "cancelled"
    queue.wait(5_000.0)
    assert queue.names() == ["n"]
    refused = queue.queue.undo("n", queue.now)
    assert isinstance(refused, Failure)
    assert (refused.code, refused.message) == (
        ErrorCode.CONFLICT,
        "the mutation cannot be undone any more: it is pending",
    )
    missing = queue.queue.undo("o", queue.now)
    assert isinstance(missing, Failure)
    assert missing.code == ErrorCode.NOT_FOUND
    assert queue.queue.undo("m", queue.now) == cancelled


def test_times_of_what_was_undone_are_not_kept() -> None:
    queue = Queue()
    queue.begin("late", "stays")
    for number in range(3 * KEPT):
        queue.begin("late", f"m{number}", delay_ms=60_000.0)
        queue.queue.undo(f"m{number}", queue.now)
    assert len(queue.queue._due) <= KEPT + 2
    queue.wait(5_000.0)
    assert queue.names() == ["stays"]


def test_what_was_tried_and_is_undone_leaves_a_doubt() -> None:
    queue = Queue()
    queue.begin("put", "m")
    queue.answer(queue.sent()[0], DOWN)
    queue.queue.undo("m", queue.now)
    lift = queue.items(0)[-1]
    assert isinstance(lift, Lift)
    assert [key for key, _ in lift.result] == ['["t","a"]'], "the service may have carried it out"


@pytest.mark.parametrize(("name", "etag", "variables"), [("over", "*", {}), ("merged", '"9"', {"version": 9})])
def test_a_conflict_is_gone_over_as_declared(name: str, etag: str, variables: dict[str, Any]) -> None:
    queue = Queue()
    queue.begin(name, "m", version=3)
    queue.answer(queue.sent()[0], CHANGED)
    (again,) = queue.sent()
    assert again.request.etag == etag
    assert again.request.body is not None
    assert orjson.loads(again.request.body) == {"id": "a", "scope": "s", "version": 3, **variables}


def test_without_that_it_fails_with_a_conflict() -> None:
    queue = Queue()
    queue.begin("put", "m")
    queue.answer(queue.sent()[0], CHANGED)
    assert queue.queue.records["m"].error == (ErrorCode.CONFLICT, "http 409")


def test_an_event_confirms_what_was_sent_and_its_answer_then_says_nothing_new() -> None:
    queue = Queue()
    queue.begin("told", "m", title="x")
    (call,) = queue.sent()
    event = {"id": "a", "scope": "s", "title": "x", "by": "the service"}
    queue.queue.heard("told", "t:b", event, queue.now)
    queue.queue.heard("told", "t:a", {**event, "title": "y"}, queue.now)
    assert queue.status("m") is Status.PENDING
    queue.queue.heard("told", "t:a", event, queue.now)
    assert queue.status("m") is Status.SUCCESS
    told = len(queue.items(0))
    queue.answer(call, {"late": True})
    assert queue.queue.records["m"].result == orjson.dumps(event)
    assert queue.items(0) == []
    assert told


def test_a_failure_after_an_event_has_it_looked_at_again() -> None:
    queue = Queue()
    queue.begin("told", "m")
    (call,) = queue.sent()
    queue.queue.heard("told", "t:a", {"id": "a", "scope": "s"}, queue.now)
    queue.items(0)
    queue.answer(call, REFUSED)
    (lift,) = queue.items(0)
    assert isinstance(lift, Lift)
    assert (lift.lasting, [key for key, _ in lift.result]) == ([], ['["t","a"]'])
    assert queue.status("m") is Status.SUCCESS


def test_what_names_a_temporary_id_waits_for_the_other() -> None:
    queue = Queue()
    queue.begin("new", "m", "one", id="tmp")
    queue.begin("put", "n", "two", id="tmp")
    (call,) = queue.sent()
    queue.items(0)
    queue.answer(call, {"id": 7})
    lift = next(item for item in queue.items(0) if isinstance(item, Lift))
    assert (lift.temporary, lift.renamed, [key for key, _ in lift.lasting]) == ("tmp", 7, ['["t",7]'])
    queue.queue.rename(lift, queue.now)
    (call,) = queue.sent()
    assert (call.mutation, call.request.path) == ("n", "/7")
    with pytest.raises(HarborError, match="was used before"):
        queue.begin("new", "o", id="tmp")
    queue.begin("put", "p", "three", id="tmp")
    assert queue.sent()[0].request.path == "/7"


def created(queue: Queue, mutation: str = "m", **event: Any) -> tuple[StartMutation, list[Any]]:
    """Create something whose event comes before the answer. Returns the request, and the ids that the event gave."""
    queue.begin("made", mutation, "one", id="tmp")
    queue.begin("put", "n", "two", id="tmp")
    (call,) = queue.sent()
    queue.items(0)
    queue.queue.heard("made", "t:one", event, queue.now)
    return call, renamed(queue)


def renamed(queue: Queue) -> list[Any]:
    """Take what the shard is told of the ids of what was created."""
    lifts = [item for item in queue.items(0) if isinstance(item, Lift) and item.temporary]
    for lift in lifts:
        queue.queue.rename(lift, queue.now)
    return [lift.renamed for lift in lifts]


def test_an_event_with_the_real_id_settles_a_creation() -> None:
    queue = Queue()
    _, ids = created(queue, scope="one", id=7)
    assert (queue.status("m"), ids) == (Status.SUCCESS, [7])
    assert queue.sent()[0].request.path == "/7"


def test_an_event_without_the_real_id_leaves_a_creation_to_its_answer() -> None:
    queue = Queue()
    call, ids = created(queue, it={"scope": "one", "id": 7})
    assert (queue.status("m"), ids) == (Status.PENDING, [])
    queue.answer(call, {"id": 7})
    assert (queue.status("m"), renamed(queue)) == (Status.SUCCESS, [7])
    assert queue.sent()[0].request.path == "/7"


@pytest.mark.parametrize(("answer", "doubts"), [(DOWN, []), (REFUSED, ['["t","tmp"]'])])
def test_it_settles_one_whose_answer_says_nothing_of_it(answer: UpstreamError, doubts: list[str]) -> None:
    queue = Queue()
    call, _ = created(queue, it={"scope": "one", "id": 7})
    queue.answer(call, answer)
    assert queue.status("m") is Status.SUCCESS
    lifts = [item for item in queue.items(0) if isinstance(item, Lift)]
    assert [item.renamed for item in lifts if item.temporary] == [None]
    assert [key for item in lifts for key, _ in item.result] == doubts
    assert queue.sent() == [], "it was carried out"


def test_so_it_does_where_no_answer_is_on_its_way() -> None:
    queue = Queue()
    queue.begin("made", "m", "one", id="tmp")
    queue.answer(queue.sent()[0], DOWN)
    assert queue.status("m") is Status.PAUSED
    queue.queue.heard("made", "t:one", {"it": {"scope": "one", "id": 7}}, queue.now)
    assert queue.status("m") is Status.SUCCESS


def test_of_two_creations_alike_each_has_its_own_event() -> None:
    queue = Queue()
    for name in ("m", "o"):
        queue.queue.begin(
            Mutate(1, name, "made", orjson.dumps({"id": name, "scope": "one"}), f"id:{name}"), "gateway-0", queue.now
        )
    first, second = queue.sent()
    for known in (7, 8):
        queue.queue.heard("made", "t:one", {"it": {"scope": "one", "id": known}}, queue.now)
    for call in (first, second):
        queue.answer(call, DOWN)
    assert [queue.status(name) for name in ("m", "o")] == [Status.SUCCESS] * 2


def test_what_names_something_that_was_not_created_fails() -> None:
    queue = Queue()
    queue.begin("new", "m", "one", id="tmp")
    queue.begin("put", "n", "two", id="tmp")
    queue.answer(queue.sent()[0], REFUSED)
    lift = next(item for item in queue.items(0) if isinstance(item, Lift))
    queue.queue.rename(lift, queue.now)
    assert queue.queue.records["n"].error == (ErrorCode.CONFLICT, "what has the temporary id tmp was not created")
    with pytest.raises(HarborError, match="was not created"):
        queue.begin("put", "o", id="tmp")


@pytest.mark.parametrize("account", ["", "ann"])
def test_creations_that_name_each_other_fail(account: str) -> None:
    queue = Queue()
    for n in range(3):
        queue.begin("new", f"m{n}", f"own {n}", 1_000.0, account, id=f"tmp{n}", parent=f"tmp{(n + 1) % 3}")
    queue.begin("new", "child", "another", 1_000.0, account, id="tmp", parent="tmp0")
    queue.wait(1_000.0)
    for _ in range(3):
        for item in queue.items(0):
            if isinstance(item, Lift):
                queue.queue.rename(item, queue.now)
    assert queue.sent() == []
    assert {record.status for record in queue.queue.records.values()} == {Status.ERROR}
    assert queue.queue.records["m0"].error == (
        ErrorCode.CONFLICT,
        "it and what has the temporary id tmp1 wait for each other",
    )


def test_none_of_those_that_name_what_was_not_created_is_sent() -> None:
    queue = Queue()
    queue.begin("new", "m", "one", id="tmp")
    for mutation in ("n", "o"):
        queue.begin("put", mutation, "two", id="tmp")
    queue.begin("put", "p", "two", id="other")
    queue.answer(queue.sent()[0], REFUSED)
    queue.queue.rename(next(item for item in queue.items(0) if isinstance(item, Lift)), queue.now)
    assert queue.names() == ["p"]
    assert [queue.status(each) for each in ("n", "o")] == [Status.ERROR, Status.ERROR]


def test_an_id_that_does_not_fit_where_the_temporary_one_did_fails_what_names_it() -> None:
    queue = Queue()
    queue.begin("new", "m", "one", id="tmp")
    queue.begin("put", "n", "two", id="tmp")
    queue.begin("late", "o", "three", id="tmp")
    queue.answer(queue.sent()[0], {"id": "x" * 20_000})
    assert queue.status("m") is Status.SUCCESS
    queue.queue.rename(next(item for item in queue.items(0) if isinstance(item, Lift)), queue.now)
    assert queue.sent() == []
    assert [queue.status(each) for each in ("n", "o")] == [Status.ERROR, Status.CANCELLED]
    assert queue.queue.records["n"].error == (
        ErrorCode.INVALID_VARIABLES,
        "optimistic: a query key may have 1024 bytes, this one has 20008",
    )


def test_a_new_life_sends_again_what_was_under_way_and_keeps_the_order() -> None:
    queue = Queue()
    for n in range(2):
        queue.begin("put", f"m{n}")
    queue.begin("late", "l", "two")
    queue.sent()
    after = Queue()
    after.queue.restore(queue.queue.records.values(), after.now)
    (call,) = after.sent()
    assert (call.mutation, call.attempt) == ("m0", 2)
    after.answer(call)
    assert after.names() == ["m1"]
    after.wait(5_000.0)
    assert after.names() == ["l"]
    assert [item.mutation for item in after.items(0)][:3] == ["m0", "m1", "l"]


def test_a_new_life_goes_on_waiting_for_what_is_created_elsewhere() -> None:
    queue = Queue()
    queue.queue.laid(Lay("m", 1, [], "tmp"))
    queue.begin("put", "n", id="tmp")
    queue.begin("put", "o", id="tmp")
    queue.begin("put", "p", "other", delay_ms=5_000.0, id="tmp")
    records = list(queue.queue.records.values())
    assert queue.sent() == []
    queue = Queue()
    queue.queue.restore(records, queue.now)
    queue.wait(5_000.0)
    assert queue.sent() == []
    queue.queue.rename(Lift("m", [], [], "tmp", 7), queue.now)
    assert sorted((call.mutation, call.request.path) for call in queue.sent()) == [("n", "/7"), ("p", "/7")]
    queue = Queue()
    queue.queue.restore(records, queue.now)
    assert queue.names() == ["n", "p"], "nothing is waited for twice"


def test_a_lift_is_told_until_every_shard_has_it() -> None:
    queue = Queue()
    queue.begin("put", "m", id="ab")  # the other shard's key
    queue.answer(queue.sent()[0])
    assert [type(item) for item in queue.items(1)] == [Lay, Lift]
    (again,) = queue.queue.outstanding(1)
    assert isinstance(again, Lift)
    queue.queue.lifted(1, "m")
    assert queue.queue.outstanding(1) == []
    assert queue.queue.records["m"].variables == b"{}", "what it was made of is of no use any more"


def test_of_what_moves_to_another_home_nothing_is_told_any_more() -> None:
    queue = Queue()
    for mutation in "mn":
        queue.begin("put", mutation, f"of its own {mutation}", id="ab")  # the other shard's key
    for call in queue.sent():
        queue.answer(call)
    queue.queue.let_go([queue.queue.records["m"]])
    assert [each.mutation for each in queue.queue.outstanding(1)] == ["n"]
    queue.queue.lifted(1, "n")
    queue.now += MEMORY_MS
    queue.begin("put", "o")
    assert list(queue.queue.records) == ["o"]


def test_what_services_answered_is_remembered_in_so_many_bytes() -> None:
    queue = Queue()
    for n in range(10):
        queue.begin("put", f"m{n}", f"of its own {n}")
    for call in queue.sent():
        queue.answer(call, "x" * (MAX_RESULT_BYTES // 4))
        for shard in range(2):
            for item in queue.items(shard):
                queue.queue.lifted(shard, item.mutation)
    assert list(queue.queue.records) == ["m7", "m8", "m9"]


def test_what_is_settled_is_remembered_for_a_while_and_in_a_number() -> None:
    queue = Queue()
    queue.begin("put", "m", id="ab")
    queue.answer(queue.sent()[0])
    queue.queue.lifted(1, "m")
    queue.now += MEMORY_MS
    queue.begin("put", "n")
    assert "m" not in queue.queue.records
    assert MAX_SETTLED >= 100_000


@pytest.mark.parametrize(
    ("name", "variables", "code"),
    [("none", {}, ErrorCode.UNKNOWN_MUTATION), ("new", {"id": 5}, ErrorCode.INVALID_VARIABLES)],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(name: str, variables: dict[str, Any], code: str) -> None:
    queue = Queue()
    with pytest.raises(HarborError) as caught:
        queue.begin(name, "m", **variables)
    assert caught.value.code == code
    assert not queue.queue.records
    assert not queue.stored


@pytest.mark.parametrize("status", [status for status in Status if not status.is_settled])
def test_what_is_not_declared_any_more_fails_in_a_new_life(status: Status) -> None:
    before = Queue()
    before.begin("put", "m")
    record = before.queue.records["m"]
    record.name, record.status = "gone", status
    after = Queue()
    after.queue.restore([record], after.now)
    assert after.status("m") is Status.ERROR
    assert record.error == (ErrorCode.UNKNOWN_MUTATION, "no mutation gone is declared any more")
    assert after.sent() == []


def test_a_late_failure_counts_though_every_shard_has_the_lift() -> None:
    queue = Queue()
    queue.begin("told", "m")
    (call,) = queue.sent()
    queue.queue.heard("told", "t:a", {"id": "a", "scope": "s"}, queue.now)
    (*_, lift) = queue.items(0)
    assert isinstance(lift, Lift)
    for shard in list(queue.queue.records["m"].unlifted):
        queue.queue.lifted(shard, "m")
    queue.answer(call, REFUSED)
    (lift,) = queue.items(0)
    assert isinstance(lift, Lift)
    assert [key for key, _ in lift.result] == ['["t","a"]']
    assert queue.queue.records["m"].variables == b"{}", "what it was made of is of no use any more"


def test_what_a_shard_is_still_to_hear_of_is_not_forgotten_but_bounds_what_is_taken_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mutation_queue, "MAX_SETTLED", 2)
    queue = Queue()
    for n in range(3):
        queue.begin("put", f"m{n}", id="ab")
        queue.answer(queue.sent()[0])
    with pytest.raises(HarborError, match="to hear yet") as caught:
        queue.begin("put", "m3")
    assert caught.value.code == ErrorCode.TOO_MANY
    assert queue.begin("put", "m0", id="ab").status == "success", "it is known still"
    queue.queue.lifted(1, "m0")
    assert queue.begin("put", "m3").status == "pending"


def test_a_new_life_forgets_in_the_order_in_which_they_were_settled() -> None:
    queue = Queue()
    queue.begin("late", "first", "one", id="ab")
    queue.begin("put", "second", "two", id="ab")
    queue.answer(queue.sent()[0])
    queue.wait(5_000.0)
    queue.answer(queue.sent()[0])
    for mutation in ("first", "second"):
        queue.queue.lifted(1, mutation)
    after = Queue()
    after.now = queue.now
    after.queue.restore(queue.queue.records.values(), after.now)
    after.now = START + MEMORY_MS
    after.begin("put", "third")
    assert set(after.queue.records) == {"first", "third"}


@pytest.mark.parametrize("answer", [{"id": "real"}, REFUSED])
@pytest.mark.parametrize("theirs", ["bob", ""])
def test_a_temporary_id_is_nothing_to_other_accounts(answer: Any, theirs: str) -> None:
    """Else who may begin any mutation could take away what others have: the temporary id would be theirs."""
    queue = Queue()
    queue.begin("new", "m1", "one", id="of-bob", account="mallory")
    queue.begin("put", "b1", "two", parent="of-bob", account=theirs)
    queue.begin("put", "b2", "two", parent="of-bob", account=theirs)
    create, first = queue.sent()
    queue.answer(create, answer)
    queue.tell()
    queue.answer(first)
    queue.begin("put", "b3", "three", parent="of-bob", account=theirs)
    for call in [first, *queue.sent()]:
        assert call.request.body is not None
        assert orjson.loads(call.request.body)["parent"] == "of-bob"
    assert [queue.status(each) for each in ("b1", "b2", "b3")] == [Status.SUCCESS, Status.PENDING, Status.PENDING]
    queue.begin("new", "b4", "four", id="of-bob", account=theirs)


def test_an_account_goes_on_naming_its_own_from_anywhere_and_in_a_new_life() -> None:
    queue = Queue()
    queue.begin("new", "m1", "one", id="tmp", account="ann")
    queue.begin("put", "m2", "two", parent="tmp", account="ann")  # of another session, or of none
    assert queue.names() == ["m1"]
    with pytest.raises(HarborError, match="the temporary id tmp was used before"):
        queue.begin("new", "m3", "three", id="tmp", account="ann")
    later = Queue()
    later.queue.restore(queue.queue.records.values(), later.now)
    (call,) = later.sent()
    later.answer(call, {"id": "real"})
    later.tell()
    later.begin("put", "m4", "four", parent="tmp", account="ann")
    bodies = [orjson.loads(call.request.body or b"") for call in later.sent()]
    assert [each["parent"] for each in bodies] == ["real", "real"]


def test_what_an_account_creates_in_another_home_is_waited_for_here() -> None:
    home, queue = Queue(), Queue()
    home.begin("new", "m1", id="tmp", account="ann")
    for item in home.items(1):
        assert isinstance(item, Lay)
        queue.queue.laid(item)
    queue.begin("put", "m2", "two", parent="tmp", account="ann")
    queue.begin("put", "m3", "three", parent="tmp", account="bob")
    assert queue.names() == ["m3"]
    later = Queue()
    later.queue.restore(queue.queue.records.values(), later.now)
    assert later.names() == ["m3"]
    home.answer(home.sent()[0], {"id": "real"})
    later.queue.rename(next(item for item in home.items(1) if isinstance(item, Lift)), later.now)
    (call,) = later.sent()
    assert call.mutation == "m2"
    assert call.request.body is not None
    assert orjson.loads(call.request.body)["parent"] == "real"


def test_what_an_earlier_release_took_in_is_named_by_all() -> None:
    queue = Queue()
    queue.begin("new", "m1", "one", id="tmp")
    queue.begin("put", "m2", "two", parent="tmp")
    rows = [msgspec.to_builtins(each)[:-1] for each in queue.queue.records.values()]
    later = Queue()
    later.queue.restore([msgspec.convert(row, MutationRecord) for row in rows], later.now)
    with pytest.raises(HarborError, match="was used before"):
        later.begin("new", "m3", "three", id="tmp", account="ann")
    later.begin("put", "m4", "four", parent="tmp", account="ann")
    (call,) = later.sent()
    later.answer(call, {"id": "real"})
    later.tell()
    later.begin("put", "m5", "five", parent="tmp", account="ann")
    bodies = [orjson.loads(call.request.body or b"") for call in later.sent()]
    assert [each["parent"] for each in bodies] == ["real"] * 3


def full(raised: Any) -> tuple[str, float]:
    """The limit that was met."""
    assert raised.value.code == ErrorCode.TOO_MANY
    limit, value = raised.value.details["limit"], raised.value.details["value"]
    return limit, value


def test_what_waits_is_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED", 20)
    queue = Queue()
    for n in range(2):
        queue.begin("late", f"ann{n}", f"ann{n}", account="ann")
    with pytest.raises(LimitError, match="2 mutations of yours wait already") as raised:
        queue.begin("late", "ann2", account="ann")
    assert full(raised) == ("waiting_mutations_per_account", 2)
    assert queue.begin("late", "ann1", "ann1", account="ann").status == "scheduled", "it is known"
    for n in range(18):
        queue.begin("late", f"m{n}", f"m{n}")  # nobody's have no share
    with pytest.raises(LimitError, match="20 mutations wait already") as raised:
        queue.begin("late", "m18", account="bob")
    assert full(raised) == ("waiting_mutations", 20)
    assert isinstance(queue.queue.undo("ann0", queue.now), MutationView)
    queue.begin("late", "ann2", account="ann")
    weighed(queue)


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED_BYTES", 20_000)
    queue = Queue()
    long = {"text": "x" * 2_000}  # twice: in the variables and in what is laid
    queue.begin("late", "ann0", "ann0", account="ann", **long)
    with pytest.raises(LimitError, match=f"mutations of yours of {weighed(queue)} bytes wait already") as raised:
        queue.begin("late", "ann1", account="ann", **long)
    assert full(raised) == ("waiting_bytes_per_account", 5_000)
    queue.begin("late", "ann2", account="ann")
    for n in range(3):
        queue.begin("late", f"m{n}", f"m{n}", **long)
    with pytest.raises(LimitError, match=f"mutations of {weighed(queue)} bytes wait already") as raised:
        queue.begin("late", "m3", account="bob", **long)
    assert full(raised) == ("waiting_bytes", 20_000)
    assert isinstance(queue.queue.undo("m0", queue.now), MutationView)
    queue.begin("late", "m4", **long)
    weighed(queue)


def test_every_end_and_every_change_of_one_counts() -> None:
    queue = Queue()
    queue.begin("new", "m1", "one", id="tmp", account="ann")
    queue.begin("put", "m2", "two", parent="tmp", account="ann")
    queue.begin("merged", "m3", "three", id="b", version=1, account="bob")
    queue.begin("put", "m4", "four", id="c")
    queue.begin("new", "m5", "five", id="never", account="ann")
    queue.begin("put", "m6", "six", 5_000.0, parent="never", account="ann")
    before = weighed(queue)
    calls = {call.mutation: call for call in queue.sent()}
    queue.answer(calls["m1"], {"id": "x" * 500})
    queue.tell()
    assert weighed(queue) > before, "the id that the service gave is longer"
    queue.answer(calls["m3"], UpstreamError("http 409", status=409, retryable=False, body={"version": "x" * 300}))
    weighed(queue)
    queue.answer(calls["m4"], DOWN)
    weighed(queue)
    queue.answer(calls["m5"], REFUSED)
    queue.tell()
    assert queue.status("m6") is Status.CANCELLED
    weighed(queue)
    for call in queue.sent():
        queue.answer(call, {})
    queue.wait(PROBE_MS)
    for call in queue.sent():
        queue.answer(call, {})
    assert weighed(queue) == 0
    assert {queue.status(f"m{n}") for n in range(1, 5)} == {Status.SUCCESS}


def test_what_was_acknowledged_is_taken_in_beyond_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    for n in range(12):
        queue.begin("put", f"m{n}", f"s{n}", account="ann")
    records = list(queue.queue.records.values())
    monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED", 10)
    monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED_BYTES", 100)
    size = weighed(queue)
    restored, moved = Queue(), Queue()
    restored.queue.restore([msgspec.convert(msgspec.to_builtins(each), MutationRecord) for each in records], queue.now)
    moved.queue.take_in(records, queue.now)
    assert weighed(restored) == weighed(moved) == size
    queue.queue.let_go(records)
    assert weighed(queue) == 0
    with pytest.raises(LimitError):
        moved.begin("put", "another", account="ann")
    for call in [*moved.sent(), *moved.sent()]:
        moved.answer(call, {})
    assert weighed(moved) == 0
    moved.begin("put", "another")
