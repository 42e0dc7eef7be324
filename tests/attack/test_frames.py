"""Whatever a client says over a socket, it is told something or the connection ends; and others are served."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.attack.target import KEYS, POSITIONS, RESUMES, Target, one
from tests.lasting import lasting

ROOT = Path(__file__).parents[2]
FUZZ_S = lasting(3, 300)
"""Seconds of the fuzzer that coverage guides."""
EXAMPLES = lasting(60, 5_000)

TEXT = st.one_of(
    st.sampled_from(["", "a", "doc:1", "rename", "\u202e\u05d0", "a\x00b", "x" * 2_000]), st.text(max_size=8)
)
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from([2**53, -(2**63), 2**64, 1e308, 5e-324])
)
JSON = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
TYPES = [
    *("hello", "subscribe", "unsubscribe", "pause", "resume", "get", "set", "invalidate", "mutate", "undo"),
    *("presence", "leave", "auth", "ping", "dance"),
]
MEMBERS: dict[str, Any] = {
    "id": st.one_of(st.integers(0, 3), SCALAR),
    "key": st.one_of(st.just(["a"]), st.lists(SCALAR, max_size=3), JSON),
    "prefix": st.one_of(st.just([]), st.lists(SCALAR, max_size=2), JSON),
    "mode": st.one_of(st.sampled_from(["data", "patch"]), JSON),
    "since": st.one_of(st.sampled_from([*POSITIONS, "p3.", POSITIONS[0][:-1]]), JSON),
    "data": JSON,
    "base_version": st.one_of(st.integers(0, 3), JSON),
    "merge": st.one_of(st.just("three_way"), JSON),
    "ack": st.one_of(st.sampled_from(["memory", "durable", "replicated"]), JSON),
    "exact": st.one_of(st.booleans(), JSON),
    "name": st.one_of(st.just("rename"), JSON),
    "variables": st.one_of(st.fixed_dictionaries({"id": SCALAR}), JSON),
    "mutation_id": st.one_of(st.sampled_from(["m1", "m2"]), JSON),
    "delay_ms": st.one_of(st.integers(0, 50), JSON),
    "topic": st.one_of(st.sampled_from(["doc:1", "doc:2", "x"]), JSON),
    "state": JSON,
    "watch": st.one_of(st.sampled_from(["members", "count"]), JSON),
    "token": st.one_of(st.sampled_from([*KEYS.values(), "hk_nobody"]), JSON),
    "resume": st.one_of(st.sampled_from([*RESUMES, RESUMES[0][:-1]]), JSON),
}
HELLO = {"type": "hello", "token": KEYS["ann"]}
MESSAGE = st.builds(
    lambda kind, rest: {"type": kind, **rest},
    st.one_of(st.sampled_from(TYPES), JSON),
    st.fixed_dictionaries({}, optional=MEMBERS),
)


def written(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # beyond 64 bits, lone surrogates
        import json

        return json.dumps(value).encode()


@pytest.mark.parametrize("since", POSITIONS)
def test_positions_that_are_said_are_of_this_cluster(since: str) -> None:
    for interest in ({"key": ["a"]}, {"prefix": []}):
        target = Target()
        target.client.say(type="subscribe", id=1, since=since, **interest)
        target.world.settle()
        refusals = [each["code"] for each in target.client.read() if each["type"] == "error"]
        is_of_it = since in POSITIONS[: len(POSITIONS) // 2] if "key" in interest else since in POSITIONS[3:]
        assert refusals == ([] if is_of_it else ["BAD_REQUEST"])


@pytest.mark.parametrize("subject", KEYS)
def test_keys_and_sessions_that_are_said_are_known(subject: str) -> None:
    target = Target(has_keys=True)
    target.client.say(type="hello", token=KEYS[subject])
    (first,) = target.client.read()
    assert first["resume_token"] in RESUMES
    second = target.another()
    second.say(type="hello", token=KEYS[subject], resume=first["resume_token"])
    (again,) = second.read()
    assert (again["type"], again["session"]) == ("welcome", first["session"])
    assert [each.session for each in target.world.closed] == [target.client.session.id]


@pytest.mark.soak
@pytest.mark.parametrize("has_keys", [False, True])
@given(messages=st.lists(st.one_of(MESSAGE, st.just(HELLO), st.lists(MESSAGE, max_size=4)), min_size=1, max_size=6))
@settings(max_examples=EXAMPLES)
def test_any_messages_are_answered(has_keys: bool, messages: list[Any]) -> None:
    target = Target(has_keys=has_keys)
    for message in messages:
        target.say(written(message))
    target.is_well()


@pytest.mark.soak
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
@settings(max_examples=EXAMPLES)
@example([b"\xff"])
@example([b"[" * 100_000])
@example([b"[" * 1_000 + b"]" * 1_000])
@example([b'{"type":"ping","id":' + b"9" * 100_000 + b"}"])
@example([b'{"type":"ping","id":1e999}'])
@example([b'{"type":"ping","id":1,"id":2,"type":"get"}'])
@example([b'{"type":"get","id":1,"key":["\\ud800"]}'])
@example([b'{"type":"get","id":1,"key":["a\\u0000b"]}'])
@example([b'{"type":"set","id":1,"key":["\\u202e"],"data":"\\u05d0"}'])
@example([b'{"type":"set","id":1,"key":[NaN],"data":1}'])
@example([b"\xef\xbb\xbf{}"])
@example([b"[" + b'{"type":"ping"},' * 1_023 + b"1]"])
def test_any_bytes_are_answered(frames: list[bytes]) -> None:
    target = Target()
    for frame in frames:
        target.say(frame)
    target.is_well()


@pytest.mark.soak
@given(st.sampled_from(TYPES), st.fixed_dictionaries({}, optional=MEMBERS), st.data())
@settings(max_examples=EXAMPLES)
def test_a_message_that_was_damaged_is_answered(kind: str, rest: dict[str, Any], data: st.DataObject) -> None:
    frame = bytearray(written({"type": kind, **rest}))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(frame) - 1))
        frame[where] = data.draw(st.integers(0, 255))
    target = Target()
    one(target, bytes(frame))
    target.is_well()


def test_ten_thousand_subscriptions_are_128() -> None:
    target = Target()
    session = target.client.session
    for n in range(10_000):
        target.client.say(type="subscribe", id=n, key=["k", n])
        if n % 500 == 499:
            target.world.advance(1_000.0)
            target.client.read()
    assert len(session.subscriptions) == 128
    assert target.world.gateway.limited == {"subscriptions": 10_000 - 128}
    target.is_well()


@pytest.mark.soak
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_a_fuzzer_that_coverage_guides_finds_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.attack.fuzz_frames",
        f"-max_total_time={FUZZ_S}",
        "-max_len=4096",
        "-verbosity=0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, timeout=FUZZ_S + 120, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
