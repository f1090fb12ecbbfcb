"""`X-Request-Timeout`: how long a caller is willing to wait, in seconds.

Read by hand: declared to FastAPI, a header that hardly anybody sends would be paid for by every hit.
"""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.datastructures import Headers

from api.errors import InvalidRequest

HEADER: Final = "X-Request-Timeout"

OPENAPI: Final[dict[str, Any]] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds that the answer may take; past them 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def request_timeout(headers: Headers) -> float | None:
    """None where the caller names none. Raises `InvalidRequest`."""
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
