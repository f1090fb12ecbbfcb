"""Keys: who may call, and as which tenant. Compared in constant time, and against all of them."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request

from api.errors import NotAuthenticated, NotAuthorized
from api.loopback import is_loopback_address, is_loopback_host

DEFAULT_TENANT: Final = "default"


class Access:
    """`tenants` maps an API key to its tenant; `admins` are the keys with the admin's right."""

    def __init__(self, tenants: Mapping[str, str], admins: Sequence[str]) -> None:
        self._tenants = [(key.encode(), tenant) for key, tenant in tenants.items()]
        self._admins = [key.encode() for key in admins]

    def require_user(self, request: Request) -> None:
        """Raises `NotAuthenticated`: whatever else the request says is not looked at without a key."""
        if self._tenants:
            key = _bearer(request)
            if self._tenant_of(key) is None and not (key is not None and self._is_admin(key)):
                raise _no_valid_key()

    def tenant(self, request: Request, asked: str | None) -> str:
        """The tenant of a query. Raises `NotAuthenticated` or, where the key is another tenant's, `NotAuthorized`."""
        if not self._tenants:
            return asked or DEFAULT_TENANT
        key = _bearer(request)
        if key is not None and self._is_admin(key):
            return asked or DEFAULT_TENANT
        tenant = self._tenant_of(key)
        if tenant is None:
            raise _no_valid_key()
        if asked is not None and asked != tenant:
            raise NotAuthorized("The key belongs to another tenant than the request asks for.")
        return tenant

    def is_open_to_all_tenants(self, request: Request) -> bool:
        """Whether the caller may see what is any tenant's: an admin, or anybody where there are no keys."""
        key = _bearer(request)
        return not self._tenants or (key is not None and self._is_admin(key))

    def require_admin(self, request: Request) -> None:
        """Raises `NotAuthenticated` or `NotAuthorized`. Without admin keys, callers on this machine are admins."""
        if not self._admins:
            if not _is_loopback(request):
                raise NotAuthorized("Without ADMIN_KEYS, admin endpoints answer to loopback addresses only.")
            if _is_from_a_web_page(request.headers):
                raise NotAuthorized("Without ADMIN_KEYS, admin endpoints do not answer to web pages of other origins.")
            return
        key = _bearer(request)
        if key is not None and self._is_admin(key):
            return
        if self._tenant_of(key) is not None:
            raise NotAuthorized("The key has not the admin's right.")
        raise NotAuthenticated("Send `Authorization: Bearer <key>` with an admin key.")

    def _is_admin(self, key: bytes) -> bool:
        return any([hmac.compare_digest(key, admin) for admin in self._admins])  # noqa: C419 - all, in constant time

    def _tenant_of(self, key: bytes | None) -> str | None:
        found = None
        for known, tenant in self._tenants:
            if key is not None and hmac.compare_digest(key, known):
                found = tenant
        return found


def _no_valid_key() -> NotAuthenticated:
    return NotAuthenticated("Send `Authorization: Bearer <key>` with a valid API key.")


def _bearer(request: Request) -> bytes | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" and key.strip() else None


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
