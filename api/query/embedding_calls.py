"""Embeddings that a client asks for, of whatever model: through bulkhead and breaker, on whichever backend can."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Protocol

from api.errors import BreakerOpen, BulkheadFull, DeadlinePassed, RagherdError, UpstreamError
from api.faults import UpstreamFault
from api.model import EmbeddingRequest, Embeddings
from api.ports.models import EmbeddingModel
from api.ports.resilience import Retries
from api.query.backends import Backend, BackendEvents, Backends
from api.query.failover import CHARGED, FREE


class EmbeddingEvents(BackendEvents, Protocol):
    """Who is told of calls that failed."""

    def upstream_failed(self, error: UpstreamError) -> None: ...


class EmbeddingCalls:
    """`total`: seconds for a call, all attempts together."""

    def __init__(
        self, backends: Backends[EmbeddingModel], retries: Retries, total: float, events: EmbeddingEvents
    ) -> None:
        self._backends = backends
        self._retries = retries
        self._total = total
        self._events = events

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Raises `BulkheadFull`, `BreakerOpen`, `UpstreamError`, and `DeadlinePassed` for the caller's own deadline."""
        own = asyncio.timeout(request.timeout)
        try:
            async with own:
                return await self._on_some_backend(request, time.monotonic() + self._total)
        except TimeoutError as error:
            if not own.expired():
                raise
            detail = f"The embedding took longer than the {request.timeout:g} s of the request."
            raise DeadlinePassed(detail) from error
        except UpstreamError as error:
            self._events.upstream_failed(error)
            raise

    async def _on_some_backend(self, request: EmbeddingRequest, until: float) -> Embeddings:
        failures: list[RagherdError] = []
        spent = False
        candidates = self._backends.candidates(request.model)
        for number, backend in enumerate(candidates, 1):
            alone = len(candidates) == 1
            remaining = max(0.0, until - time.monotonic())
            attempt = replace(request, retry="here" if alone else "elsewhere", timeout=remaining)
            try:
                return await _guarded(backend, attempt)
            except (BreakerOpen, BulkheadFull) as error:
                failures.append(error)
            except UpstreamError as error:
                failures.append(error)
                if error.fault not in FREE:
                    if alone or spent or error.fault not in CHARGED or not self._retries.spend():
                        raise
                    spent = True
                if number < len(candidates):
                    self._events.failed_over(backend.name, error)
        raise min(failures, key=_says_least)


def _says_least(error: RagherdError) -> int:
    """That a model is not on one backend says less than why another could not be asked."""
    return int(isinstance(error, UpstreamError) and error.fault is UpstreamFault.MODEL_NOT_FOUND)


async def _guarded(backend: Backend[EmbeddingModel], request: EmbeddingRequest) -> Embeddings:
    backend.breaker.check()
    with backend.busy():
        async with backend.bulkhead.permit(request.tenant), backend.breaker.attempt() as attempt:
            started = time.monotonic()
            try:
                found = await backend.service.embed(request)
            except UpstreamError as error:
                if error.row.breaker == "failure":
                    await attempt.failed(time.monotonic() - started)
                raise
            await attempt.succeeded(max(0.0, time.monotonic() - started - found.load_duration))
            return found
