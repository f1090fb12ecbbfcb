"""The errors of Anthropic's Messages API. Its requests and answers are forwarded unread. Pure."""

from __future__ import annotations

from typing import Any, Final

from api.endpoints.dropin_wire import dropin_status, single_line
from api.errors import RagherdError

MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def owns_path(path: str) -> bool:
    """Returns whether a path belongs to this API."""
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def error_body(error: RagherdError) -> dict[str, Any]:
    """Returns an error as a document or as an event."""
    kind = _ERROR_TYPES.get(dropin_status(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.detail}}


def error_line(error: RagherdError) -> bytes:
    """Returns an error as the last event of a stream."""
    return f"event: error\ndata: {single_line(error_body(error))}\n\n".encode()
