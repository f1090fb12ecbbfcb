"""Embeds texts on several backends with failover, and caches the latest embeddings per tenant.

- `RememberedEmbedder` caches embeddings by text. Tenants do not share them: the response time would reveal that
  another tenant has asked the same question.
- `FailoverEmbedder` embeds questions and documents. Embedding has a separate bulkhead and breaker, since its runner can
  hang while generations work.
- `embedded_or_blamed` finds out whether a failure is the fault of the texts, which says nothing about the backend.
  Ollama answers 400 or 500 if a model gives NaN for a text, and also 400 if its runner has crashed. If the message does
  not distinguish the two, other calls do: another text can be embedded right after, and this one fails again.
- `EmbeddingCalls` serves clients that request embeddings of any model. One backend embeds all texts of a request, since
  vectors of different weights cannot be compared. The permit is free between batches, so that tenants take turns.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from api.backends.choice import EMBEDDING_CHARGED, Backend, Backends, FailoverPolicy, Terms
from api.backends.failover import Failover, admitted
from api.cancellation import CancelScope
from api.errors import (
    BreakerOpen,
    BulkheadFull,
    DeadlinePassed,
    EmbeddingUnavailable,
    TextNotEmbedded,
    UpstreamError,
    UpstreamFault,
)
from api.ports.coordination import Retries
from api.ports.inference import BackendEmbedder, CurrentIdentity, Embedder, EmbeddingModel
from api.ports.telemetry import Telemetry
from api.values import (
    BatchSize,
    EmbedderIdentity,
    Embedding,
    EmbeddingRequest,
    Embeddings,
    Priority,
    QueuePlace,
    Retry,
)

MAX_ENTRIES: Final = 2048
"""Cached embeddings of all tenants together: about 4 MiB at 384 dimensions."""


class RememberedEmbedder:
    """An embedder with a cache, which is cleared when the model changes.

    If the cache is full, the tenant with the most entries loses its least recently used one. A tenant with no more than
    an equal share therefore loses nothing to others.
    """

    def __init__(self, embedder: Embedder, max_entries: int = MAX_ENTRIES) -> None:
        self.current = embedder.current
        self._embedder = embedder
        self._max_entries = max_entries
        self._count = 0
        self._by_tenant: dict[str, OrderedDict[str, Embedding]] = {}
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """Clears the cache if the identity has changed."""
        identity = await self._embedder.identity()
        if identity != self._identity:
            self._clear(identity)
        return identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """Returns one embedding per text, in order."""
        if self.current.value not in (None, self._identity):
            self._clear(self.current.value)
        remembered: Mapping[str, Embedding] = self._by_tenant.get(tenant, {})
        known = {text: remembered[text] for text in texts if text in remembered}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            identity = self._identity
            known |= zip(missing, await self._embedder.embed(missing, tenant=tenant), strict=True)
            if identity != self._identity:
                return [known[text] for text in texts]  # the model changed meanwhile: cache nothing
        self._store(tenant, known)
        return [known[text] for text in texts]

    def _clear(self, identity: EmbedderIdentity | None) -> None:
        self._by_tenant.clear()
        self._count = 0
        self._identity = identity

    def _store(self, tenant: str, embeddings: dict[str, Embedding]) -> None:
        own = self._by_tenant.setdefault(tenant, OrderedDict())
        before = len(own)
        for text, embedding in embeddings.items():
            own[text] = embedding
            own.move_to_end(text)
        self._count += len(own) - before
        while self._count > self._max_entries:
            self._evict()

    def _evict(self) -> None:
        tenant = max(self._by_tenant, key=lambda one: len(self._by_tenant[one]))
        self._by_tenant[tenant].popitem(last=False)
        self._count -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


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
    """Returns the result of `embed` for the texts, which asks one backend.

    Raises `UpstreamError`: TEXT_NOT_EMBEDDED if the texts are at fault, else the first failure.
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


class AgreedIdentity:
    """The embedder's identity, the same for all backends, questions and documents. `model` is EMBED_MODEL."""

    def __init__(self, backends: Backends[BackendEmbedder], model: str) -> None:
        self.backends = backends
        self.model = model
        self.current = CurrentIdentity()
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """Returns the identity of a healthy backend, preferably the same as before; see `ports.Embedder`."""
        others: list[tuple[EmbedderIdentity, EmbedderIdentity | None]] = []
        self.current.value = None
        failure = EmbeddingUnavailable("there is no backend")
        try:
            for backend in self.backends.candidates(self.model, even_drained=True):  # asks for no embedding
                try:
                    identity = await backend.service.identity()
                except EmbeddingUnavailable as error:
                    failure = error
                    continue
                known = backend.service.known  # not where it is only remembered
                if self._identity in (None, identity):
                    self._identity, self.current.value = identity, known
                    return identity
                others.append((identity, known))
            if not others:
                raise failure
        finally:
            del failure
        self._identity, self.current.value = others[0]
        return others[0][0]

    async def check(self, backend: Backend[BackendEmbedder]) -> None:
        """Raises `UpstreamError` if a backend has different weights, whose vectors cannot be compared."""
        if self._identity is None:
            return
        if (backend.service.known or await backend.service.identity()) != self._identity:
            raise UpstreamError(UpstreamFault.MODEL_NOT_FOUND, f"'{backend.name}' has another '{self.model}'.")


