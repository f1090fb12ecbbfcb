"""Access tokens of an OpenID Connect provider."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from api.endpoints import oidc
from api.endpoints.oidc import OidcTokens
from api.errors import NotAuthorized, StoreUnavailable
from tests.support.service import Service

ISSUER, AUDIENCE = "https://login.example/realms/acme", "ragherd"
FIRST, SECOND = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
OF_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Provider:
    """A provider whose keys a test can change."""

    def __init__(self, issuer: str = ISSUER) -> None:
        self.issuer = issuer
        self.keys: dict[str, Any] = {"one": FIRST}
        self.fetches = 0
        self.is_down = False
        self.jwks_uri = f"{issuer}/keys"

    def document(self, path: str) -> dict[str, Any] | None:
        if path.endswith("/.well-known/openid-configuration"):
            return {"issuer": self.issuer, "jwks_uri": self.jwks_uri}
        if path.endswith("/keys"):
            self.fetches += 1
            return {"keys": [{**public(key), "kid": kid, "use": "sig"} for kid, key in self.keys.items()]}
        return None

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.is_down:
            raise httpx.ConnectError("refused")
        document = self.document(request.url.path)
        return httpx.Response(404) if document is None else httpx.Response(200, json=document)

    def tokens(self, **claims: str) -> OidcTokens:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        named = {"tenant_claim": "tenant", "role_claim": "realm_access.roles"} | claims
        return OidcTokens(http, self.issuer, AUDIENCE, **named)


def public(key: Any) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    return dict(algorithm.to_jwk(key.public_key(), as_dict=True))


def token(key: Any = FIRST, kid: str = "one", algorithm: str = "ES256", **changed: Any) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 300, "iat": now, "tenant": "acme", "sub": "ann"} | changed
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


async def test_a_token_names_the_tenant_and_the_role() -> None:
    tokens = Provider().tokens()
    user = await tokens.find(token())
    assert user is not None
    assert (user.tenant, user.role, user.is_valid) == ("acme", "user", True)
    admin = await tokens.find(token(realm_access={"roles": ["offline", "ragherd-admin", "ragherd-operator"]}))
    assert admin is not None
    assert admin.role == "admin"
    misleading = await tokens.find(token(realm_access={"roles": ["admin"]}, roles=["ragherd-admin"]))
    assert misleading is not None
    assert misleading.role == "user"
    with pytest.raises(NotAuthorized):
        await tokens.find(token(tenant=None))


def unsigned() -> str:
    parts = ({"alg": "none", "kid": "one"}, {"iss": ISSUER, "aud": AUDIENCE, "exp": 2**40, "tenant": "acme"})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return f"{'.'.join(encoded)}."


def signed_with_the_public_key() -> str:
    return token(public(FIRST)["x"], algorithm="HS256")


@pytest.mark.parametrize(
    "wrong",
    [
        token(SECOND),
        token(kid="unknown"),
        token(iss="https://evil.example"),
        token(aud="another"),
        token(aud=None),
        token(exp=None),
        token(exp=int(time.time()) - 120),
        token(nbf=int(time.time()) + 600),
        token(OF_RSA, algorithm="RS256"),
        unsigned(),
        signed_with_the_public_key(),
        "eyJ.eyJ.x",
        token()[:-4] + "AAAA",
    ],
)
async def test_wrong_tokens_are_refused(wrong: str) -> None:
    assert await Provider().tokens().find(wrong) is None


async def test_clocks_may_differ_by_a_minute() -> None:
    tokens, now = Provider().tokens(), int(time.time())
    assert await tokens.find(token(exp=now - 30)) is not None
    assert await tokens.find(token(nbf=now + 30)) is not None


async def test_keys_are_fetched_once_and_again_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    tokens = provider.tokens()
    assert None not in await asyncio.gather(*(tokens.find(token(sub=str(number))) for number in range(5)))
    assert provider.fetches == 1
    provider.keys = {"two": SECOND, "rsa": OF_RSA}
    for _ in range(3):
        assert await tokens.find(token(SECOND, "two")) is None, "an invented key does not make it fetch each time"
    assert provider.fetches == 1
    monkeypatch.setattr(oidc, "BETWEEN_FETCHES", 0.0)
    assert await tokens.find(token(SECOND, "two")) is not None
    assert await tokens.find(token(OF_RSA, "rsa", "PS256")) is not None
    assert provider.fetches == 2


async def test_without_the_provider_known_keys_go_on() -> None:
    provider = Provider()
    tokens = provider.tokens()
    provider.is_down = True
    with pytest.raises(StoreUnavailable):
        await tokens.find(token())
    provider.is_down = False
    tokens = provider.tokens()
    assert await tokens.find(token()) is not None
    provider.is_down = True
    assert await tokens.find(token(sub="ben")) is not None


@pytest.mark.parametrize("jwks_uri", ["http://login.example/keys", "file:///etc/passwd", "", "http://"])
async def test_keys_come_only_from_where_nobody_can_replace_them(jwks_uri: str) -> None:
    provider = Provider()
    provider.jwks_uri = jwks_uri
    with pytest.raises(StoreUnavailable):
        await provider.tokens().find(token())


async def test_the_service_accepts_tokens_beside_keys(serve: Service) -> None:
    provider = Provider()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        body = json.dumps(provider.document(path)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        provider.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        provider.jwks_uri = f"{provider.issuer}/keys"
        access = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "api_keys": "globex=of-the-settings"}
        client = await serve(access={**access, "admin_keys": "the-admin-key", "wrong_key_delay": 0.0})

        async def status(key: str, **body: Any) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return (await client.post("/query", json={"question": "Who?", **body}, headers=headers)).status_code

        mine = token(iss=provider.issuer)
        assert await status(mine) == 200
        assert await status(mine, tenant="acme") == 200
        assert await status(mine, tenant="globex") == 403
        assert await status("of-the-settings") == 200
        assert await status(token()) == 401, "of another issuer"
        reset = "/api/circuit-breaker/reset"
        assert (await client.post(reset, headers={"Authorization": f"Bearer {mine}"})).status_code == 403
        admin = token(iss=provider.issuer, roles="ragherd-admin")
        assert (await client.post(reset, headers={"Authorization": f"Bearer {admin}"})).status_code == 200
