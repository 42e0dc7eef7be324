"""The shard: commits, gaps, fetches beside streams, writes, watches, collecting."""

import msgspec
import orjson
import pytest

from cluster.core import shard_state, sweep
from cluster.core.gateway_link import ANSWER_BYTES, SLICE_BYTES
from cluster.core.messages import (
    Absent,
    Act,
    Answered,
    Answers,
    Batch,
    BatchCommitted,
    Change,
    ChangeSetTaken,
    Edit,
    EntryView,
    Erase,
    Failure,
    FeedRange,
    Header,
    KeyList,
    KeyOperations,
    ListBranches,
    ListKeys,
    Matched,
    Meta,
    Missed,
    MissedKeys,
    Read,
    Ready,
    Refused,
    Removed,
    Requests,
    Reset,
    Send,
    Snapshot,
    Unwatch,
    Watch,
    Write,
    Written,
)
from cluster.core.operation import Append, Increment, Invalidate, Operation, Set
from cluster.errors import UpstreamError
from tests.core.shard import BASE, EPOCH, GC_MS, START, Shard


@pytest.fixture
def shard() -> Shard:
    return Shard()


def test_versions_begin_at_the_shards_offset_and_grow_by_one(shard: Shard) -> None:
    assert shard.batch(('["a"]', [Set(b"1")]), ('["b"]', [Set(b"1")])) == BatchCommitted(3, BASE + 2)
    shard.batch(('["a"]', [Set(b"2")]))
    versions = {key: shard.machine.view(key).version for key in ('["a"]', '["b"]')}
    assert versions == {'["a"]': BASE + 2, '["b"]': BASE + 2}
    assert shard.machine.offset == BASE + 3


def test_a_removed_key_never_gets_a_version_again(shard: Shard) -> None:
    shard.batch(('["a"]', [Set(b"1")]))
    first = shard.machine.view('["a"]').version
    gone = shard.ask(lambda n: Erase(n, "r", '["a"]'))
    shard.batch(('["a"]', [Set(b"1")]))
    assert first < gone.version < shard.machine.view('["a"]').version


def test_a_repeated_batch_is_committed_once(shard: Shard) -> None:
    header = Header("coordinator-0", 2, 0, 1)
    batch = Batch(header, [], [KeyOperations('["n"]', [Increment("", 1, missing=1)], 1)], START)
    answers = [shard.machine.batch(batch, START)[0] for _ in range(3)]
    assert answers == [BatchCommitted(3, BASE + 1)] * 3
    assert shard.data('["n"]') == 1
    assert shard.machine.batch(Batch(Header("coordinator-0", 1, 0, 1), [], [], START), START)[0] == Refused(3)


def test_a_watcher_gets_the_entry_and_then_its_changes(shard: Shard) -> None:
    shard.batch(('["a"]', [Set(b"[" + b"1," * 50 + b"1]")]))
    shard.ask(lambda n: Watch(n, '["a"]', prefix=False))
    assert shard.items() == [Snapshot(1, shard.machine.view('["a"]'))]
    shard.batch(('["a"]', [Append((b"2",))]), count=4)
    version = BASE + 1
    patch = b'[{"op":"add","path":"/-","value":2}]'
    assert shard.items() == [Change('["a"]', version, version + 1, None, patch, 4, int(START), None, "stream:")]


