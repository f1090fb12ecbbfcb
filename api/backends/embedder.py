"""Several embedders of one model as one: a text that one backend cannot embed goes to the next that can.

The embedding runner has a bulkhead and a breaker besides those of generations: it can hang by itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial

from api.backends.admission import admitted
from api.backends.failover import Failover, Policy, Terms
from api.backends.members import Backend, BackendEvents, Backends
from api.backends.text_faults import embedded_or_blamed
from api.errors import BreakerOpen, BulkheadFull, EmbeddingUnavailable, TextNotEmbedded, UpstreamError
from api.faults import UpstreamFault
from api.model import EmbedderIdentity, Embedding, Retry
from api.ports.models import BackendEmbedder, CurrentIdentity
from api.ports.resilience import Retries


class AgreedIdentity:
    """Who embeds: one identity for all backends, and for questions and documents. `model` is EMBED_MODEL."""

    def __init__(self, backends: Backends[BackendEmbedder], model: str) -> None:
        self.backends = backends
        self.model = model
        self.current = CurrentIdentity()
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """Of the first healthy backend that is as before, else of the first that says; see `ports.Embedder`."""
        others: list[tuple[EmbedderIdentity, EmbedderIdentity | None]] = []
        self.current.value = None
        failure: EmbeddingUnavailable | None = None
        for backend in self.backends.candidates(self.model):
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
            raise failure or EmbeddingUnavailable("there is no backend")
        self._identity, self.current.value = others[0]
        return others[0][0]

    async def check(self, backend: Backend[BackendEmbedder]) -> None:
        """Raises `UpstreamError` where a backend has another model under the name: its vectors do not compare."""
        if self._identity is not None and await backend.service.identity() != self._identity:
            raise UpstreamError(UpstreamFault.MODEL_NOT_FOUND, f"'{backend.name}' has another '{self.model}'.")


class FailoverEmbedder:
    """See `ports.Embedder`. Questions and documents have one each, under policies that differ.

    `background`: whether its calls wait behind users.
    """

    def __init__(
        self,
        agreed: AgreedIdentity,
        policy: Policy,
        retries: Retries,
        events: BackendEvents,
        *,
        background: bool = False,
    ) -> None:
        self.current = agreed.current
        self._agreed = agreed
        self._failover = Failover(agreed.backends, policy, retries, events)
        self._background = background

    async def identity(self) -> EmbedderIdentity:
        """See `ports.Embedder`."""
        return await self._agreed.identity()

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """See `ports.Embedder`. An open breaker or a full bulkhead is `EmbeddingUnavailable` too."""
        if not texts:
            return []
        calling = self._failover.call(self._agreed.model, partial(self._attempt, texts, tenant))
        try:
            return [event async for event in calling if isinstance(event, list)][-1]
        except UpstreamError as error:
            self.current.value = None  # the model may be another one now
            is_the_texts = error.fault is UpstreamFault.TEXT_NOT_EMBEDDED
            raise (TextNotEmbedded if is_the_texts else EmbeddingUnavailable)(error.detail) from error
        except (BulkheadFull, BreakerOpen) as error:
            raise EmbeddingUnavailable(str(error)) from error

    async def _attempt(
        self, texts: Sequence[str], tenant: str, backend: Backend[BackendEmbedder], terms: Terms
    ) -> AsyncGenerator[list[Embedding], None]:
        """Gives one event: an embedding for each text."""
        try:
            await self._agreed.check(backend)
            async with admitted(backend, terms, tenant, background=self._background) as admission:
                embed = partial(_embedded, backend.service, tenant, terms)
                embeddings = await embedded_or_blamed(embed, texts, terms.retry)
                admission.answers()
                await admission.succeeded(load_duration=0.0)
        except EmbeddingUnavailable as error:
            raise _cause(error) from error
        yield embeddings


async def _embedded(
    service: BackendEmbedder, tenant: str, terms: Terms, texts: Sequence[str], retry: Retry
) -> list[Embedding]:
    try:
        return await service.embed(texts, tenant=tenant, timeout=terms.remaining, retry=retry)
    except EmbeddingUnavailable as error:
        raise _cause(error) from error


def _cause(error: EmbeddingUnavailable) -> UpstreamError:
    """What became of the call to Ollama."""
    if isinstance(error.__cause__, UpstreamError):
        return error.__cause__
    return UpstreamError(UpstreamFault.INVALID_RESPONSE, str(error))
