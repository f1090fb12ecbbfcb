"""GET /docs: Swagger UI. All assets come from the package, so the page works offline."""

from __future__ import annotations

from collections.abc import Mapping
from mimetypes import guess_type
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from api.endpoints.middleware import CheckedRoute, needs
from api.errors import NotFound

FOLDER: Final = Path(__file__).parent / "swagger_ui"
ASSETS: Final = frozenset(
    {"favicon-32x32.png", "oauth2-redirect.js", "start.js", "swagger-ui-bundle.js", "swagger-ui.css"}
)
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the style sheet contains icons
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Allows only the package's scripts, no other hosts, and no framing."""
PAGE_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
ASSET_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=3600"}

router = APIRouter(route_class=CheckedRoute, prefix="/docs", include_in_schema=False)


@router.get("")
@needs("all")
def page() -> Response:
    """Swagger UI for `/openapi.json`."""
    return _file("index.html", PAGE_HEADERS)


@router.get("/oauth2-redirect")
@needs("all")
def oauth2_redirect() -> Response:
    """The redirect URI for Swagger UI's OAuth 2 login."""
    return _file("oauth2-redirect.html", PAGE_HEADERS)


@router.get("/{asset}")
@needs("all")
def asset(asset: str) -> Response:
    """A script, style sheet or image."""
    if asset not in ASSETS:
        raise NotFound("No such asset.")
    return _file(asset, ASSET_HEADERS)


def _file(name: str, headers: Mapping[str, str]) -> Response:
    """Blocks on the file. The callers are plain functions, so FastAPI runs them in a thread."""
    return Response((FOLDER / name).read_bytes(), headers=headers, media_type=guess_type(name)[0])
