"""Access tokens of an OpenID Connect provider: JWTs that say which tenant and role a caller has.

The provider's public keys (JWKS) are fetched when the first token arrives, again after an hour, and when a token names
a key that is not among them, because providers rotate their keys. A verified token is remembered until it expires, so
it costs the check of a signature once in each worker.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import httpx
import jwt
import orjson
import structlog

from api.errors import NotAuthorized, StoreUnavailable
from api.loopback import is_secure
from api.ports.access import Caller, KeyRole, digest_of

if TYPE_CHECKING:
    from jwt.types import Options

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Those with public keys. With HS256 a public key could pass for a secret one."""
DISCOVERY: Final = "/.well-known/openid-configuration"
ROLES: Final[Mapping[str, KeyRole]] = {"ragherd-admin": "admin", "ragherd-operator": "operator"}
"""Values of the role claim, highest first. Every other caller is a user."""
LEEWAY_SECONDS: Final = 60
"""How far the clocks of the provider and of this worker may be apart."""
FRESH_SECONDS: Final = 3600.0
BETWEEN_FETCHES: Final = 10.0
"""Seconds. A token with an invented key must not make the worker fetch each time."""
DEADLINE: Final = 5.0
LARGEST: Final = 256 * 1024
MOST: Final = 10_000
CHECKED: Final[Options] = {"require": ["exp", "iss", "aud"]}


class OidcTokens:
    """Verifies the tokens of one provider. `http` fetches its keys.

    The claims' names may be paths with dots: `realm_access.roles`.
    """

    def __init__(self, http: httpx.AsyncClient, issuer: str, audience: str, tenant_claim: str, role_claim: str) -> None:
        self._http = http
        self._issuer = issuer
        self._audience = audience
        self._tenant_claim = tenant_claim
        self._role_claim = role_claim
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()
        self._refresh: asyncio.Task[None] | None = None
        self._known: OrderedDict[str, Caller] = OrderedDict()
        self._log = structlog.get_logger("ragherd.access")

    async def find(self, token: str) -> Caller | None:
        """Returns who calls, or None for a token that is not valid.

        Raises `StoreUnavailable` if the provider's keys are not known, and `NotAuthorized` for one without a tenant.
        """
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is not None and known.is_valid:
            return known
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(str(header.get("kid", "")), str(header.get("alg")))
            if key is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options=CHECKED,
            )
        except jwt.PyJWTError:
            return None
        caller = self._caller(claims)
        self._known[digest] = caller
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return caller

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        given = _claim(claims, self._role_claim)
        values = given if isinstance(given, list) else [given]
        role: KeyRole = next((role for value, role in ROLES.items() if value in values), "user")
        tenant = _claim(claims, self._tenant_claim)
        if not (isinstance(tenant, str) and 0 < len(tenant) <= 200):
            raise NotAuthorized(f"The token has no tenant in its claim '{self._tenant_claim}'.")
        left = float(claims["exp"]) + LEEWAY_SECONDS - time.time()
        return Caller(tenant, role, expires_at=time.monotonic() + left)

    # -- the provider's keys -------------------------------------------------------------------------------------------

    async def _key(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        if algorithm not in ALGORITHMS:
            return None
        if kid not in self._keys:
            await self._fetch()
            if not self._keys:
                raise StoreUnavailable("The keys of the OpenID Connect provider cannot be fetched.")
        elif time.monotonic() > self._fetched_at + FRESH_SECONDS and not self._fetching.locked():
            self._refresh = asyncio.create_task(self._fetch())  # nobody waits for it
        found = self._keys.get(kid)
        return None if found is None else jwt.PyJWK({**found, "alg": found.get("alg", algorithm)})

    async def _fetch(self) -> None:
        """Fetches the keys. If that fails, those of before go on. Never raises."""
        async with self._fetching:
            if time.monotonic() < self._tried_at + BETWEEN_FETCHES:  # such as by another request meanwhile
                return
            self._tried_at = time.monotonic()
            try:
                async with asyncio.timeout(DEADLINE):
                    self._keys = await self._fetched()
                self._fetched_at = time.monotonic()
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
                self._log.warning("oidc_keys_not_fetched", error=f"{type(error).__name__}: {error}"[:300])

    async def _fetched(self) -> dict[str, Mapping[str, Any]]:
        """Raises `httpx.HTTPError`, and `ValueError` for an answer that is none of a provider."""
        found = await self._json(self._issuer.rstrip("/") + DISCOVERY)
        if found.get("issuer") != self._issuer:
            raise ValueError("the provider names another issuer")
        listed = (await self._json(_secure(str(found.get("jwks_uri", ""))))).get("keys")
        if not isinstance(listed, list):
            raise ValueError("the provider lists no keys")
        return {
            str(one.get("kid", "")): one
            for one in listed
            if isinstance(one, dict) and one.get("kty") in {"RSA", "EC", "OKP"} and one.get("use", "sig") == "sig"
        }

    async def _json(self, url: str) -> dict[str, Any]:
        async with self._http.stream("GET", url) as response:
            response.raise_for_status()
            content = b""
            async for part in response.aiter_bytes():
                content += part
                if len(content) > LARGEST:
                    raise ValueError("the answer is too large")
        found = orjson.loads(content)
        if not isinstance(found, dict):
            raise ValueError("the answer is not a JSON object")
        return found


def _secure(url: str) -> str:
    """Raises `ValueError` for an URL that others on the way could answer."""
    if is_secure(url):
        return url
    raise ValueError("jwks_uri is not https")


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a claim, or of a member of it; None if there is none. A name with dots may be one name."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
