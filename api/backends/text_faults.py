"""Whether a failed embedding is the fault of its texts: then it says nothing about the backend.

Ollama answers 400 or 500 where a model gives NaN for a text, and 400 as well where its runner has crashed. Where the
words do not tell the two apart, other calls do: another text is embedded right after, and this one fails again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import Retry

T = TypeVar("T")

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


async def embedded_or_blamed(
    embed: Callable[[Sequence[str], Retry], Awaitable[T]], texts: Sequence[str], retry: Retry
) -> T:
    """What `embed` gives for the texts; it asks one backend, and raises `UpstreamError`.

    Raises `TEXT_NOT_EMBEDDED` where the texts are at fault, else the first failure.
    """
    try:
        return await embed(texts, retry)
    except UpstreamError as error:
        if error.fault not in UNCLEAR or not await _embeds_another(embed):
            raise
    try:
        return await embed(texts, "spent")
    except UpstreamError as error:
        if error.fault not in UNCLEAR:
            raise
        raise UpstreamError(UpstreamFault.TEXT_NOT_EMBEDDED, error.detail) from error


async def _embeds_another(embed: Callable[[Sequence[str], Retry], Awaitable[object]]) -> bool:
    try:
        await embed([OTHER_TEXT], "spent")
    except UpstreamError:
        return False
    return True
