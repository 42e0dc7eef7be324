"""A value as bytes, as an object, and back."""

import orjson
import pytest

from cluster.core.entry import MAX_DEPTH, Value, written_bytes
from cluster.errors import OperationError


def test_bytes_are_kept_as_they_came() -> None:
    value = Value.from_json(b'{"a": 1}')
    assert value.object() == {"a": 1}
    assert value.json() == b'{"a": 1}'
    assert value.size() == 8


def test_an_object_is_encoded_once() -> None:
    value = Value.from_object([1, {"a": None}])
    assert value.json() == b'[1,{"a":null}]'
    assert value.json() is value.json()


def test_null_is_a_value() -> None:
    assert Value.from_json(b"null").object() is None
    assert Value.from_object(None).json() == b"null"


def test_it_is_decoded_once() -> None:
    value = Value.from_json(b"[1]")
    assert value.object() is value.object()


def test_edits_show_in_the_bytes() -> None:
    value = Value.from_json(b"[1]")
    document = value.object()
    document.append(2)
    value.mutated(document)
    assert value.json() == b"[1,2]"


@pytest.mark.parametrize("json", [b'{"a":"\xff"}', b'"\\ud800"', b"[", b"", b"[" * 2000 + b"]" * 2000])
def test_bytes_that_are_not_json_raise_when_decoded(json: bytes) -> None:
    with pytest.raises(OperationError, match="not JSON"):
        Value.from_json(json).object()


def test_what_could_not_be_written_again_is_not_handed_out_for_editing() -> None:
    value = Value.from_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
    with pytest.raises(OperationError, match="levels"):
        value.object()
    assert len(value.json()) == 2 * (MAX_DEPTH + 1)


def test_the_depth_limit_is_the_encoders() -> None:
    edge = Value.from_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH).object()
    assert written_bytes(edge) == len(orjson.dumps(edge))
    assert not written_bytes(edge, lead=1)


def test_many_brackets_are_not_depth() -> None:
    assert len(Value.from_json(b"[" + b"{}," * 999 + b"{}]").object()) == 1000
