"""The files for browsers, as they lie in `cluster/web`: the client, its guides, the console and the demonstration.

Each is read once and served under its path there, `index.html` under its directory's: the console's at `/`, the demonstration's at
`/demo`. They are the same for everybody and name nobody, so anybody may have them. A browser may keep them and asks each time whether
they have changed (`ETag`), so that a page and the modules it loads are of one version. Scripts are sent without what only
their readers need (`script`).

Pages may run the gateway's own scripts and styles, and speak with the gateway; nothing else: no inline script or style, no request
elsewhere, no text that becomes markup (Trusted Types without a policy).

What must not live here: what browsers are told of everything else (`browsers`), who may ask (`access`).
"""

import gzip
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from cluster.gateway.script import sent

WEB = Path(__file__).parent.parent / "web"
TYPES = {
    ".js": "text/javascript",
    ".ts": "text/plain",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
"""What is served, by the end of its name; other files are not."""
POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    "img-src 'self' data:; "
    "connect-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_ROOT = "console"
"""The directory whose page is at `/`."""
_DEMO = "demo"
_VENDORED = "query-core"
"""Others' scripts, which are sent as they are."""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Page(NamedTuple):
    content_type: str
    plain: bytes
    packed: bytes
    """By gzip."""
    tag: str


class Pages:
    """See the module. `demo`: whether the demonstration is among them."""

    def __init__(self, *, demo: bool = False) -> None:
        self._pages = dict(_read(demo=demo))

    @property
    def paths(self) -> frozenset[str]:
        """Everything that can be asked for."""
        return frozenset(self._pages)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Return the routes."""
        return {("GET", path): partial(self._answer, page) for path, page in self._pages.items()}

    @staticmethod
    async def _answer(page: _Page, request: web.BaseRequest) -> web.StreamResponse:
        packs = "gzip" in request.headers.get("Accept-Encoding", "")
        tag = f'"{page.tag}-gzip"' if packs else f'"{page.tag}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding, Origin"}
        if page.content_type == "text/html":
            headers["Content-Security-Policy"] = POLICY
        held = [each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")]
        if tag in held:
            return web.Response(status=304, headers=headers)
        if packs:
            headers["Content-Encoding"] = "gzip"
        body = page.packed if packs else page.plain
        return web.Response(body=body, headers=headers, content_type=page.content_type, charset="utf-8")


def _read(*, demo: bool) -> Iterator[tuple[str, _Page]]:
    for file in sorted(WEB.rglob("*")):
        content_type = TYPES.get(file.suffix)
        parts = file.relative_to(WEB).parts
        if content_type is None or (parts[0] == _DEMO and not demo):
            continue
        plain = file.read_bytes()
        if file.suffix == ".js" and _VENDORED not in parts:
            plain = sent(plain.decode()).encode()
        page = _Page(content_type, plain, gzip.compress(plain, mtime=0), sha256(plain).hexdigest()[:16])
        path = _path(parts)
        yield path, page
        if parts[-1] == "index.html" and path != "/":
            yield f"{path}/", page  # as it is often typed; what it loads is named from the root


def _path(parts: tuple[str, ...]) -> str:
    if parts[-1] != "index.html":
        return "/" + "/".join(parts)
    return "/" if parts == (_ROOT, "index.html") else "/" + "/".join(parts[:-1])
