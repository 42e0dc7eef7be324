"""Parts of URLs.

Credentials are taken out: HTTP carries them in a header, and a library that does both at once refuses to do either.
"""

from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit


def parted(url: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return a URL without user and password, and headers with them (RFC 7617), unless those have an `Authorization` of their own."""
    parts = urlsplit(url)
    user, mark, place = parts.netloc.rpartition("@")
    if not mark:
        return url, dict(headers)
    bare = parts._replace(netloc=place).geturl()
    if any(name.lower() == "authorization" for name in headers):
        return bare, dict(headers)
    name, _, password = user.partition(":")
    said = b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return bare, {**headers, "Authorization": f"Basic {said}"}


def origin(host: str, port: int) -> str:
    """Return the URL of who listens there; an IPv6 address is in brackets (RFC 3986, 3.2.2)."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
