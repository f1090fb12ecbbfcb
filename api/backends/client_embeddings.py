"""Embeddings that a client asks for, of any model: through bulkhead and breaker, on whichever backend can.

All texts of a request are embedded by one backend: vectors of other weights do not compare. They go there in batches,
and the permit is free between two of them: tenants take turns, and a question gets its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from api.backends.admission import admitted
from api.backends.failover import EMBEDDING_CHARGED, Failover, Policy, Terms
from api.backends.members import Backend, BackendEvents, Backends
from api.backends.text_faults import embedded_or_blamed
from api.batch_size import BatchSize
from api.cancel_scope import CancelScope
from api.errors import DeadlinePassed, UpstreamError
from api.model import EmbeddingRequest, Embeddings, Retry
from api.ports.models import EmbeddingModel
from api.ports.resilience import Retries


class EmbeddingEvents(BackendEvents, Protocol):
    """Who is told of calls that failed."""

    def upstream_failed(self, error: UpstreamError) -> None: ...


class EmbeddingCalls:
    """`total`: seconds for a request: the waits in line and all attempts together.

    `background`: whether they wait behind users; where they share the line of questions' embeddings.
    """

    def __init__(
        self,
        backends: Backends[EmbeddingModel],
        retries: Retries,
        total: float,
        events: EmbeddingEvents,
        *,
        background: bool,
    ) -> None:
        self._failover = Failover(backends, Policy(total, charged=EMBEDDING_CHARGED), retries, events)
        self._events = events
        self._background = background

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Raises `BulkheadFull`, `BreakerOpen`, `UpstreamError`, and `DeadlinePassed` for the caller's own deadline."""
        try:
            with CancelScope() as own:
                if request.timeout is None:
                    return await self._on_some_backend(request)
                timer = asyncio.get_running_loop().call_later(request.timeout, own.cancel)
                try:
                    found = await self._on_some_backend(request)
                finally:
                    timer.cancel()
            if own.cancelled:
                raise DeadlinePassed(f"The embedding took longer than the {request.timeout:g} s of the request.")
            return found
        except UpstreamError as error:
            self._events.upstream_failed(error)
            raise

    async def _on_some_backend(self, request: EmbeddingRequest) -> Embeddings:
        attempt = partial(self._attempt, request)
        calling = self._failover.call(request.model, attempt, retry=request.retry)
        return [event async for event in calling if isinstance(event, Embeddings)][-1]

    async def _attempt(
        self, request: EmbeddingRequest, backend: Backend[EmbeddingModel], terms: Terms
    ) -> AsyncGenerator[Embeddings, None]:
        """Gives one event: the vectors of all texts."""
        parts: list[Embeddings] = []
        size, done = BatchSize(), 0
        while done < len(request.texts) or not parts:
            texts = request.texts[done : done + size.texts]
            done += len(texts)
            async with admitted(backend, terms, request.tenant, background=self._background) as admission:
                embed = partial(_embedded, backend.service, request, terms)
                found = await embedded_or_blamed(embed, texts, terms.retry)
                admission.answers()
                await admission.succeeded(found.load_duration)
            parts.append(found)
            size = size.after(len(texts), admission.seconds - found.load_duration)
        yield _joined(parts)


async def _embedded(
    service: EmbeddingModel, request: EmbeddingRequest, terms: Terms, texts: Sequence[str], retry: Retry
) -> Embeddings:
    return await service.embed(replace(request, texts=tuple(texts), retry=retry, timeout=terms.remaining))


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    return Embeddings(
        [vector for part in parts for vector in part.vectors],
        sum(part.prompt_tokens for part in parts),
        sum(part.total_duration for part in parts),
        sum(part.load_duration for part in parts),
    )
