import pytest

from cluster.core.addresses import Addresses, site

PROXIES = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("1.2.3.4", [], "1.2.3.4"),
        ("1.2.3.4", ["9.9.9.9"], "1.2.3.4"),  # whoever connects directly can say what they like
        ("10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9"], "9.9.9.9"),  # the first is what the client sent itself
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9, 10.0.0.2"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6", "9.9.9.9", "10.0.0.2"], "9.9.9.9"),
        ("10.0.0.1", ["9.9.9.9:4711"], "9.9.9.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::/64"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::/64"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["", ",,", "9.9.9.9,"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("fd00::1", ["9.9.9.9"], "9.9.9.9"),
        ("", ["9.9.9.9"], ""),
    ],
)
def test_whose_address_counts(peer: str, forwarded: list[str], client: str) -> None:
    assert Addresses(PROXIES).client(peer, forwarded) == client


def test_nobody_is_believed_by_default() -> None:
    assert Addresses().client("10.0.0.1", ["9.9.9.9"]) == "10.0.0.1"
    assert not Addresses().is_trusted("10.0.0.1")


def test_a_chain_without_end_is_looked_at_so_far() -> None:
    assert Addresses(PROXIES).client("10.0.0.1", ["9.9.9.9" + ",10.0.0.2" * 100_000]) == "10.0.0.2"


def test_an_ipv6_address_counts_as_its_network() -> None:
    assert site("2001:db8:1:2:3:4:5:6") == site("2001:db8:1:2::") == "2001:db8:1:2::/64"
    assert site("::ffff:9.9.9.9") == "9.9.9.9"
    assert site("fe80::1%eth0") == "fe80::/64"
    assert site("no address") == "no address"
