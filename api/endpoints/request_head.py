"""Pure ASGI middleware: what the head of a request must be before anything reads it.

`Host` and `Authorization` come once. Two of them are read differently by a proxy and by what stands behind it: one
checks the first, the other acts on the second. HTTP/1.1 needs one `Host` (RFC 9112, section 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from api.endpoints.error_responses import problem
from api.errors import HostNotAllowed, MalformedHead, RagherdError

ONCE: Final = (b"host", b"authorization")
HEALTH: Final = "/health"
"""Kubernetes probes a pod by its address, which no list of hosts can name: only the list is not asked there."""
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")


class RequestHead:
    """Refuses with 400. `allowed` are the names of ALLOWED_HOSTS, in small letters; none: any host will do."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._is_allowed = host_check(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._fault(scope)):
            response = problem(error, path=scope["path"], request_id=scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> RagherdError | None:
        given = [(name, value) for name, value in scope["headers"] if name in ONCE]
        hosts = [value for name, value in given if name == b"host"]
        if len(hosts) > 1:
            return MalformedHead("The request has two Host headers.")
        if len(given) - len(hosts) > 1:
            return MalformedHead("The request has two Authorization headers.")
        if not hosts:
            return MalformedHead("The request has no Host header.") if scope["http_version"] == "1.1" else None
        authority = _AUTHORITY.fullmatch(hosts[0].decode("latin-1"))
        if authority is None:
            return MalformedHead("The Host header is not a host name, with or without a port.")
        if not self._is_allowed(authority[1].strip("[]").lower()) and not _is_health(scope["path"]):
            return HostNotAllowed("The Host header names no host of ALLOWED_HOSTS.")
        return None


def host_check(allowed: Sequence[str]) -> Callable[[str], bool]:
    """Whether a host, without its port, is one of `allowed`; `*.name` stands for every name below, not for itself."""
    if not allowed or "*" in allowed:
        return lambda _: True
    names = frozenset(name for name in allowed if not name.startswith("*."))
    below = tuple(name[1:] for name in allowed if name.startswith("*."))

    def is_allowed(host: str) -> bool:
        name = host.removesuffix(".")  # the root of all names, which a client may write out
        return name in names or name.endswith(below)

    return is_allowed


def _is_health(path: str) -> bool:
    return path == HEALTH or path.startswith(f"{HEALTH}/")
