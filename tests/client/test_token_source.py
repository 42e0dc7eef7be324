"""Tokens that are asked for: at first, before they expire, when they are refused; and no gap in what is watched meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.client import HarborClient
from cluster.client.token_source import TokenSource
from cluster.config.model import AuthConfig, GatewayConfig
from cluster.core.revocation import Revocations
from cluster.errors import HarborError, UnavailableError
from cluster.gateway.authority import ConfiguredAuthority
from tests.client.conftest import AT_ONCE
from tests.gateway.conftest import Harness
from tests.tokens import SECRET, claims, signed


async def test_a_text_is_what_it_is() -> None:
    source = TokenSource("t")
    assert (await source.current(), await source.renewed("t"), source.is_renewable) == ("t", "t", False)
    assert await TokenSource(None).headers() == {}
    assert await source.headers() == {"Authorization": "Bearer t"}


async def test_those_who_ask_at_once_get_one() -> None:
    asked = 0

    async def give() -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return f"t{asked}"

    source = TokenSource(give)
    assert await asyncio.gather(source.current(), source.current()) == ["t1", "t1"]
    assert await asyncio.gather(*(source.renewed("t1") for _ in range(5))) == ["t2"] * 5
    assert await source.renewed("t1") == "t2", "somebody has got another meanwhile"
    assert await TokenSource(lambda: "plain").current() == "plain"


async def test_a_function_that_fails() -> None:
    def give() -> str:
        raise OSError("no network")

    with pytest.raises(UnavailableError, match="there is no token: OSError: no network"):
        await TokenSource(give).current()


class Issuer:
    """Gives tokens for so many seconds each."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.given: list[str] = []

    async def __call__(self) -> str:
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self.given.append(signed(claims(seconds=seconds, jti=f"t{len(self.given)}"), SECRET, "HS256"))
        return self.given[-1]


@pytest.fixture
async def guarded() -> AsyncIterator[Harness]:
    harness = await Harness().start()
    await harness.put('["news"]', 1)
    harness.state.authority = ConfiguredAuthority(
        GatewayConfig(auth=AuthConfig("jwt", algorithms=("HS256",), secret=SECRET))
    )
    yield harness
    await harness.stop()


async def next_of(watch: Any) -> Any:
    """The next change that has data."""
    async with asyncio.timeout(30):
        while (change := await anext(watch)).data is None:
            pass
        return change


async def test_requests_ask_again_when_a_token_is_refused(guarded: Harness) -> None:
    issuer = Issuer(-1, 300)
    async with HarborClient(guarded.url, issuer) as harbor:
        assert (await harbor.get(["news"])).data == 1
        await harbor.set(["news"], 2)
        assert len(issuer.given) == 2
    async with HarborClient(guarded.url, Issuer(-1)) as harbor:
        with pytest.raises(HarborError, match="has expired"):
            await harbor.get(["news"])
    async with HarborClient(guarded.url, signed(claims(seconds=-1), SECRET, "HS256")) as harbor:
        with pytest.raises(HarborError, match="has expired"):
            await harbor.get(["news"])


async def test_a_watch_takes_another_token_in_place(guarded: Harness) -> None:
    issuer = Issuer(0.6, 300)
    async with HarborClient(guarded.url, issuer, backoff=AT_ONCE) as harbor:
        watch = harbor.watch(["news"])
        assert (await next_of(watch)).data == 1
        socket = harbor._connection.socket
        (session,) = guarded.state.sessions.values()
        async with asyncio.timeout(30):
            while session.principal is None or session.principal.token_id != "t1":
                await asyncio.sleep(0.005)
        assert session.principal.expires_ms is not None
        assert session.principal.expires_ms > time.time() * 1000 + 60_000
        await harbor.set(["news"], 2)
        assert (await next_of(watch)).data == 2
        assert harbor._connection.socket is socket


async def test_a_watch_comes_back_with_another_token(guarded: Harness) -> None:
    issuer = Issuer(300)
    async with HarborClient(guarded.url, issuer, backoff=AT_ONCE) as harbor:
        watch = harbor.watch(["news"])
        assert (await next_of(watch)).data == 1
        authority = guarded.state.authority
        assert isinstance(authority, ConfiguredAuthority)
        authority._revoked = Revocations(tokens=frozenset({"t0"}))
        guarded.server.run(guarded.state.recheck(guarded.clock.now_ms()))
        await harbor.set(["news"], 2)
        assert (await next_of(watch)).data == 2
        assert len(issuer.given) == 2


async def test_a_watch_ends_where_there_is_no_other_token(guarded: Harness) -> None:
    async with HarborClient(guarded.url, signed(claims(seconds=1), SECRET, "HS256"), backoff=AT_ONCE) as harbor:
        watch = harbor.watch(["news"])
        assert (await next_of(watch)).data == 1
        with pytest.raises(HarborError, match="3500 the token has expired") as ended:
            await next_of(watch)
        assert ended.value.code == "UNAUTHORIZED"
