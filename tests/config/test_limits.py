from typing import Any

import pytest

from cluster.config import load_mapping
from cluster.config.limits import network, origin
from cluster.config.load import ConfigFaults
from cluster.core.limits import Limits
from cluster.errors import ConfigError


def gateway(**members: Any) -> Any:
    return load_mapping({"gateway": members}, {}).gateway


def test_defaults_are_those_of_the_machine() -> None:
    assert gateway().limits == gateway(limits={}).limits == Limits()


def test_every_limit_can_be_set() -> None:
    document = {
        "frame": "64KiB",
        "body": "2MiB",
        "request_line": "4KiB",
        "header": "2KiB",
        "headers": "16KiB",
        "header_count": 50,
        "subscriptions": 10,
        "connections": 100,
        "connections_per_address": 5,
        "sessions_per_address": 4,
        "sessions_per_subject": 3,
        "streams": 2,
        "commands": 1.5,
        "commands_burst": 10,
        "requests": 20,
        "requests_burst": 30,
        "presence_updates": 5,
        "buffers": "8MiB",
        "hello_within": "1s",
        "head_within": "2s",
        "body_within": "3s",
        "idle": "4s",
    }
    made = gateway(limits=document).limits
    assert made == Limits(
        frame_bytes=65536,
        body_bytes=2 * 1024**2,
        request_line_bytes=4096,
        header_bytes=2048,
        headers_bytes=16384,
        header_count=50,
        subscriptions=10,
        connections=100,
        connections_per_address=5,
        sessions_per_address=4,
        sessions_per_subject=3,
        streams=2,
        commands=1.5,
        commands_burst=10,
        requests=20,
        requests_burst=30,
        presence_updates=5,
        buffers_bytes=8 * 1024**2,
        hello_within_ms=1000,
        head_within_ms=2000,
        body_within_ms=3000,
        idle_ms=4000,
    )
    assert len(document) == len(Limits.__struct_fields__), "one that cannot be set"


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        ({"frames": 1}, "gateway.limits.frames: unknown key, did you mean frame?"),
        ({"frame": 1024}, "gateway.limits.frame: expected a size such as 64KiB or 1MiB, got 1024"),
        ({"frame": "1B"}, "gateway.limits.frame: expected a size from 1KiB to 1GiB, got '1B'"),
        ({"buffers": "2MiB"}, "gateway.limits.buffers: expected at least four times the largest frame or body (4MiB)"),
        ({"headers": "4KiB"}, "gateway.limits.headers: expected at least one header (8KiB)"),
        ({"streams": 0}, "gateway.limits.streams: expected a whole number from 1 to 1000000, got 0"),
        ({"streams": True}, "gateway.limits.streams: expected a whole number from 1 to 1000000, got True"),
        ({"commands": 0}, "gateway.limits.commands: expected a number above 0, got 0"),
        ({"hello_within": "0s"}, "gateway.limits.hello_within: expected a duration from 100ms to 1h, got '0s'"),
        ([], "gateway.limits: expected a mapping, got []"),
    ],
)  # fmt: skip
def test_faults_name_the_place_and_the_value(limits: Any, fault: str) -> None:
    with pytest.raises(ConfigFaults) as raised:
        gateway(limits=limits)
    assert [f"{each.path}: {each.reason}" for each in raised.value.faults] == [fault]


@pytest.mark.parametrize("value", ["https://app.example.com", "http://localhost:5173", "https://[::1]:8443"])
def test_origins_are_written_as_browsers_send_them(value: str) -> None:
    assert origin("o", value) == value


@pytest.mark.parametrize(
    "value",
    [
        *("*", "null", "https://*.example.com", "app.example.com", "https://", 7, "ftp://a"),
        *("https://a/", "https://a/path", "https://u:p@a", "https://A.example", "https://a:443", "http://a:x"),
    ],
)
def test_what_no_browser_sends_is_a_fault(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected an origin such as"):
        origin("o", value)


def test_networks_of_proxies() -> None:
    assert gateway(trusted_proxies=["10.0.0.0/8", "::1"]).trusted_proxies == ("10.0.0.0/8", "::1/128")
    for wrong in ("10.0.0.1/8", "proxy", 7, None):
        with pytest.raises(ConfigError, match="expected a network"):
            network("n", wrong)


def test_two_ports_of_one_host_are_two() -> None:
    with pytest.raises(ConfigFaults, match=r"gateway\.admin_port: expected another port than gateway\.port, got 8701"):
        gateway(port=8701)
    assert gateway(port=0, admin_port=0).port == 0, "each takes a free one"
    assert gateway(port=8701, admin_host="127.0.0.2").port == 8701


def test_each_faulty_element_of_a_list_is_named() -> None:
    with pytest.raises(ConfigFaults) as raised:
        gateway(origins=["*", "https://a.example", 7], trusted_proxies=["proxy", "::1", "10.0.0.0/33"])
    assert [each.path for each in raised.value.faults] == [
        *("gateway.origins.0", "gateway.origins.2"),
        *("gateway.trusted_proxies.0", "gateway.trusted_proxies.2"),
    ]


def test_strict_transport_security_is_off_by_default() -> None:
    assert (gateway().hsts_ms, gateway(hsts="365d").hsts_ms) == (0.0, 365 * 86_400_000.0)
