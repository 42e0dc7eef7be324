"""What pages in browsers may do, and what browsers are told.

A browser sends requests for whatever page asks, with the page's origin beside them (`Origin`), and gives the answer to a page of another
origin only where the server says so (CORS). Sockets it opens for any page. So:

- where origins are listed, another's page gets 403;
- where none is, and credentials are asked for, a page needs those; an answer carries no CORS header, so that other pages cannot read it;
- where none is, and anybody may do everything, only pages of this machine may: those of a loopback host, and the gateway's own.

A page can make its own name lead to 127.0.0.1 (DNS rebinding); for the browser the gateway is of the page's origin then. But the name is
in `Host`. So where no credentials are asked for, a `Host` that anybody may have registered is refused: one with a dot in it that is neither
an address nor the name of a listed origin (a proxy in front).

What must not live here: credentials (`access`), routes (`server`).
"""

from collections.abc import Collection, Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from cluster.errors import ErrorCode, RequestError

MAX_AGE_S = 600
"""For how long a browser may remember what a preflight said."""
HEADERS = "authorization, content-type, idempotency-key, if-match, if-none-match, last-event-id, x-api-key"
"""What a page of a listed origin may send."""
EXPOSED = "ETag, Retry-After"
"""What it may read, beside the body."""
HOSTS = 256
"""`Host` headers that are known to be good; beyond it they are looked at anew."""
# `Server` is there so that aiohttp does not add one with its version and Python's.
_ALWAYS = {
    "Server": "harbor",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DATA = {**_ALWAYS, "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
"""Headers of an answer that is no page: whoever opens it as one gets nothing to run."""
PAGE = {
    **_ALWAYS,
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of a page. It has neither script nor style."""


class Browsers:
    """See the module. `hsts_s`: for how long browsers are to use TLS only; 0: nothing is said of it."""

    def __init__(self, origins: Iterable[str] = (), hsts_s: int = 0) -> None:
        self.origins: frozenset[str] = frozenset(origins)
        self._hosts = frozenset(filter(None, (_host_name(_netloc(each)) for each in self.origins)))
        self._good: set[str] = set()
        strict = {"Strict-Transport-Security": f"max-age={hsts_s}"} if hsts_s else {}
        vary = {"Vary": "Origin"} if self.origins else {}
        self.data = {**DATA, **strict, **vary}
        self.page = {**PAGE, **strict, **vary}
        self.head = "".join(f"{name}: {value}\r\n" for name, value in self.data.items()).encode()
        """The headers of data, as they stand in an answer."""

    def check(self, request: web.BaseRequest, *, is_guarded: bool) -> None:
        """Refuse a page that may not ask. `is_guarded`: credentials are asked for.

        Raises:
            RequestError: `FORBIDDEN`.
        """
        host = request.headers.get("Host", "")
        if not is_guarded and not self.is_own(host):
            raise RequestError(
                ErrorCode.FORBIDDEN,
                f"the host {host!r:.120} is not that of an origin in gateway.origins: "
                "without auth a page could make its own name lead here",
            )
        origin = request.headers.get("Origin")
        if origin is None or origin in self.origins:
            return
        if self.origins:
            raise RequestError(ErrorCode.FORBIDDEN, f"the origin {origin!r:.120} is not in gateway.origins")
        if not is_guarded and not _is_of(origin, host) and not _is_loopback(_host_name(_netloc(origin))):
            raise RequestError(
                ErrorCode.FORBIDDEN, f"pages of {origin!r:.120} need to be in gateway.origins where there is no auth"
            )

    def is_own(self, host: str) -> bool:
        """Whether a `Host` header cannot be a foreign page's name; "": no browser sends none."""
        if host in self._good or not host:
            return True
        name = _host_name(host)
        if not name or not (_is_loopback(name) or _is_address(name) or "." not in name or name in self._hosts):
            return False
        if len(self._good) >= HOSTS:
            self._good.clear()
        self._good.add(host)
        return True

    def check_cookie(self, request: web.BaseRequest) -> None:
        """Refuse a cookie that another's page made a browser send.

        Browsers name the origin of every socket, and of every stream but those of a page of the gateway itself, where newer ones say so
        in `Sec-Fetch-Site`. What names neither is no browser, and sends what it likes.

        Raises:
            RequestError: `FORBIDDEN`.
        """
        origin = request.headers.get("Origin")
        if origin is None:
            allowed = request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")
        else:
            allowed = origin in self.origins or _is_of(origin, request.headers.get("Host", ""))
        if not allowed:
            raise RequestError(
                ErrorCode.FORBIDDEN,
                f"the cookie does not count for pages of {origin or 'another site'!r:.120}: not in gateway.origins",
            )

    def allow(self, request: web.BaseRequest, response: web.StreamResponse, *, cookies: bool = False) -> None:
        """Let a page of a listed origin read the answer; `cookies`: also where its request carried some."""
        origin = request.headers.get("Origin")
        if origin is None or origin not in self.origins:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED
        if cookies:
            response.headers["Access-Control-Allow-Credentials"] = "true"

    def preflight(self, request: web.BaseRequest, methods: Collection[str], *, cookies: bool) -> web.Response:
        """Say what a page of a listed origin may ask of an endpoint that has these methods.

        Raises:
            RequestError: `FORBIDDEN`, it is not listed; `NOT_FOUND`, there is no such endpoint.
        """
        if request.headers.get("Origin") not in self.origins:
            raise RequestError(ErrorCode.FORBIDDEN, "this origin is not in gateway.origins")
        if not methods:
            raise RequestError(ErrorCode.NOT_FOUND, f"no such endpoint: {request.path[:120]}")
        response = web.Response(status=204)
        self.allow(request, response, cookies=cookies)
        response.headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        response.headers["Access-Control-Allow-Headers"] = HEADERS
        response.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
        return response

    def guard(self, response: web.StreamResponse) -> None:
        """Add the headers that every answer has."""
        headers = self.page if response.content_type == "text/html" else self.data
        for name, value in headers.items():
            response.headers.setdefault(name, value)


def _is_of(origin: str, host: str) -> bool:
    """Whether a page is the gateway's own. Whether TLS was spoken to a proxy in front is not to be seen here."""
    return bool(host) and _netloc(origin).lower() == host.lower()


def _netloc(origin: str) -> str:
    """Return an origin's host and port; "" where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _host_name(host: str) -> str:
    """Return a `Host` header's name, without the port; "" where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):  # browsers resolve them without asking anybody (RFC 6761)
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
