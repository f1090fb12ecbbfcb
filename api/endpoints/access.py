"""Keys: who may call, and as which tenant.

A key is looked up by its SHA-256 digest: one lookup however many keys there are, and its time says nothing of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.requests import Request

from api.errors import NotAuthenticated, NotAuthorized
from api.loopback import is_loopback_address, is_loopback_host

DEFAULT_TENANT: Final = "default"

Role = Literal["all", "operator", "user", "admin"]
"""Who may call an endpoint. What is an operator's needs no key yet."""


class Access:
    """`tenants` maps an API key to its tenant; `admins` are the keys with the admin's right."""

    def __init__(self, tenants: Mapping[str, str], admins: Sequence[str]) -> None:
        self._tenants = {_digest(key.encode()): tenant for key, tenant in tenants.items()}
        self._admins = frozenset(_digest(key.encode()) for key in admins)

    def admit(self, request: Request, role: Role) -> None:
        """Raises `NotAuthenticated` or `NotAuthorized` for a caller who may not do what `role` may."""
        if role == "admin":
            self.require_admin(request)
        elif role == "user":
            self.require_user(request)

    def require_user(self, request: Request) -> None:
        """Raises `NotAuthenticated`."""
        if self._tenants:
            key = _bearer(request)
            if self._tenant_of(key) is None and not self._is_admin(key):
                raise _no_valid_key()

    def tenant(self, request: Request, asked: str | None) -> str:
        """The tenant of a query. Raises `NotAuthenticated` or, where the key is another tenant's, `NotAuthorized`."""
        if not self._tenants:
            return asked or DEFAULT_TENANT
        key = _bearer(request)
        if self._is_admin(key):
            return asked or DEFAULT_TENANT
        tenant = self._tenant_of(key)
        if tenant is None:
            raise _no_valid_key()
        if asked is not None and asked != tenant:
            raise NotAuthorized("The key belongs to another tenant than the request asks for.")
        return tenant

    def is_open_to_all_tenants(self, request: Request) -> bool:
        """Whether the caller may see what is any tenant's: an admin, or anybody where there are no keys."""
        return not self._tenants or self._is_admin(_bearer(request))

    def require_admin(self, request: Request) -> None:
        """Raises `NotAuthenticated` or `NotAuthorized`. Without admin keys, callers on this machine are admins."""
        if not self._admins:
            if not _is_loopback(request):
                raise NotAuthorized("Without ADMIN_KEYS, admin endpoints answer to loopback addresses only.")
            if _is_from_a_web_page(request.headers):
                raise NotAuthorized("Without ADMIN_KEYS, admin endpoints do not answer to web pages of other origins.")
            return
        key = _bearer(request)
        if self._is_admin(key):
            return
        if self._tenant_of(key) is not None:
            raise NotAuthorized("The key has not the admin's right.")
        raise NotAuthenticated("Send `Authorization: Bearer <key>` with an admin key.")

    def is_admin(self, request: Request) -> bool:
        """Whether `require_admin` would let the caller pass: a report open to all then names tenants too."""
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
    return NotAuthenticated("Send `Authorization: Bearer <key>` with a valid API key.")


def _bearer(request: Request) -> bytes | None:
    """The digest of the key that a request brings."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return _digest(key.strip().encode()) if scheme.lower() == "bearer" and key.strip() else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_from_a_web_page(headers: Headers) -> bool:
    """Whether a browser on this machine may have sent it for somebody else's page.

    A page can post a form to another origin, which the browser then names; and it can have its own name resolve to
    127.0.0.1 once it is loaded, which the `Host` shows.
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
