"""Issuers of tokens for tests: key pairs, signed tokens, and a real server of a JWK Set."""

import base64
import json
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.live import free_port

SECRET = "a shared secret of more than thirty-two bytes"
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@cache
def rsa_key(name: str = "first", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(algorithm: str = "ES256") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[algorithm])


def pem(key: Any) -> str:
    """The public half, in PEM."""
    public = key.public_key()
    return str(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    )


def private_pem(key: Any) -> str:
    return str(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    )


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public half, as a JWK."""
    kind: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), **({} if kid is None else {"kid": kid}), **more}


def claims(subject: str = "ann", *, seconds: float = 300.0, **more: Any) -> dict[str, Any]:
    grants = {"read": [[]], "write": [[]], "mutate": ["*"], "presence": ["*"]}
    return {"sub": subject, "exp": time.time() + seconds, "harbor": grants, **more}


def signed(
    said: dict[str, Any] | str,
    key: Any = None,
    algorithm: str = "RS256",
    *,
    kid: str | None = None,
    headers: dict[str, Any] | None = None,
) -> str:
    """A token; `said` may be text, for what no library would write."""
    head = {"typ": "JWT", **({} if kid is None else {"kid": kid}), **(headers or {})}
    payload = said.encode() if isinstance(said, str) else json.dumps(said).encode()
    return jwt.PyJWS().encode(payload, rsa_key() if key is None else key, algorithm, headers=head)


def encoded(part: dict[str, Any] | str | bytes) -> str:
    """A part of a token."""
    text = json.dumps(part).encode() if isinstance(part, dict) else part.encode() if isinstance(part, str) else part
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class JwksServer:
    """A JWK Set on a port of its own. `answer` may be replaced."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/jwks"
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response({"keys": self.keys})
        self._runner: web.AppRunner | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> "JwksServer":
        if tls is not None:
            self.url = self.url.replace("http:", "https:")
        app = web.Application()
        app.router.add_get("/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls).start()
        return self

    async def _handle(self, _: web.Request) -> web.StreamResponse:
        self.asked += 1
        return self.answer()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
