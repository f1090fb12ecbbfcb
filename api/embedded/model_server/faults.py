"""What Ollama tells a caller when it will not or can not: a status and one sentence."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse


class OllamaFault(Exception):
    """Rendered as `{"error": message}` with its status, or as a last line of that shape in mid-stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def render_fault(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for `OllamaFault`."""
    assert isinstance(error, OllamaFault)
    return JSONResponse({"error": error.message}, error.status)
