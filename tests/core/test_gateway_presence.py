"""Presence through whole gateways and homes in one process: frames, slow readers, credentials, what a new life finds."""

from typing import Any

import pytest

from cluster.core import template
from cluster.core.gateway_state import Close
from cluster.core.grants import ApiKeys, Grants, Principal, line
from cluster.core.messages import ListMembers, MemberList, Requests
from cluster.core.presence_room import Pattern
from cluster.core.query_key import CanonicalKey
from tests.in_process import TOKENS, Client, InProcess

PATTERNS = (Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),)


def world(**more: Any) -> InProcess:
    made = InProcess(patterns=PATTERNS, **more)
    made.settle()
    return made


def presence(client: Client) -> list[dict[str, Any]]:
    return [message for message in client.read() if message["type"] == "presence"]


def test_a_slow_reader_has_one_change_a_topic_however_much_happens() -> None:
    life = world()
    slow, busy = Client(life, "slow"), Client(life, "busy")
    slow.say(type="presence", id=1, topic="doc:1")
    busy.say(type="presence", id=1, topic="doc:1", state=0, watch="count")
    life.settle(300)
    slow.read()
    slow.session.busy = True  # its socket is full
    for n in range(50):
        busy.say(type="presence", id=n, topic="doc:1", state=n)
        life.settle(150)
    assert slow.session.attendance is not None
    assert (len(slow.session.out), len(slow.session.attendance.due)) == (0, 1)
    slow.gateway.written(slow.session, life.now_ms)
    (told,) = presence(slow)
    assert [each["state"] for each in told["updated"]] == [49]


def test_a_join_reaches_a_hundred_watchers_within_a_window() -> None:
    life = world(gateways=2)
    watchers = [Client(life, f"w{n}", f"gateway-{n % 2}") for n in range(100)]
    for watcher in watchers:
        watcher.say(type="presence", id=1, topic="doc:1")
    life.settle(300)
    for watcher in watchers:
        watcher.read()
    for n in range(5):
        began_ms = life.now_ms
        joiner = Client(life, f"j{n}")
        joiner.say(type="presence", id=1, topic="doc:1", state=n, watch="count")
        while not all(watcher.session.out for watcher in watchers):
            while life.step():
                pass
            life.advance(1.0)
        assert life.now_ms - began_ms <= 100.0 + 20.0
        for watcher in watchers:
            (told,) = presence(watcher)
            assert [each["member"] for each in told["joined"]] == [f"j{n}"]
        life.settle(5.0 + 37.0 * n)


def test_heartbeats_of_many_are_one_call_a_period() -> None:
    life = world()
    people = [Client(life, f"p{n}") for n in range(200)]
    for person in people:
        person.say(type="presence", id=1, topic="doc:1", state=1, watch="count")
    life.settle(300)
    calls = 0
    until = life.now_ms + 30_000
    for person in people:
        person.say(type="presence", id=2, topic="doc:1")
    while life.now_ms < until:
        while life.calls:
            _, send = life.calls[0]
            calls += isinstance(send.message, Requests)
            life.step()
        life.advance(50.0)
    assert calls <= 30_000 / 2_000 + 1


def test_an_event_of_nobody_a_pages_reader_and_the_home_agree() -> None:
    life = world(gateways=2, shards=2)
    for n in range(5):
        Client(life, f"p{n}", f"gateway-{n % 2}").say(type="presence", id=1, topic="doc:1", state=n)
    life.settle(300)
    ticket = life.tick()
    make = lambda n: ListMembers(n, "doc:1", "p1", 2)  # noqa: E731 - as the server says it
    life.run("gateway-0", life.gateway.request(ticket, CanonicalKey("doc:1"), make, life.now_ms))
    life.settle()
    (listed,) = life.responses[ticket]
    assert isinstance(listed, MemberList)
    assert (listed.count, [each.member for each in listed.members], listed.more) == (5, ["p2", "p3"], True)
    assert sum(shard.presence.member_count for shard in life.shards.values()) == 5


def test_credentials_that_change_end_what_they_do_not_cover() -> None:
    life = world()
    client = Client(life, "c")
    client.say(type="presence", id=1, topic="doc:1", state=1)
    client.say(type="presence", id=2, topic="doc:2", state=1)
    life.settle(300)
    client.read()
    keys = ApiKeys.parse(line("me", "k", Grants(presence=["doc:2"])))
    life.gateway.authority = keys
    client.session.principal = Principal("me", Grants(presence=["*"]))
    life.gateway.authority = keys
    life.run("gateway-0", life.gateway.recheck(life.now_ms))
    (error,) = [each for each in client.read() if each["type"] == "error"]
    assert (error["code"], "doc:1" in error["message"]) == ("FORBIDDEN", True)
    life.settle(300)
    (told,) = presence(client)
    assert [(each["member"], each["subject"]) for each in told["updated"]] == [("c", "me")]
    assert not [each for each in life.closed if isinstance(each, Close)]


def test_topics_declared_no_longer_are_left_with_a_word() -> None:
    life = world()
    client = Client(life, "c")
    client.say(type="presence", id=1, topic="doc:1", state=1)
    life.settle(300)
    client.read()
    life.run("gateway-0", life.gateway.declare((), life.now_ms))
    life.settle(300)
    (error,) = [each for each in client.read() if each["type"] == "error"]
    assert (error["code"], "doc:1" in error["message"]) == ("NOT_FOUND", True)
    assert [shard.presence.member_count for shard in life.shards.values()] == [0]


def test_hello_with_a_token_and_a_resume_greets_once_as_who_it_was() -> None:
    life = world()
    life.gateway.authority = ApiKeys.parse(line("me", "k", Grants(presence=["*"])))
    client = Client(life, "c")
    client.session.principal = None
    token = TOKENS.session("secret", "me")
    client.say(type="hello", token="k", resume=token)
    (welcome,) = client.read()
    assert (welcome["type"], welcome["resume_token"]) == ("welcome", token)
    assert welcome["session"] == client.session.identity != "c"


@pytest.mark.parametrize("token", ["secret", TOKENS.session("secret", "you"), TOKENS.session("secret", "me")[:-1]])
def test_a_token_that_was_given_to_nobody_or_to_another_resumes_nothing(token: str) -> None:
    life = world()
    life.gateway.authority = ApiKeys.parse(line("me", "k", Grants(presence=["*"])))
    client = Client(life, "c")
    client.session.principal = None
    client.say(type="hello", id=7, token="k", resume=token)
    welcome, error = client.read()
    assert (welcome["type"], welcome["session"]) == ("welcome", "c"), "it goes on as who it is"
    assert (error["re"], error["code"]) == (7, "BAD_REQUEST")
    assert client.session.identity == "c"
