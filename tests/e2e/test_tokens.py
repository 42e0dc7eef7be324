"""Tokens and tenants on a whole cluster, over HTTP, event streams and sockets: expiry, refresh, revocation, isolation."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.live import LiveCluster, text
from tests.tokens import SECRET, claims, signed

pytestmark = pytest.mark.cluster


def token(org: str | None, **more: Any) -> str:
    return signed(claims(**({} if org is None else {"org": org}), **more), SECRET, "HS256")


def bearing(said: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {said}"}


async def until(socket: Any, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            for message in orjson.loads(await socket.recv()):
                if message["type"] == kind:
                    return dict(message)


async def closed(socket: Any) -> tuple[int | None, str | None]:
    async with asyncio.timeout(60):
        while True:
            try:
                await socket.recv()
            except ConnectionClosed:
                return socket.close_code, socket.close_reason


async def test_tokens_and_tenants_on_a_cluster(local_ray: None, tmp_path: Path) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    auth = {"mode": "jwt", "algorithms": ["HS256"], "secret": SECRET, "revoked_file": str(revoked)}
    live = LiveCluster(
        {"gateway": {"auth": auth, "tenant_claim": "org"}, "storage": {"path": str(tmp_path / "s")}}
    ).start()
    url = live.url.replace("http", "ws", 1) + "/v1/socket"
    try:
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as http:

            async def ask(said: str, method: str = "GET", *key: Any, **more: Any) -> httpx.Response:
                params = {"key": text(*key)}
                return await http.request(method, "/v1/entries", params=params, headers=bearing(said), **more)

            acme, globex, operator = (
                token("acme", jti="t1"),
                token("globex"),
                token(None, harbor={"read": [[]], "admin": True}),
            )
            assert (await ask(acme, "PUT", "p", json="acme's")).status_code == 200
            assert [
                (await ask(said, "GET", "p")).status_code for said in (acme, globex, token("globex", seconds=-1))
            ] == [200, 404, 401]
            assert (await ask(operator, "GET", "acme", "p")).json()["data"] == "acme's"
            assert (await ask(token(None), "GET", "p")).status_code == 401
            described = await http.get("/v1/cluster", headers=bearing(operator))
            assert (described.status_code, described.json()["ready"]) == (200, True)
            assert (
                await http.get("/v1/cluster", headers=bearing(token("acme", harbor={"admin": True})))
            ).status_code == 403

            short = token("acme", seconds=15)
            async with (
                connect(url, additional_headers=bearing(acme), proxy=None) as first,
                connect(url, additional_headers=bearing(short), proxy=None) as ends,
                connect(url, additional_headers=bearing(short), proxy=None) as renewed,
                http.stream("GET", "/v1/stream", params={"prefix": "[]"}, headers=bearing(short)) as stream,
            ):
                for socket in (first, ends, renewed):
                    await socket.send('{"type":"subscribe","id":1,"prefix":[]}')
                    assert (await until(socket, "snapshot"))["key"] == ["p"]
                assert (await until(renewed, "notice"))["code"] == "token_expires"
                await renewed.send(orjson.dumps({"type": "auth", "id": 2, "token": acme}).decode())
                await until(renewed, "result")
                assert await closed(ends) == (3500, "the token has expired")
                async with asyncio.timeout(60):
                    assert b'"message":"the token has expired"' in await stream.aread()
                await ask(globex, "PUT", "p", json="globex's")
                await ask(acme, "PUT", "p", json="new")
                change = await until(renewed, "change")
                assert (change["key"], change["data"]) == (["p"], "new")
                revoked.write_text("jti:t1\n")
                for socket in (first, renewed):
                    assert await closed(socket) == (3500, "the credentials were revoked")
            assert (await ask(acme, "GET", "p")).status_code == 401
            assert (await ask(token("acme"), "GET", "p")).json()["data"] == "new"
    finally:
        live.stop()
