"""One generation through the bulkhead and the circuit breaker: admitted before, reported after, whatever happens.

The breaker comes last, so that no half-open permit waits in line; an open one is asked first, so that nobody waits in
vain.
"""

from __future__ import annotations

import time

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import Generation, GenerationEnd, GenerationRequest
from api.ports import Breaker, Bulkhead, LanguageModel


async def generate(
    model: LanguageModel, bulkhead: Bulkhead, breaker: Breaker, request: GenerationRequest, tenant: str
) -> Generation:
    """The complete answer. Raises `BulkheadFull`, `BreakerOpen` and `UpstreamError`; who leaves is ignored."""
    breaker.check()
    async with bulkhead.permit(tenant), breaker.attempt() as attempt:
        started = time.monotonic()
        try:
            generation = await _collect(model, request, started)
        except UpstreamError as error:
            if error.row.breaker == "failure":
                await attempt.failed(time.monotonic() - started)
            raise
        await attempt.succeeded(generation.first_token - generation.end.load_duration)
        return generation


async def _collect(model: LanguageModel, request: GenerationRequest, started: float) -> Generation:
    parts: list[str] = []
    first_token = 0.0
    async with model.stream(request) as stream:
        async for event in stream:
            first_token = first_token or time.monotonic() - started
            if isinstance(event, GenerationEnd):
                return Generation("".join(parts), event, first_token)
            parts.append(event.text)
    raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
