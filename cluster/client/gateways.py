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
            if not _is_http(url):
                raise RequestError(ErrorCode.BAD_REQUEST, f"not an http:// or https:// URL: {url!r}")
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


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an address that is none
        return False
