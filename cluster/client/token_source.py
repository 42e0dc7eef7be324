"""Where a client's token comes from: a text, or something that gives one when it is asked.

What must not live here: when another is needed (`connection`, `watches`, `harbor_client`).
"""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.errors import ErrorCode, HarborError, RequestError, UnavailableError

Token = str | Callable[[], str | Awaitable[str]] | None
"""A token, or a function, of which a coroutine function is awaited, that gives one that is valid for a while."""


def bearer(token: str | None) -> dict[str, str]:
    """Return what a request carries that bears a token; nothing where there is none.

    Raises:
        RequestError: `BAD_REQUEST`, no header can hold it.
    """
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise RequestError(ErrorCode.BAD_REQUEST, "the token has other characters than printable ASCII")
    return {"Authorization": f"Bearer {token}"}


class TokenSource:
    """See the module. Those who ask for another one at once get the same."""

    def __init__(self, token: Token) -> None:
        self._ask = token if callable(token) else None
        self._token = token if isinstance(token, str) else None
        self._asking = asyncio.Lock()

    @property
    def is_renewable(self) -> bool:
        """Whether there may be another one."""
        return self._ask is not None

    async def current(self) -> str | None:
        """Return the token there is, or the first; None: there is none.

        Raises:
            UnavailableError: the function failed.
        """
        return await self.renewed(None) if self._token is None and self._ask is not None else self._token

    async def headers(self) -> dict[str, str]:
        """Return what a request carries.

        Raises:
            UnavailableError: the function failed.
            RequestError: `BAD_REQUEST`, no header can hold the token.
        """
        return bearer(await self.current())

    async def renewed(self, before: str | None) -> str | None:
        """Return another token than `before`, which is of no use any more, unless somebody has got one meanwhile.

        Raises:
            UnavailableError: the function failed.
        """
        if self._ask is None:
            return self._token
        async with self._asking:
            if self._token is not None and self._token != before:
                return self._token
            try:
                given = self._ask()
                self._token = given if isinstance(given, str) else await given
            except HarborError:
                raise
            except Exception as error:
                raise UnavailableError(f"there is no token: {type(error).__name__}: {error}") from error
            return self._token
