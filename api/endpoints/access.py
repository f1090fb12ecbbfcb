"""API keys: who may call, and as which tenant.

Keys are looked up by their SHA-256 digest. A lookup takes the same time for any number of keys and does not leak them.
Keys of the settings are known from the start; those in Redis begin with `rgh_`, and `known_keys` has a worker's copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.requests import Request

from api.endpoints.known_keys import KnownKeys, WrongKeys
from api.errors import KeysUnavailable, NotAuthenticated, NotAuthorized, StoreUnavailable
from api.loopback import is_loopback_address, is_loopback_host
from api.ports.access import MARK, RANKS, Caller, Lease, TokenVerifier, is_token
from api.ports.limits import CHARGED, UNLIMITED, Charge, LimitPlan, Limits, plan_of
from api.values import Priority

DEFAULT_TENANT: Final = "default"

Role = Literal["all", "operator", "user", "admin"]
"""The role that may call an endpoint. Operators need a key only with REQUIRE_KEYS."""
Charged = Literal["question", "request"]
"""What an endpoint charges: a question, whose hit may be free, or each request."""


class Access:
    """Checks keys. `tenants` maps each API key to its tenant; `admins` lists the admin keys.

    `batch`: the API keys whose questions wait as batch work. `known`: the keys in Redis. `tokens`: those of an OpenID
    Connect provider. With `required`, users and operators need a key although `tenants` may be empty. `limits`: those
    of each tenant. `counts_hits`: answers from the cache are charged too.
    """

    def __init__(
        self,
        tenants: Mapping[str, str],
        admins: Sequence[str],
        batch: Sequence[str] = (),
        *,
        known: KnownKeys | None = None,
        wrong: WrongKeys | None = None,
        tokens: TokenVerifier | None = None,
        required: bool = False,
        limits: Limits = UNLIMITED,
        counts_hits: bool = True,
    ) -> None:
        self._lease = Lease()
        self.adopt(tenants, admins)
        self._batch = frozenset(_digest(key.encode()) for key in batch)
        self.has_batch_keys = bool(self._batch)
        self._known = known
        self._wrong = wrong
        self._tokens = tokens
        self._required = required
        self._limits = limits
        self._has_limits = bool(limits)
        self._counts_hits = counts_hits
        self._keyed = bool(tenants) or required or tokens is not None

    def adopt(self, tenants: Mapping[str, str], admins: Sequence[str]) -> None:
        """Takes other keys of the settings. Whatever remembers a caller by one of the former keys looks again."""
        self._lease.until = 0.0
        lease = self._lease = Lease()
        users = {_digest(key.encode()): Caller(tenant, "user", lease=lease) for key, tenant in tenants.items()}
        others = {_digest(key.encode()): Caller(DEFAULT_TENANT, "admin", lease=lease) for key in admins}
        self._fixed = users | others
        self._has_admin_keys = bool(admins)

    async def admit(self, request: Request, role: Role) -> None:
        """Raises `NotAuthenticated`, `NotAuthorized` or `KeysUnavailable` if the caller lacks `role`.

        A caller with a wrong key waits for the answer.
        """
        key = _key_of(request)
        finder: KnownKeys | TokenVerifier | None = self._known if key.startswith(MARK) else None
        if self._tokens is not None and is_token(key):
            finder = self._tokens
        if finder is not None:
            try:
                request.state.caller = await finder.find(key)
            except StoreUnavailable:
                request.state.caller = _UNKNOWN
        if key and getattr(request.state, "caller", None) is None:
            request.state.caller = self._fixed.get(_digest(key.encode()))
        try:
            self.check(request, role)
        except NotAuthenticated:
            if self._wrong is not None and key:
                await self._wrong.refuse(request.client.host if request.client is not None else "")
            raise

    def check(self, request: Request, role: Role) -> None:
        """Like `admit`, for a request that was admitted before."""
        if role == "admin":
            self.require_admin(request)
        elif role == "user" and self._keyed:
            self._identified(request)
        elif role == "operator" and self._required:
            caller = self._identified(request)
            if RANKS[caller.role] < RANKS["operator"]:
                raise NotAuthorized("Operator key required.")

    def tenant(self, request: Request, requested: str | None) -> str:
        """Returns the tenant of a request. Raises `NotAuthenticated`, or `NotAuthorized` if the key belongs to another
        tenant. The access log reads it from the request's state.
        """
        tenant = requested or DEFAULT_TENANT
        if self._keyed:
            caller = self._identified(request)
            if caller.role == "admin":
                tenant = requested or caller.tenant
            elif requested is not None and requested != caller.tenant:
                raise NotAuthorized("The key belongs to another tenant than the requested one.")
            else:
                tenant = caller.tenant
        request.state.tenant = tenant
        return tenant

    def check_model(self, request: Request, model: str) -> None:
        """Raises `NotAuthorized` if the caller's key does not allow a model."""
        if self._keyed and not self._identified(request).may_use(model):
            raise NotAuthorized(f"The key may not use the model '{model}'.")

    def charge(self, request: Request) -> Charge | None:
        """Returns what a request is charged, or None without limits. The tenant of the request must be known."""
        plan = self._plan(request.state.tenant, self._caller(request) if self._keyed else None)
        if plan is None:
            return None
        charged: Charge | None = request.scope["state"].pop(CHARGED, None)  # by the fast path, which had no answer
        charge = request.state.charge = charged or Charge(plan, counts_hits=self._counts_hits)
        return charge

    def _plan(self, tenant: str, caller: Caller | None) -> LimitPlan | None:
        if caller is not None and (own := caller.limits):
            return plan_of(tenant, caller.id, own, self._limits)
        return plan_of(tenant, "", UNLIMITED, self._limits) if self._has_limits else None

    def known_plan(self, request: Request, charged: Charged) -> LimitPlan | None:
        """Returns the limits of a request whose body is unread, if its key decides its tenant. Sets the tenant.

        None if only the cache knows whether the request is charged, or if it was charged already.
        """
        caller = self._caller(request) if self._keyed else None
        if caller is None or caller.role == "admin" or (charged == "question" and not self._counts_hits):
            return None
        earlier: Charge | None = request.scope["state"].get(CHARGED)
        if earlier is not None and not earlier.is_refused:
            return None
        request.state.tenant = caller.tenant
        return self._plan(caller.tenant, caller)

    def priority(self, request: Request, requested: Priority | None) -> Priority:
        """Returns the priority of a question. Raises `NotAuthorized` if the key is limited to batch work."""
        if not self.has_batch_keys or _bearer(request) not in self._batch:
            return requested or Priority.USER
        if requested is Priority.USER:
            raise NotAuthorized("The key is limited to batch priority.")
        return Priority.BATCH

    def voter(self, request: Request, tenant: str) -> str:
        """Identifies who gives feedback: the key, or without keys the tenant and the client's address."""
        key = _bearer(request) if self._keyed else None
        if key is None:
            address = request.client.host if request.client is not None else ""
            key = _digest(f"{tenant} {address}".encode())
        return key.hex()[:16]

    def sees_all_tenants(self, request: Request) -> bool:
        """Returns whether the caller may see every tenant: an admin, or any caller if no keys are configured."""
        return not self._keyed or self._identified(request).role == "admin"

    def require_admin(self, request: Request) -> None:
        """Raises `NotAuthenticated` or `NotAuthorized`. Without admin keys, callers on this machine are admins."""
        caller = self._caller(request)
        if caller is not None and caller.role == "admin":
            return
        if not self._has_admin_keys:
            if not _is_loopback(request):
                raise NotAuthorized("Without ADMIN_KEYS, admin endpoints accept only loopback addresses.")
            if _is_from_a_web_page(request.headers):
                raise NotAuthorized(
                    "Without ADMIN_KEYS, admin endpoints reject requests from web pages of other origins."
                )
            return
        if caller is not None:
            raise NotAuthorized("Admin key required.")
        raise NotAuthenticated("Admin key required: send `Authorization: Bearer <key>`.")

    def actor(self, request: Request) -> tuple[str, Role]:
        """Names an admin for the audit log, without the secret: the key's ID, or the start of its digest."""
        caller, key = self._caller(request), _bearer(request)
        if caller is None or caller.role != "admin" or key is None:
            return "this-machine", "admin"
        return caller.id or f"key-{key.hex()[:8]}", "admin"

    def is_admin(self, request: Request) -> bool:
        """Returns whether `require_admin` accepts the caller. Some open reports show tenants' names to admins only."""
        try:
            self.require_admin(request)
        except (NotAuthenticated, NotAuthorized, KeysUnavailable):
            return False
        return True

    def _identified(self, request: Request) -> Caller:
        """Returns who calls. Raises `NotAuthenticated` and `KeysUnavailable`."""
        caller = self._caller(request)
        if caller is None:
            raise _no_valid_key()
        return caller

    def _caller(self, request: Request) -> Caller | None:
        """Returns who calls, or None without a valid key. Raises `KeysUnavailable`."""
        found: Caller | None = getattr(request.state, "caller", None)
        if found is _UNKNOWN:
            raise KeysUnavailable
        if found is None and (key := _bearer(request)) is not None:
            return self._fixed.get(key)
        return found


_UNKNOWN: Final = Caller("", "user")
"""Stands for the caller of a key that Redis may know, while Redis is down."""


def _no_valid_key() -> NotAuthenticated:
    return NotAuthenticated("Valid API key required: send `Authorization: Bearer <key>`.")


def _bearer(request: Request) -> bytes | None:
    """Returns the digest of the request's key."""
    key = _key_of(request)
    return _digest(key.encode()) if key else None


def _key_of(request: Request) -> str:
    """Returns the request's key, or "". Anthropic's clients send it as `X-Api-Key`."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = request.headers.get("x-api-key", "") if not scheme else ""
    return key.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_from_a_web_page(headers: Headers) -> bool:
    """Returns whether a browser on this machine may have sent the request for a page of another origin.

    A page can post a form to another origin; the browser then sends `Origin`. A page can also make its own host name
    resolve to 127.0.0.1 after it was loaded (DNS rebinding); `Host` then has that name.
    """
    host = headers.get("host", "").lower()
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host:
        return True
    if headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        return True
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return bool(name) and not is_loopback_host(name)


def _is_loopback(request: Request) -> bool:
    return request.client is None or is_loopback_address(request.client.host)  # None: a unix socket
