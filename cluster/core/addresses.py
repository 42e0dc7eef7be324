"""Whose request it is, by address, where proxies stand between.

A proxy appends the address of whoever spoke to it to `X-Forwarded-For`. Anybody can send that header, so it is read from its end and
only as far as those who wrote it are trusted: the first that is not is the client.

What must not live here: limits (`limits`).
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
SITE_BITS = 64
"""Of an IPv6 address: whoever has one has all below it."""
MAX_HOPS = 32
"""Addresses of a header that are looked at; behind more trusted proxies than that nobody is."""


class Addresses:
    """See the module. `trusted`: networks of proxies, such as `10.0.0.0/8`."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted: list[Network] = [ip_network(each) for each in trusted]

    def is_trusted(self, address: str) -> bool:
        """Whether an address is a proxy's that is believed."""
        if not self._trusted:
            return False
        parsed = _parsed(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self._trusted
        )

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """Return the address to count a client by, given who is connected and the `X-Forwarded-For` headers.

        What is no address ends the way back, as one that is not trusted would.
        """
        found = peer
        hops = [hop for header in forwarded for hop in header.split(",")]
        for hop in reversed(hops[-MAX_HOPS:]):
            if not self.is_trusted(found):
                break
            stripped = _without_port(hop.strip())
            if _parsed(stripped) is None:
                break
            found = stripped
        return site(found)


def site(address: str) -> str:
    """Return what an address is counted as: an IPv6 address is its /64."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((int(parsed) >> SITE_BITS << SITE_BITS, SITE_BITS)))
    return address


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(address.partition("%")[0])  # a link-local one names its interface
    except ValueError:
        return None


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, separator, port = hop.rpartition(":")
    return host if separator and ":" not in host and port.isdecimal() else hop
