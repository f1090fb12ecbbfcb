"""Whether a failed embedding is the fault of its texts: then it says nothing about the backend.

Ollama answers 400 or 500 where a model gives NaN for a text, and 400 as well where its runner has crashed. Where the
words do not tell the two apart, another text does: one that is embedded right after.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from api.errors import UpstreamError
from api.faults import UpstreamFault

OTHER_TEXT: Final = "text"
UNCLEAR: Final = frozenset(
    {
        UpstreamFault.SERVER_ERROR,
        UpstreamFault.EMBED_FAILED,
        UpstreamFault.INVALID_RESPONSE,
        UpstreamFault.REQUEST_REJECTED,
    }
)
"""Faults that a text can cause as well as the backend, or the rest of the request."""


async def blamed(error: UpstreamError, embed: Callable[[Sequence[str]], Awaitable[object]]) -> UpstreamError:
    """The failure with its fault attributed. `embed` asks the backend that failed, and raises `UpstreamError`."""
    if error.fault not in UNCLEAR:
        return error
    try:
        await embed([OTHER_TEXT])
    except UpstreamError:
        return error
    return UpstreamError(UpstreamFault.TEXT_NOT_EMBEDDED, error.detail)
