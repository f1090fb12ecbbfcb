"""Parses list headers and `X-Request-Timeout`, and formats times for clients.

Headers are parsed here and not declared to FastAPI, because FastAPI would add the cost of a rare header to every hit.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

from starlette.datastructures import Headers

from api.errors import InvalidRequest


def list_header(headers: Headers, name: str) -> str:
    """Returns the whole list, or "". A proxy may add another line (RFC 9110, section 5.3)."""
    return ",".join(headers.getlist(name))


def rfc3339(moment_ms: int) -> str:
    """Formats milliseconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


HEADER: Final = "X-Request-Timeout"

OPENAPI: Final[dict[str, Any]] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds that the answer may take; then 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def request_timeout(headers: Headers) -> float | None:
    """Returns the caller's timeout in seconds, or None. Raises `InvalidRequest`."""
    given = headers.get(HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        message = "must be a number of seconds above 0"
        raise InvalidRequest(f"{HEADER}: {message}", errors=[{"field": HEADER, "message": message}])
    return seconds
