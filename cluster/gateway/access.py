"""Credentials: where requests carry them, and files about them, read again when they change.

What must not live here: what somebody may do (`core.grants`), which endpoint needs what (`server`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from aiohttp import web

from cluster.errors import ConfigError, ErrorCode, HarborError
from cluster.gateway.browsers import Browsers

COOKIE = "harbor_token"
CHECK_S = 2.0
"""Between looks at files."""
Content = TypeVar("Content")


def credentials(request: web.BaseRequest) -> str | None:
    """Return what a request's headers say of who sends it; where both do, `Authorization` counts.

    Raises:
        HarborError: `UNAUTHORIZED`, the header is of another scheme.
    """
    header = request.headers.get("Authorization")
    if header is None:
        return request.headers.get("X-API-Key")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise HarborError(ErrorCode.UNAUTHORIZED, "the Authorization header is 'Bearer', a space and a key")
    return token.strip()


def cookie(request: web.BaseRequest, browsers: Browsers) -> str | None:
    """Return the credentials of a browser that can send no header (sockets, event streams).

    Browsers send cookies whoever's page asks. So they count only for pages of this server and of the origins allowed by name.

    Raises:
        HarborError: `FORBIDDEN`, it is another's page.
    """
    token = request.cookies.get(COOKIE)
    if token is not None:
        browsers.check_cookie(request)
    return token


class WatchedFile(Generic[Content]):
    """A file and what it said when it was last looked at. `parse` raises `ConfigError`."""

    def __init__(self, path: str, parse: Callable[[str], Content]) -> None:
        self._path = Path(path)
        self._parse = parse
        self._seen: tuple[int, int, int] | None = None
        self.reason = ""
        """Why the file as it is now does not count; empty: it does."""

    def look(self) -> Content | None:
        """Return what the file says, or None where that is as before or cannot be used (`reason`)."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return None
            content = self._parse(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            self._seen, self.reason = None, f"{self._path}: {error.strerror}"
        except UnicodeDecodeError:
            self.reason = f"{self._path}: is not UTF-8"
        except ConfigError as error:
            self._seen, self.reason = seen, f"{self._path}: {error.message}"
        else:
            self._seen, self.reason = seen, ""
            return content
        return None
