"""What is said to a request that no route takes: other methods of its path, or the same path without its last slash."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")


def methods_of(request: Request) -> tuple[str, ...]:
    """Every method that the path of a request takes. HEAD is answered wherever GET is, OPTIONS nowhere."""
    taken = [method for method in METHODS if _is_taken(request, method)]
    return tuple(sorted({*taken, "HEAD"} if "GET" in taken else taken))


def redirect_without_slash(request: Request) -> Response | None:
    """To the same path without the slash at its end, where a route is.

    Of this host, and told without its name: what `Host` says is the caller's to choose. A path that begins with two
    slashes would name another host, and gets none.
    """
    path = request.scope["path"].rstrip("/")
    if path == request.scope["path"] or not path or path.startswith("//"):
        return None
    if not _is_taken(request, request.method, path):
        return None
    query = request.scope["query_string"].decode("latin-1")
    location = quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
    return Response(status_code=307, headers={"Location": location})


def _is_taken(request: Request, method: str, path: str | None = None) -> bool:
    scope = {**request.scope, "method": method, "path": path or request.scope["path"]}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)
