"""GET /docs: the API's description as a page. Everything it loads comes from the package, so that it works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import FileResponse

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
        "img-src 'self' data:",  # the style sheet has its icons in it
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""No script but the package's, nothing from or to another host, in no other page's frame."""
PAGE_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
ASSET_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=3600"}

router = APIRouter(prefix="/docs", include_in_schema=False)


@router.get("")
def page() -> FileResponse:
    """Swagger UI on `/openapi.json`."""
    return FileResponse(FOLDER / "index.html", headers=PAGE_HEADERS)


@router.get("/oauth2-redirect")
def oauth2_redirect() -> FileResponse:
    """Where an identity provider sends a browser back to, for Swagger UI to go on."""
    return FileResponse(FOLDER / "oauth2-redirect.html", headers=PAGE_HEADERS)


@router.get("/{asset}")
def asset(asset: str) -> FileResponse:
    """A script, a style sheet, a picture."""
    if asset not in ASSETS:
        raise NotFound("The page has no such part.")
    return FileResponse(FOLDER / asset, headers=ASSET_HEADERS)
