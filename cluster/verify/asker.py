"""Requests of a client over HTTP, repeated with their `Idempotency-Key` until there is an answer, as any careful client would.

What must not live here: what is asked for, and what its answer means (`load`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp
import orjson
from msgspec import Struct

from cluster.errors import ErrorCode, HarborError, RequestError, UnavailableError

ATTEMPT_S = 10.0
GIVE_UP_S = 60.0
AGAIN_S = 0.1
TEMPORARY = frozenset({429, 502, 503, 504})
PAGE_KEYS = 1000


class Answer(Struct, frozen=True):
    """What a request came to."""

    status: int
    body: Any
    etag: str | None


class Asker:
    """See the module."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None
        self.counts: Counter[str] = Counter()
        self.give_up_s = GIVE_UP_S

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_S)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=connector, headers=self._headers, trust_env=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def once(self, method: str, path: str, *, body: bytes | None = None, **more: Any) -> Answer:
        """Ask once.

        Raises:
            UnavailableError: no answer came.
        """
        assert self._session is not None
        try:
            async with self._session.request(method, f"{self._url}{path}", data=body, **more) as response:
                raw = await response.read()
                etag = response.headers.get("ETag")
                is_json = response.content_type == "application/json"
                return Answer(response.status, orjson.loads(raw) if is_json and raw else None, etag)
        except aiohttp.InvalidURL as error:
            raise RequestError(ErrorCode.BAD_REQUEST, f"not a URL: {self._url!r}") from error
        except (OSError, TimeoutError, aiohttp.ClientError, orjson.JSONDecodeError) as error:
            cause = getattr(error, "os_error", error)  # aiohttp says of it "ssl:default" where there is no TLS
            reason = f"no cluster answers at {self._url}: {cause or type(cause).__name__}"
            raise UnavailableError(reason) from error

    async def answered(
        self, method: str, path: str, *, give_up_s: float | None = None, body: bytes | None = None, **more: Any
    ) -> Answer | None:
        """Ask until there is an answer; None: there was none for so long, or for `self.give_up_s`."""
        began = time.monotonic()
        while True:
            try:
                answer = await self.once(method, path, body=body, **more)
            except UnavailableError:
                answer = None
            if answer is not None and answer.status not in TEMPORARY:
                return answer
            if time.monotonic() - began > (self.give_up_s if give_up_s is None else give_up_s):
                return None
            self.counts["repeats for want of an answer"] += 1
            await asyncio.sleep(AGAIN_S)

    async def pages(self, prefix: str, give_up_s: float) -> AsyncIterator[list[dict[str, Any]] | None]:
        """Yield what there is under a prefix, page by page; None: that was not all, and no more is told."""
        params = {"prefix": prefix, "limit": str(PAGE_KEYS)}
        while True:
            listed = await self.answered("GET", "/v1/keys", give_up_s=give_up_s, params=params)
            if listed is None or listed.status != 200:
                yield None
                return
            yield listed.body["keys"]
            if "cursor" not in listed.body:
                return
            params["cursor"] = listed.body["cursor"]


def refusal(answer: Answer, what: str) -> HarborError:
    """Return an answer that says no as an error."""
    error = answer.body.get("error", {}) if isinstance(answer.body, dict) else {}
    code = ErrorCode(error["code"]) if error.get("code") in set(ErrorCode) else ErrorCode.UNAVAILABLE
    return HarborError(code, f"{what}: {error.get('message', f'HTTP {answer.status}')}")
