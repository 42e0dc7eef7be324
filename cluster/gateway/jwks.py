"""The keys of a JWK Set's URL: fetched, kept, fetched again.

They are read every five minutes, and once more when a token names a key that is not there: issuers begin to sign with a new key at
once. Whoever makes up names of keys gets the URL asked every ten seconds at most. While it does not answer the keys that there are
count on. A set that has none any more is an answer: it takes them all away.

Only the configured URL is ever asked; redirects are not followed.

What must not live here: what a token is (`web_token`).
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from cluster.config.model import masked_url
from cluster.gateway.web_token import KeySet

REFRESH_S = 300.0
RETRY_S = 2.0
MAX_RETRY_S = 60.0
UNKNOWN_S = 10.0
"""Between two fetches for keys that are not there."""
TIMEOUT_S = 5.0
"""For the whole of a fetch."""
WAIT_S = 2 * TIMEOUT_S
"""Callers wait for the fetch they asked for, and for one that is under way before it."""
MAX_BYTES = 256 * 1024


class Jwks:
    """See the module. `run` fetches; others only ask it to, and wait: who gives up waiting ends no fetch that others wait for."""

    def __init__(self, url: str, algorithms: Sequence[str]) -> None:
        self._url = url
        self._algorithms = tuple(algorithms)
        self.keys: KeySet | None = None
        """None: they could not be read yet."""
        self.reason = "they are being fetched"
        """Why the last fetch failed, or brought no key; empty: neither."""
        self.fetches: Counter[str] = Counter()
        """By outcome."""
        self.number = 0
        """Grows with every change of the keys."""
        self._document: Any = None
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()
        """The fetch that was last asked for has ended."""
        self._asked_s = float("-inf")
        """When a fetch was last asked for, by the loop's clock."""

    async def prepare(self, kid: str | None) -> None:
        """Have keys fetched where one is not here that may be there; a fetch that fails leaves things as they are."""
        if self.keys is not None and (kid is None or self.keys.has(kid)):
            return
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s >= UNKNOWN_S:
            self._asked_s = now_s
            self._fetched.clear()
            self._wanted.set()
        try:
            async with asyncio.timeout(WAIT_S):
                await self._fetched.wait()
        except TimeoutError:
            pass  # `find` says what is missing

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                document = json.loads(await self._read())
            keys = KeySet.parse(document, self._algorithms)
            lack = "" if keys else f"there is no key for {' or '.join(self._algorithms)}"
            if lack and self.keys is None:
                raise ValueError(lack)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError, RecursionError) as error:
            self.fetches["error"] += 1
            told = "it did not answer in time" if isinstance(error, TimeoutError) else _told(error)
            self.reason = f"{masked_url(self._url)}: {told}"
            return
        self.fetches["success"] += 1
        self.reason = f"{masked_url(self._url)}: {lack}" if lack else ""
        self.keys = keys
        if document != self._document:
            self._document = document
            self.number += 1

    async def _read(self) -> bytes:
        certificates = httpx.create_ssl_context()  # who vouches for them is what counts of the environment
        async with (
            httpx.AsyncClient(
                follow_redirects=False, trust_env=False, timeout=TIMEOUT_S, verify=certificates
            ) as client,
            client.stream("GET", self._url, headers={"Accept": "application/json"}) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"it answered with {response.status_code}")
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    raise ValueError(f"it answered with more than {MAX_BYTES} bytes")
            return body

    async def run(self) -> None:
        """Keep the keys current, for ever."""
        failures = 0
        while True:
            self._wanted.clear()
            await self._fetch()
            if not self._wanted.is_set():  # else what was asked for meanwhile is still to come
                self._fetched.set()
            failures = failures + 1 if self.reason else 0
            wait_s = min(RETRY_S * 2 ** min(failures - 1, 10), MAX_RETRY_S) if failures else REFRESH_S
            try:
                async with asyncio.timeout(wait_s * random.uniform(0.8, 1.0)):
                    await self._wanted.wait()
            except TimeoutError:
                pass


def _told(error: Exception) -> str:
    """Return what went wrong, without the URL, which may have credentials in it."""
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "it answered with what is no JSON"
    if isinstance(error, ValueError):
        return str(error)
    return f"it cannot be reached ({type(error).__name__})"
