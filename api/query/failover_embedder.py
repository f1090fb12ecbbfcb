"""Several embedders of one model as one: a text that one backend can not embed goes to the next that can."""

from __future__ import annotations

import time
from collections.abc import Sequence

from api.backends.failover import FREE
from api.backends.members import Backend, BackendEvents, Backends
from api.errors import BreakerOpen, EmbeddingUnavailable, UpstreamError
from api.model import EmbedderIdentity, Embedding
from api.ports.models import Embedder
from api.ports.resilience import Retries


class FailoverEmbedder:
    """See `ports.Embedder`. `model` is EMBED_MODEL; `timeout` the seconds within which another backend is tried."""

    def __init__(
        self, backends: Backends[Embedder], model: str, timeout: float, retries: Retries, events: BackendEvents
    ) -> None:
        self._backends = backends
        self._retries = retries
        self._model = model
        self._timeout = timeout
        self._events = events
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """Of the first healthy backend that is as before, else of the first that says; see `ports.Embedder`."""
        others: list[EmbedderIdentity] = []
        failure: EmbeddingUnavailable | None = None
        for backend in self._backends.candidates(self._model):
            try:
                identity = await backend.service.identity()
            except EmbeddingUnavailable as error:
                failure = error
                continue
            if self._identity in (None, identity):
                self._identity = identity
                return identity
            others.append(identity)
        if not others:
            raise failure or EmbeddingUnavailable("there is no backend")
        self._identity = others[0]
        return others[0]

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """See `ports.Embedder`. Only backends of one identity take part: vectors of two models do not compare."""
        began = time.monotonic()
        failure = EmbeddingUnavailable("no backend has the embedding model of the others")
        for backend in self._backends.candidates(self._model):
            try:
                if await self._differs(backend):
                    continue
                with backend.busy():
                    return await backend.service.embed(texts, tenant=tenant)
            except EmbeddingUnavailable as error:
                failure = error
                if not self._may_go_on(error.__cause__, time.monotonic() - began):
                    raise
                if isinstance(error.__cause__, UpstreamError):
                    self._events.failed_over(backend.name, error.__cause__)
        raise failure

    def _may_go_on(self, cause: BaseException | None, seconds: float) -> bool:
        """Whether another backend may be tried: in time, and within the budget where the first may have begun."""
        if isinstance(cause, BreakerOpen):
            return True
        if seconds >= self._timeout / 2 or not isinstance(cause, UpstreamError):
            return False
        return cause.fault in FREE or self._retries.spend()

    async def _differs(self, backend: Backend[Embedder]) -> bool:
        return self._identity is not None and await backend.service.identity() != self._identity
