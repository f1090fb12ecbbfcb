"""The fleet's figures of the last 48 hours, by minute or in larger steps."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, WithJsonSchema

from api.endpoints.health import worker_state
from api.endpoints.middleware import CheckedRoute, needs
from api.errors import NotFound

router = APIRouter(route_class=CheckedRoute, tags=["operations"])

_NUMBER: Final = re.compile(r"\d{1,13}(\.\d{1,9})?")
_MILLISECONDS: Final = 100_000_000_000
"""Numbers from here on are milliseconds: as seconds they would be beyond the year 5000."""
LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""
MAX_STEP: Final = 86_400


def _moment(given: Any) -> Any:
    """Converts RFC 3339, seconds or milliseconds since 1970 to milliseconds. A time without a zone is UTC."""
    if isinstance(given, str) and _NUMBER.fullmatch(given):
        number = float(given)
        return round(number if number >= _MILLISECONDS else number * 1000)
    try:
        found = datetime.fromisoformat(given.replace(" ", "+"))  # a `+` that was not written as %2B
    except (ValueError, AttributeError):
        raise ValueError("must be an RFC 3339 time, such as 2026-11-28T15:00:00Z, or seconds since 1970") from None
    zoned = found if found.tzinfo else found.replace(tzinfo=UTC)
    return max(0, min(LAST_MS, round(zoned.timestamp() * 1000)))


def _step(given: Any) -> Any:
    """Accepts a multiple of 60 up to a day."""
    if not (isinstance(given, str) and re.fullmatch(r"\d{1,5}", given)) or int(given) % 60 or not int(given):
        raise ValueError("must be a multiple of 60 seconds")
    if int(given) > MAX_STEP:
        raise ValueError(f"must be at most {MAX_STEP} seconds")
    return int(given)


_MOMENTS: Final = [
    {"type": "string", "format": "date-time"},
    {"type": "number", "minimum": 0, "maximum": 9_999_999_999_999},
]
Moment = Annotated[int, BeforeValidator(_moment), WithJsonSchema({"anyOf": _MOMENTS})]
_STEPS: Final = {"type": "integer", "minimum": 60, "maximum": MAX_STEP, "multipleOf": 60}
Step = Annotated[int, BeforeValidator(_step), WithJsonSchema(_STEPS)]


@router.get("/api/history", summary="Show the fleet's figures by minute", response_class=Response)
@needs("operator")
async def history(
    request: Request,
    from_: Annotated[Moment | None, Query(alias="from")] = None,
    to: Annotated[Moment | None, Query()] = None,
    step: Annotated[Step | None, Query()] = None,
    buckets: Annotated[bool, Query()] = False,
) -> Response:
    """The last hour by default. A range has at most 1,440 steps. `buckets` adds the counts behind the latencies.

    503 while Redis is down, 404 with `HISTORY_ENABLED=false`.
    """
    read = worker_state(request).history
    if read is None:
        raise NotFound("The history is off: HISTORY_ENABLED=false.")
    return Response(await read(from_, to, step, buckets), media_type="application/json")
