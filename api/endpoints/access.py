"""API keys: who may call, and as which tenant.

Keys are looked up by their SHA-256 digest. A lookup takes the same time for any number of keys and does not leak them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.requests import Request

from api.errors import NotAuthenticated, NotAuthorized
from api.loopback import is_loopback_address, is_loopback_host
from api.values import Priority

DEFAULT_TENANT: Final = "default"

Role = Literal["all", "operator", "user", "admin"]
"""The role that may call an endpoint. Operators need no key yet."""


class Access:
    """Checks keys. `tenants` maps each API key to its tenant; `admins` lists the admin keys.

    `batch`: the API keys whose questions wait as batch work.
    """

    def __init__(self, tenants: Mapping[str, str], admins: Sequence[str], batch: Sequence[str] = ()) -> None:
        self._tenants = {_digest(key.encode()): tenant for key, tenant in tenants.items()}
        self._admins = frozenset(_digest(key.encode()) for key in admins)
        self._batch = frozenset(_digest(key.encode()) for key in batch)
        self.has_batch_keys = bool(self._batch)

    def admit(self, request: Request, role: Role) -> None:
        """Raises `NotAuthenticated` or `NotAuthorized` if the caller lacks `role`."""
        if role == "admin":
            self.require_admin(request)
        elif role == "user" and self._tenants:
            key = _bearer(request)
            if self._tenant_of(key) is None and not self._is_admin(key):
                raise _no_valid_key()

    def tenant(self, request: Request, requested: str | None) -> str:
        """Returns the tenant of a request. Raises `NotAuthenticated`, or `NotAuthorized` if the key belongs to another
        tenant. The access log reads it from the request's state.
        """
        tenant = requested or DEFAULT_TENANT
        if self._tenants and not self._is_admin(key := _bearer(request)):
            own = self._tenant_of(key)
            if own is None:
                raise _no_valid_key()
            if requested is not None and requested != own:
                raise NotAuthorized("The key belongs to another tenant than the requested one.")
            tenant = own
        request.state.tenant = tenant
        return tenant

    def priority(self, request: Request, requested: Priority | None) -> Priority:
        """Returns the priority of a question. Raises `NotAuthorized` if the key is limited to batch work."""
        if not self.has_batch_keys or _bearer(request) not in self._batch:
            return requested or Priority.USER
        if requested is Priority.USER:
            raise NotAuthorized("The key is limited to batch priority.")
        return Priority.BATCH

    def voter(self, request: Request, tenant: str) -> str:
        """Identifies who gives feedback: the key, or without keys the tenant and the client's address."""
        key = _bearer(request) if self._tenants else None
        if key is None:
            address = request.client.host if request.client is not None else ""
            key = _digest(f"{tenant} {address}".encode())
        return key.hex()[:16]

    def sees_all_tenants(self, request: Request) -> bool:
        """Returns whether the caller may see every tenant: an admin, or any caller if no keys are configured."""
        return not self._tenants or self._is_admin(_bearer(request))

    def require_admin(self, request: Request) -> None:
        """Raises `NotAuthenticated` or `NotAuthorized`. Without admin keys, callers on this machine are admins."""
        if not self._admins:
            if not _is_loopback(request):
                raise NotAuthorized("Without ADMIN_KEYS, admin endpoints accept only loopback addresses.")
            if _is_from_a_web_page(request.headers):
                raise NotAuthorized(
                    "Without ADMIN_KEYS, admin endpoints reject requests from web pages of other origins."
                )
            return
        key = _bearer(request)
        if self._is_admin(key):
            return
        if self._tenant_of(key) is not None:
            raise NotAuthorized("Admin key required.")
        raise NotAuthenticated("Admin key required: send `Authorization: Bearer <key>`.")

    def actor(self, request: Request) -> tuple[str, Role]:
        """Names an admin for the audit log, without the secret: the start of the key's digest."""
        key = _bearer(request)
        return f"key-{key.hex()[:8]}" if key is not None and self._is_admin(key) else "this-machine", "admin"

    def is_admin(self, request: Request) -> bool:
        """Returns whether `require_admin` accepts the caller. Some open reports show tenants' names to admins only."""
        try:
            self.require_admin(request)
        except (NotAuthenticated, NotAuthorized):
            return False
        return True

    def _is_admin(self, key: bytes | None) -> bool:
        return key in self._admins

    def _tenant_of(self, key: bytes | None) -> str | None:
        return None if key is None else self._tenants.get(key)


def _no_valid_key() -> NotAuthenticated:
    return NotAuthenticated("Valid API key required: send `Authorization: Bearer <key>`.")


def _bearer(request: Request) -> bytes | None:
    """Returns the digest of the request's key. Anthropic's clients send it as `X-Api-Key`."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = request.headers.get("x-api-key", "") if not scheme else ""
    return _digest(key.strip().encode()) if key.strip() else None


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