def test_an_absent_key_is_said_to_be_and_comes_as_a_change_from_0(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["a"]', prefix=False))
    assert shard.items() == [Absent(1)]
    shard.batch(('["a"]', [Set(b"1")]))
    assert shard.items() == [Change('["a"]', 0, BASE + 1, b"1", None, 1, int(START), None, "stream:")]


def test_a_prefix_is_sent_whole_and_then_followed(shard: Shard) -> None:
    shard.batch(('["p",1]', [Set(b"1")]), ('["other"]', [Set(b"1")]))
    shard.ask(lambda n: Watch(n, '["p"]', prefix=True))
    assert shard.items() == [Snapshot(1, shard.machine.view('["p",1]')), Ready(1, BASE + 2)]
    shard.batch(('["p",2]', [Set(b"2")]), ('["other"]', [Set(b"2")]))
    assert [item.key for item in shard.items()] == ['["p",2]']
    shard.ask(lambda n: Unwatch(1))
    shard.batch(('["p",2]', [Set(b"3")]))
    assert shard.items() == []


def test_changes_fold_while_a_change_set_is_in_flight() -> None:
    shard = Shard()
    shard.ask(lambda n: Watch(n, '["a"]', prefix=False))
    shard.items()
    shard._take = lambda effects: shard.sets.extend(  # type: ignore[method-assign]
        effect.message for effect in effects if isinstance(effect, Send)
    )
    for n in range(4):
        shard.batch(('["a"]', [Set(str(n).encode())]))
    (in_flight,) = shard.sets
    effects = shard.machine.answered("gateway-0", in_flight, ChangeSetTaken(8), START)
    (following,) = [effect.message for effect in effects if isinstance(effect, Send)]
    assert following.items == [Change('["a"]', BASE + 1, BASE + 4, b"3", None, 3, int(START), None, "stream:")]


def test_a_declared_query_is_fetched_once_for_all_who_ask(shard: Shard) -> None:
    assert shard.ask(lambda n: Read(n, '["q","7"]')) is None
    assert shard.ask(lambda n: Read(n, '["q","7"]')) is None
    (fetch,) = shard.fetches
    assert fetch.request.path == "/q/7"
    shard.fetched({"v": 1})
    answers = [item for item in shard.items() if isinstance(item, Answered)]
    assert [answer.id for answer in answers] == [1, 2]
    assert [orjson.loads(answer.payload.data) for answer in answers] == [{"v": 1}] * 2
    assert isinstance(shard.ask(lambda n: Read(n, '["q","7"]')), EntryView)


def test_a_failed_fetch_is_tried_again_and_then_answered_with_its_error(shard: Shard) -> None:
    shard.ask(lambda n: Read(n, '["q","7"]'))
    shard.fetched(UpstreamError("no", status=503))
    assert shard.machine.deadline() == START + 1_000.0
    shard.wake(START + 1_000.0)
    shard.fetched(UpstreamError("no", status=503))
    (answer,) = shard.items()
    assert answer == Answered(1, Failure("UPSTREAM_ERROR", "no"))
    assert shard.machine.fetches == {"retry": 1, "error": 1}


def test_old_data_survives_a_failed_fetch(shard: Shard) -> None:
    shard.ask(lambda n: Write(n, "w", '["q","7"]', b"1"))
    shard.ask(lambda n: Read(n, '["q","7"]', "force"))
    shard.fetched(UpstreamError("gone", status=404, retryable=False))
    (answer,) = [item for item in shard.items() if isinstance(item, Answered)]
    assert (answer.payload.data, answer.payload.status) == (b"1", "error")


def test_operations_received_during_a_fetch_are_replayed_over_its_response(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.batch(('["q","7"]', [Append((b'{"id":3}',), "/list")]))
    shard.fetched({"list": [{"id": 1}, {"id": 2}]})
    assert shard.data('["q","7"]') == {"list": [{"id": 1}, {"id": 2}, {"id": 3}]}


def test_what_cannot_be_repeated_makes_the_fetch_start_over(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.batch(('["q","7"]', [Increment("/n", 1)]))
    shard.now += 10
    shard.fetched({"n": 5})
    assert shard.data('["q","7"]') is None
    shard.fetched({"n": 6})
    assert shard.data('["q","7"]') == {"n": 6}
    assert shard.fetches == []


def test_an_invalidation_during_a_fetch_causes_exactly_one_more(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    for _ in range(5):
        shard.batch(('#u["q"]', [Invalidate()]))
    assert len(shard.fetches) == 1
    shard.fetched(1)
    assert shard.machine.view('["q","7"]').is_invalidated
    assert len(shard.fetches) == 1
    shard.fetched(2)
    assert not shard.machine.view('["q","7"]').is_invalidated
    assert shard.fetches == []


def test_an_invalidation_is_told_and_fetches_what_is_watched(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.fetched(1)
    shard.ask(lambda n: Read(n, '["q","8"]'))
    shard.fetched(1)
    shard.items()
    assert shard.ask(lambda n: Act(n, "invalidate", '["q"]')) == Matched(2)
    assert [fetch.key for fetch in shard.fetches] == ['["q","7"]']
    told = [item for item in shard.items() if isinstance(item, Meta)]
    assert [(item.key, item.invalidated) for item in told] == [('["q","7"]', True)]
    assert shard.ask(lambda n: Act(n, "invalidate", '["q"]', which="inactive", refetch="none")) == Matched(1)


def feed(first: int, last: int, previous: int, incarnation: int = 1, name: str = "events/all") -> FeedRange:
    return FeedRange(name, incarnation, first, last, previous)


def test_missing_numbers_reset_and_fetch_what_the_feed_feeds(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.fetched(1)
    shard.batch(('["x"]', [Set(b"1")]), feeds=(feed(1, 5, 0),))
    shard.items()
    shard.batch(feeds=(feed(6, 9, 5),))
    assert shard.items() == []
    shard.batch(feeds=(feed(14, 20, 13),))
    assert [type(item) for item in shard.items()] == [Reset]
    assert [fetch.key for fetch in shard.fetches] == ['["q","7"]']


def test_an_empty_range_tells_of_a_quiet_loss(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.fetched(1)
    shard.batch(feeds=(feed(1, 5, 0),))
    shard.items()
    shard.batch(feeds=(feed(6, 5, 5),))
    assert shard.items() == []
    shard.batch(feeds=(feed(10, 9, 9),))
    assert [type(item) for item in shard.items()] == [Reset]


def test_a_source_opened_anew_is_a_gap_once(shard: Shard) -> None:
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.fetched(1)
    shard.items()
    opened = feed(1, 0, 0, incarnation=50, name="events")
    shard.batch(feeds=(opened,))
    assert [type(item) for item in shard.items()] == [Reset]
    shard.fetched(2)
    shard.items()
    shard.batch(feeds=(opened,))
    assert shard.items() == []


def test_conditional_writes_and_repeats(shard: Shard) -> None:
    first = shard.ask(lambda n: Write(n, "one", '["d"]', b"1"))
    assert first == Written(BASE + 1)
    assert shard.ask(lambda n: Write(n, "one", '["d"]', b"9")) == first
    lost = shard.ask(lambda n: Write(n, "two", '["d"]', b"2", base_version=BASE))
    assert (lost.code, lost.current.version) == ("VERSION_CONFLICT", BASE + 1)
    assert shard.ask(lambda n: Write(n, "three", '["d"]', b"2", base_version=BASE + 1)) == Written(BASE + 2)
    assert shard.ask(lambda n: Write(n, "new", '["e"]', b"1", base_version=7)).code == "VERSION_CONFLICT"


def test_an_edit_is_all_or_nothing(shard: Shard) -> None:
    shard.ask(lambda n: Write(n, "one", '["d"]', b'{"a":1}'))
    bad = b'[{"op":"replace","path":"/a","value":2},{"op":"test","path":"/a","value":3}]'
    assert shard.ask(lambda n: Edit(n, "two", '["d"]', bad, None)).code == "BAD_REQUEST"
    failing: list[Operation] = [Increment("/a", 1), Append((b"1",), "/a")]
    assert shard.ask(lambda n: Edit(n, "three", '["d"]', None, failing)).code == "BAD_REQUEST"
    assert shard.data('["d"]') == {"a": 1}
    good = b'[{"op":"add","path":"/b","value":[1]}]'
    assert shard.ask(lambda n: Edit(n, "four", '["d"]', good, None)) == Written(BASE + 2)
    assert shard.data('["d"]') == {"a": 1, "b": [1]}
    assert shard.ask(lambda n: Edit(n, "five", '["none"]', good, None)).code == "NOT_FOUND"


def test_missed_changes_are_listed_with_the_version_held(shard: Shard) -> None:
    shard.batch(('["p",1]', [Set(b"1")]), ('["p",2]', [Set(b"1")]))
    shard.ask(lambda n: Watch(n, '["p"]', prefix=True))
    shard.items()
    held = shard.machine.offset
    for n in range(3):
        shard.batch(('["p",1]', [Set(str(n).encode())]))
    shard.ask(lambda n: Erase(n, "e", '["p",2]'))
    shard.items()
    shard.ask(lambda n: Missed(n, '["p"]', prefix=True, epoch=EPOCH, offset=held))
    (missed,) = shard.items()
    assert not missed.reset
    assert dict(missed.keys) == {'["p",1]': BASE + 1, '["p",2]': BASE + 2}
    for epoch, offset in ((EPOCH - 1, held), (EPOCH, BASE - 1), (EPOCH, shard.machine.offset + 1)):
        shard.ask(lambda n, e=epoch, o=offset: Missed(n, '["p"]', prefix=True, epoch=e, offset=o))
        (missed,) = shard.items()
        assert (type(missed), missed.reset, missed.keys) == (MissedKeys, True, [])


def test_listing_pages_in_key_order(shard: Shard) -> None:
    shard.batch(*((f'["k",{n}]', [Set(b"1")]) for n in (3, 1, 2)))
    page = shard.ask(lambda n: ListKeys(n, '["k"]', "", 2))
    assert isinstance(page, KeyList)
    assert ([row.key for row in page.keys], page.more) == (['["k",1]', '["k",2]'], True)
    rest = shard.ask(lambda n: ListKeys(n, '["k"]', '["k",2]', 2))
    assert ([row.key for row in rest.keys], rest.more) == (['["k",3]'], False)


def test_watches_of_ever_other_keys_leave_nothing_behind(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_state, "KNOWN_HEADS", 3, raising=False)
    for n in range(20):
        shard.unwatch(shard.watch(f'["head {n}"]'))
    assert len(shard.machine._joins) <= 3


def test_many_keys_are_looked_through_in_slices(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SLICE", 2)
    monkeypatch.setattr(shard_state, "SLICE", 2)
    shard.batch(*((f'["k",{n}]', [Set(b"1")]) for n in reversed(range(7))))
    assert shard.ask(lambda n: ListKeys(n, "[]", "", 2, contains="6")) is None, "later"
    assert shard.ask(lambda n: ListKeys(n, '["k"]', '["k",0]', 2)) is None
    assert shard.ask(lambda n: ListBranches(n, '["k"]', "", 2)) is None
    while shard.machine._sweeps:
        shard.wake(shard.now)
    keys, first, branches = shard.answers().values()
    assert ([row.key for row in keys.keys], keys.more) == (['["k",6]'], False)
    assert ([row.key for row in first.keys], first.more) == (['["k",1]', '["k",2]'], True)
    assert (branches.branches, branches.more) == ([("0", 1, True), ("1", 1, True)], True)


def test_an_idle_entry_is_collected_after_its_gc_time_and_a_watched_one_never(shard: Shard) -> None:
    shard.ask(lambda n: Read(n, '["q","idle"]'))
    shard.fetched(1)
    shard.ask(lambda n: Watch(n, '["q","watched"]', prefix=False))
    shard.fetched(1)
    shard.batch(('["undeclared"]', [Set(b"1")]))
    shard.wake(START + GC_MS - 1)
    assert shard.data('["q","idle"]') == 1
    shard.wake(START + GC_MS)
    assert shard.machine.view('["q","idle"]') is None
    assert shard.data('["q","watched"]') == 1
    assert shard.data('["undeclared"]') == 1
    watch = next(iter(shard.machine._links["gateway-0"].watches))
    shard.ask(lambda n: Unwatch(watch))
    shard.items()
    shard.wake(START + 2 * GC_MS)
    assert shard.machine.view('["q","watched"]') is None
    assert shard.machine.cache.collected == 2
    assert not [item for item in shard.items() if isinstance(item, Removed)]


def test_an_entry_a_stream_began_is_fetched_for_its_first_reader(shard: Shard) -> None:
    shard.batch(('["q","7"]', [Append((b'{"id":9}',), missing=1)]))
    assert shard.data('["q","7"]') == [{"id": 9}]
    shard.ask(lambda n: Watch(n, '["q","7"]', prefix=False))
    shard.fetched([{"id": 8}])
    assert shard.data('["q","7"]') == [{"id": 8}, {"id": 9}]


def test_a_poison_value_is_dropped_and_the_shard_lives(shard: Shard) -> None:
    shard.batch(('["a"]', [Set(b"[1]")]))
    poison = b"[" * 5000 + b"]" * 5000
    shard.batch(('["a"]', [Append((poison,))]), ('["b"]', [Append((b'{"a":"\xff"}',), missing=1)]))
    assert shard.data('["a"]') == [1]
    assert shard.machine.operations_dropped["mismatch"] >= 1
    assert shard.batch(('["c"]', [Set(b"1")])) is not None


def ask_all(shard: Shard, *requests: Read | Write) -> tuple[dict[int, object], int, list[int]]:
    """Send requests in one call: the answers in the order in which they came, the size of the call's own, and of each change set."""
    answer, effects = shard.machine.requests(Requests(Header("gateway-0", 8, 0, 1), list(requests)), shard.now)
    assert isinstance(answer, Answers)
    shard._take(effects)
    sizes = [len(msgspec.msgpack.encode(each)) for each in shard.sets]
    return {**dict(answer.items), **shard.answers()}, len(msgspec.msgpack.encode(answer)), sizes


def test_answers_are_sent_in_pieces() -> None:
    shard = Shard()
    content = b'"%b"' % (b"x" * 1_000_000)
    shard.batch(('["large"]', [Set(content)]))
    asked = [Read(n, '["large"]') for n in range(40)]
    answers, at_once, sizes = ask_all(shard, *asked, Write(40, "w", '["small"]', b"1"))
    assert list(answers) == [0, 1, 2, 3, 40, *range(4, 40)], "small answers wait for nothing"
    assert {each.data for each in answers.values() if isinstance(each, EntryView)} == {content}
    assert at_once < ANSWER_BYTES + 10_000
    assert len(sizes) == 36
    assert max(sizes) < SLICE_BYTES + len(content)


def test_an_answer_that_is_larger_than_a_piece_is_sent_by_itself() -> None:
    shard = Shard()
    content = b'"%b"' % (b"x" * (shard_state.MAX_EDITED_BYTES - 2))
    shard.batch(('["largest"]', [Set(content)]))
    answers, at_once, sizes = ask_all(shard, Read(1, '["largest"]'), Read(2, '["largest"]'))
    assert [each.data for each in answers.values() if isinstance(each, EntryView)] == [content] * 2
    assert (at_once < 1_000, len(sizes)) == (True, 2)


def test_what_lost_writes_are_told_is_sent_in_pieces() -> None:
    shard = Shard()
    content = b'"%b"' % (b"x" * 1_000_000)
    shard.batch(('["large"]', [Set(content)]))
    answers, at_once, _ = ask_all(shard, *(Write(n, f"w{n}", '["large"]', b"1", base_version=1) for n in range(40)))
    assert [each.current.data for each in answers.values() if isinstance(each, Failure) and each.current] == [
        content
    ] * 40
    assert at_once < ANSWER_BYTES + 10_000


def test_what_waited_for_one_fetch_is_answered_in_pieces(shard: Shard) -> None:
    ask_all(shard, *(Read(n, '["q","7"]') for n in range(1, 9)))
    shard.fetched("x" * SLICE_BYTES)
    answering = [[each.id for each in message.items if isinstance(each, Answered)] for message in shard.sets]
    assert answering == [[n] for n in range(1, 9)]