class FailoverEmbedder:
    """Turns text into unit vectors.

    Questions and documents have separate instances with different policies.

    `background`: its calls queue behind users.
    """

    def __init__(
        self,
        agreed: AgreedIdentity,
        policy: FailoverPolicy,
        retries: Retries,
        events: Telemetry,
        *,
        background: bool = False,
    ) -> None:
        self.current = agreed.current
        self._agreed = agreed
        self._failover = Failover(agreed.backends, policy, retries, events)
        self._priority = Priority.BACKGROUND if background else Priority.USER

    async def identity(self) -> EmbedderIdentity:
        """Returns the identity of the embedding model. Raises `EmbeddingUnavailable` while it is unknown."""
        return await self._agreed.identity()

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """Returns one embedding per text, in order. Raises `EmbeddingUnavailable` on a fault or after its deadline.

        `tenant` owns the texts: no other tenant's calls become faster because of them.

        An open breaker or a full bulkhead is `EmbeddingUnavailable` too.
        """
        if not texts:
            return []
        try:
            return await self._failover.call(self._agreed.model, partial(self._attempt, texts, tenant))
        except UpstreamError as error:
            self.current.value = None  # the model may be another one now
            is_the_texts = error.fault is UpstreamFault.TEXT_NOT_EMBEDDED
            raise (TextNotEmbedded if is_the_texts else EmbeddingUnavailable)(error.detail) from error
        except (BulkheadFull, BreakerOpen) as error:
            raise EmbeddingUnavailable(str(error)) from error

    async def _attempt(
        self, texts: Sequence[str], tenant: str, backend: Backend[BackendEmbedder], terms: Terms
    ) -> list[Embedding]:
        try:
            await self._agreed.check(backend)
            async with admitted(backend, terms, tenant, QueuePlace(self._priority)) as admission:
                embed = partial(_embedded, backend.service, tenant, terms)
                embeddings = await embedded_or_blamed(embed, texts, terms.retry)
                admission.answers()
                await admission.succeeded(0.0)
        except EmbeddingUnavailable as error:
            raise _cause(error) from error
        return embeddings


async def _embedded(
    service: BackendEmbedder, tenant: str, terms: Terms, texts: Sequence[str], retry: Retry
) -> list[Embedding]:
    try:
        return await service.embed(texts, tenant=tenant, timeout=terms.until - terms.clock(), retry=retry)
    except EmbeddingUnavailable as error:
        raise _cause(error) from error


def _cause(error: EmbeddingUnavailable) -> UpstreamError:
    """Returns the error of the call to Ollama, to be raised from `error`, which lets go of it."""
    cause, error.__cause__ = error.__cause__, None
    if isinstance(cause, UpstreamError):
        return cause.with_traceback(None)  # an embedder may keep it, and raise it again
    return UpstreamError(UpstreamFault.INVALID_RESPONSE, str(error))


class EmbeddingCalls:
    """Embeds the texts of clients. `total`: seconds for a request, including queueing and all attempts.

    `background`: the calls queue behind users, in the queue that they share with questions' embeddings.
    """

    def __init__(
        self,
        backends: Backends[EmbeddingModel],
        retries: Retries,
        total: float,
        events: Telemetry,
        *,
        background: bool,
    ) -> None:
        self._failover = Failover(backends, FailoverPolicy(total, charged=EMBEDDING_CHARGED), retries, events)
        self._events = events
        self._background = background

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embeds a request's texts. Raises `BulkheadFull`, `BreakerOpen`, `UpstreamError`, and `DeadlinePassed`."""
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
        return await self._failover.call(request.model, attempt, retry=request.retry)

    async def _attempt(self, request: EmbeddingRequest, backend: Backend[EmbeddingModel], terms: Terms) -> Embeddings:
        """Embeds all texts on one backend, in batches."""
        parts: list[Embeddings] = []
        priority = Priority.BACKGROUND if self._background else request.priority
        size, done = BatchSize(), 0
        while done < len(request.texts) or not parts:
            texts = request.texts[done : done + size.texts]
            done += len(texts)
            async with admitted(backend, terms, request.tenant, QueuePlace(priority)) as admission:
                embed = partial(_embedded_inputs, backend.service, request, terms)
                found = await embedded_or_blamed(embed, texts, terms.retry)
                admission.answers()
                await admission.succeeded(found.load_duration)
            parts.append(found)
            size = size.after(len(texts), admission.seconds - found.load_duration)
        return _joined(parts)


async def _embedded_inputs(
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
