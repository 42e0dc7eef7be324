"""One-shot requests to a gateway."""

from collections.abc import Collection, Generator
from typing import Any

import httpx
import orjson

from cluster.client.answer import Answer, read_answer
from cluster.client.gateways import check_url
from cluster.client.mutation import path_of
from cluster.client.token_source import bearer
from cluster.errors import ErrorCode, RequestError, UnavailableError

BACKUP_TIMEOUT_S = 660.0
"""Without a byte of a backup: shards take their time to copy (`actors.handles.COPY_TIMEOUT_S`) before the first."""


class HttpClient:
    """A gateway's HTTP API.

    Every method raises `HarborError` with the cluster's code; `RequestError` where what was asked for cannot be sent, `UnavailableError`
    where no cluster answers.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 65.0) -> None:
        """Build; `timeout_s` is longer than the gateway's own, which knows better what went wrong.

        Raises:
            RequestError: `BAD_REQUEST`, the URL or the token is none.
        """
        check_url(url)
        self._url = url
        self._client = httpx.Client(base_url=url, headers=bearer(token), timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        """Close what it holds open; a command leaves that to the end of its process."""
        self._client.close()

    def get(self, key: str, *, fetch: str = "auto") -> dict[str, Any]:
        """Return an entry; `fetch`: auto | never | force."""
        return self._ask("GET", "/v1/entries", params={"key": key, "fetch": fetch})

    def put(self, key: str, data: Any) -> int:
        """Replace an entry's data. Returns its version."""
        return self._ask("PUT", "/v1/entries", params={"key": key}, body=data).member("version", int)

    def keys(self, prefix: str) -> list[dict[str, Any]]:
        """Return the rows of every entry under a prefix."""
        return self._all("/v1/keys", "keys", {"prefix": prefix, "limit": "1000"})

    def _all(self, path: str, name: str, params: dict[str, str]) -> list[dict[str, Any]]:
        """Return the rows of all pages of a listing."""
        rows: list[dict[str, Any]] = []
        while True:
            answer = self._ask("GET", path, params=params)
            rows.extend(answer.member(name, list))
            if "cursor" not in answer:
                return rows
            params["cursor"] = answer.member("cursor", str)

    def invalidate(self, key: Any, *, exact: bool) -> int:
        """Mark entries as out of date. Returns how many."""
        return self._ask("POST", "/v1/invalidate", body={"key": key, "exact": exact}).member("matched", int)

    def mutations(self, statuses: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return mutations, oldest first; of some statuses where those are named."""
        return self._all("/v1/mutations", "mutations", {"status": ",".join(statuses)} if statuses else {})

    def undo(self, mutation: str) -> dict[str, Any]:
        """Cancel a mutation that was not sent yet; returns it."""
        return self._ask("DELETE", path_of(mutation))

    def scale(self, counts: dict[str, int]) -> None:
        """Have another number of actors, by kind; `cluster` shows when it is so."""
        self._ask("POST", "/v1/scale", body=counts)

    def cluster(self, *, dead_letters: bool = False) -> dict[str, Any]:
        """Return the description of the cluster; `dead_letters`: with the events that came to nothing."""
        return self._ask("GET", "/v1/cluster", params={"dead_letters": "true"} if dead_letters else None)

    def backup(self) -> Generator[bytes, None, None]:
        """Have a backup made, and yield its stream as it comes (`wire.backup`).

        Raises:
            HarborError: the cluster refuses, or the stream breaks off.
        """
        try:
            with self._client.stream("POST", "/v1/backup", timeout=BACKUP_TIMEOUT_S) as response:
                if response.status_code != httpx.codes.OK:
                    read_answer(self._url, response.status_code, response.read())
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            reason = f"{self._url} does not answer, or broke off: {error or type(error).__name__}"
            raise UnavailableError(reason) from error

    def _ask(self, method: str, path: str, *, params: dict[str, str] | None = None, body: Any = ...) -> Answer:
        headers = {} if body is ... else {"Content-Type": "application/json"}
        try:
            content = None if body is ... else orjson.dumps(body)
            response = self._client.request(method, path, params=params, content=content, headers=headers)
        except (httpx.InvalidURL, TypeError, ValueError) as error:  # text that is no Unicode, above all
            raise RequestError(ErrorCode.BAD_REQUEST, f"that cannot be sent: {error}") from error
        except httpx.HTTPError as error:
            raise UnavailableError(f"no cluster answers at {self._url}: {error or type(error).__name__}") from error
        return read_answer(self._url, response.status_code, response.content)
