"""The gateways a client may use: one at random, and when that fails the next."""

import random
from collections.abc import Sequence
from urllib.parse import urlsplit

from cluster.errors import ErrorCode, RequestError


class Gateways:
    """Addresses of one cluster's gateways, in a random order that goes round."""

    __slots__ = ("_urls",)

    def __init__(self, urls: str | Sequence[str]) -> None:
        """Take one URL or several, `http://` or `https://`; a path before `/v1` is kept.

        Raises:
            RequestError: `BAD_REQUEST`, one of them is no such URL, or there is none.
        """
        given = [urls] if isinstance(urls, str) else list(urls)
        for url in given:
            check_url(url)
        if not given:
            raise RequestError(ErrorCode.BAD_REQUEST, "a client needs the URL of a gateway")
        self._urls = random.sample([url.rstrip("/") for url in given], len(given))

    def all(self) -> list[str]:
        """Return every URL, the one to try first at the front."""
        return list(self._urls)

    def failed(self, url: str) -> None:
        """Try others before this one."""
        if self._urls[0] == url:
            self._urls.append(self._urls.pop(0))


def check_url(url: str) -> None:
    """Find out whether something can be a gateway's URL.

    Raises:
        RequestError: `BAD_REQUEST`, it cannot.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # as it will be looked up
        is_http = parts.scheme in ("http", "https") and host.isprintable() and " " not in host and parts.port != 0
    except ValueError:  # a port, an address or a name that is none
        is_http, host = False, ""
    if not is_http or not host:
        raise RequestError(ErrorCode.BAD_REQUEST, f"not an http:// or https:// URL: {url!r}")
