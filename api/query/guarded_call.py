"""One generation through the circuit breaker: admitted before, reported after, whatever happens between."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import Generation, GenerationEnd, GenerationRequest, Token
from api.ports import Breaker, LanguageModel


async def stream(
    model: LanguageModel, breaker: Breaker, request: GenerationRequest
) -> AsyncGenerator[Token | GenerationEnd, None]:
    """One attempt on one backend. Raises `BreakerOpen` and `UpstreamError`; a caller that leaves counts as ignored."""
    async with breaker.attempt() as attempt:
        started = time.monotonic()
        first_token: float | None = None
        try:
            async with model.stream(request) as events:
                async for event in events:
                    first_token = time.monotonic() - started if first_token is None else first_token
                    if isinstance(event, GenerationEnd):
                        await attempt.succeeded(first_token - event.load_duration)
                        yield event
                        return
                    yield event
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
        except UpstreamError as error:
            if error.row.breaker == "failure":
                await attempt.failed(time.monotonic() - started)
            raise


async def collect(model: LanguageModel, request: GenerationRequest) -> Generation:
    """The complete answer of a model that is guarded already. Raises `BreakerOpen` and `UpstreamError`."""
    started, parts = time.monotonic(), list[str]()
    first_token: float | None = None
    async with model.stream(request) as events:
        async for event in events:
            first_token = time.monotonic() - started if first_token is None else first_token
            if isinstance(event, GenerationEnd):
                return Generation("".join(parts), event, first_token)
            parts.append(event.text)
    raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
