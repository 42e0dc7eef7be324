from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from cluster.errors import ErrorCode, RequestError
from cluster.gateway import parameters


def request(target: str, **headers: str) -> Any:
    return make_mocked_request(
        "GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def refused(code: ErrorCode, call: Any, *args: Any) -> None:
    with pytest.raises(RequestError) as error:
        call(*args)
    assert error.value.code is code


def test_only_known_parameters() -> None:
    parameters.only(request("/?a=1&b=2"), "a", "b")
    refused(ErrorCode.BAD_REQUEST, parameters.only, request("/?a=1&c=2"), "a", "b")


def test_keys_become_canonical() -> None:
    assert parameters.key(request('/?key=[1.0,{"b":1,"a":2}]')) == '[1,{"a":2,"b":1}]'
    refused(ErrorCode.BAD_REQUEST, parameters.key, request("/"))
    refused(ErrorCode.BAD_KEY, parameters.key, request('/?key="a"'))


def test_choices_default_to_the_first() -> None:
    assert parameters.choice({}, "mode", "data", "patch") == "data"
    assert parameters.choice({"mode": "patch"}, "mode", "data", "patch") == "patch"
    for value in ("", "full", 1, None, []):
        refused(ErrorCode.BAD_REQUEST, parameters.choice, {"mode": value}, "mode", "data", "patch")


@pytest.mark.parametrize("text", ["0", "000", "-1", "-99", "x", "1.5", "1e9", "", "٣", "٣" * 50])
def test_limits_that_are_no_number_from_1_on_are_refused(text: str) -> None:
    refused(ErrorCode.BAD_REQUEST, parameters.limit, request(f"/?limit={text}"), 5, 10)


def test_a_limit_in_range() -> None:
    assert parameters.limit(request("/"), 5, 10) == 5
    assert parameters.limit(request("/?limit=10"), 5, 10) == 10
    assert parameters.limit(request("/?limit=007"), 5, 10) == 7


@pytest.mark.parametrize("text", ["11", "1001", "0000000000000000000011", "9" * 5000])
def test_a_limit_above_the_greatest_is_the_greatest(text: str) -> None:
    assert parameters.limit(request(f"/?limit={text}"), 5, 10) == 10


def test_the_version_a_write_is_based_on() -> None:
    assert parameters.base_version(request("/")) is None
    assert parameters.base_version(request("/?base_version=7")) == 7
    assert parameters.base_version(request("/", If_Match='"8"')) == 8
    assert parameters.base_version(request("/", If_Match='W/"8"')) == 8
    refused(ErrorCode.BAD_REQUEST, parameters.base_version, request("/?base_version=x"))
    refused(ErrorCode.BAD_REQUEST, parameters.base_version, request("/", If_Match='"abc"'))


def test_how_safe_a_write_is_to_be() -> None:
    assert parameters.acknowledgement(request("/")) == ""
    for level in ("memory", "replicated", "durable"):
        assert parameters.acknowledgement(request(f"/?ack={level}")) == level
    for level in ("", "disk", "Durable"):
        refused(ErrorCode.BAD_REQUEST, parameters.acknowledgement, request(f"/?ack={level}"))


def test_whether_to_merge() -> None:
    assert not parameters.merges(request("/"), 5)
    assert parameters.merges(request("/?merge=three_way"), 5)
    refused(ErrorCode.BAD_REQUEST, parameters.merges, request("/?merge=three_way"), None)
    for how in ("", "true", "two_way"):
        refused(ErrorCode.BAD_REQUEST, parameters.merges, request(f"/?merge={how}"), 5)


def test_request_ids() -> None:
    assert parameters.request_id(request("/"), "own") == "own"
    assert parameters.request_id(request("/", Idempotency_Key="k"), "own") == "key/k"
    refused(ErrorCode.BAD_REQUEST, parameters.request_id, request("/", Idempotency_Key="k" * 257), "own")
