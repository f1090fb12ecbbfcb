"""Spans of a request's steps: wrappers around the ports that take time, and the attributes of model calls.

Attributes of model calls follow OpenTelemetry's conventions for generative AI, which are in development: by default
those of version 1.36, and with `gen_ai_latest_experimental` those of semantic-conventions-genai. Ragherd's own
attributes begin with `ragherd.`. An error has `error.type`: Ollama's fault, or the name of the exception.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import orjson
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from api.errors import UpstreamError
from api.observability.worker_telemetry import WorkerTelemetry
from api.ports.answer_cache import AnswerCache, Claim, ExactLookup, NearestSearch, NewAnswer
from api.ports.answer_quality import PolicyDecision, Verifier
from api.ports.coordination import Bulkhead
from api.ports.inference import CurrentIdentity, Embedder, LanguageModel
from api.ports.limits import Charge
from api.ports.telemetry import GroundingOutcome
from api.values import (
    CachedAnswer,
    CacheMatch,
    EmbedderIdentity,
    Embedding,
    GenerationEnd,
    GenerationRequest,
    Priority,
    QueuePlace,
    Thought,
    Token,
    Vector,
)

PROVIDER: Final = "ollama"
HERE: Final = "onnx"
"""The provider of embeddings made in the worker."""
_PORTS: Final = {"http": 80, "https": 443}
_OPTIONS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "num_predict": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "stop": "gen_ai.request.stop_sequences",
}


_TEXTS: Final = ("stop",)
"""Options that are texts."""


@contextmanager
def span_of(
    tracer: Tracer, name: str, attributes: Mapping[str, Any] | None = None, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[Span]:
    """Makes a span of a block. An exception becomes `error.type`, without its message, which may contain texts."""
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as error:  # any failure marks the span, and is raised again
            fault = error.fault.value if isinstance(error, UpstreamError) else type(error).__name__
            span.set_attribute("error.type", fault)
            span.set_status(StatusCode.ERROR)
            raise


class Vocabulary:
    """The names of attributes. `latest`: those of semantic-conventions-genai. `captures`: texts too."""

    def __init__(self, latest: bool, captures: bool) -> None:
        self.latest = latest
        self.captures = captures

    def call(self, operation: Literal["chat", "embeddings"], model: str, provider: str = PROVIDER) -> dict[str, Any]:
        """What is known before a call."""
        named = "gen_ai.provider.name" if self.latest else "gen_ai.system"
        return {"gen_ai.operation.name": operation, named: provider, "gen_ai.request.model": model}

    def step(self, name: str) -> dict[str, Any]:
        """The attributes of a step of the flow."""
        return {"gen_ai.operation.name": "retrieval"} if self.latest and name == "retrieval" else {}

    def generation(self, request: GenerationRequest) -> dict[str, Any]:
        """The attributes of a request to the language model."""
        facts = self.call("chat", request.model)
        shown = {name for name in _OPTIONS if self.captures or name not in _TEXTS}
        facts |= {_OPTIONS[name]: value for name, value in request.options.items() if name in shown}
        if self.latest:
            facts["gen_ai.request.stream"] = True
        if self.captures:
            facts["gen_ai.input.messages"] = _json([_message(one.role, one.content) for one in request.messages])
        return facts

    def end(self, end: GenerationEnd, first: float | None, text: str) -> dict[str, Any]:
        """The attributes of a complete answer. `first`: seconds until its first token."""
        facts: dict[str, Any] = {
            "gen_ai.response.model": end.model,
            "gen_ai.response.finish_reasons": [end.done_reason],
            "gen_ai.usage.input_tokens": end.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": end.usage.completion_tokens,
        }
        if self.latest and first is not None:
            facts["gen_ai.response.time_to_first_chunk"] = first
        if self.captures:
            message = {**_message("assistant", text), "finish_reason": end.done_reason}
            facts["gen_ai.output.messages"] = _json([message])
        return facts


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _json(messages: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps(messages).decode()


class TracedTelemetry(WorkerTelemetry):
    """Adds what the flow reports to the current span, without texts."""

    def guard_rejected(self, guard: str, detail: str, similarity: float) -> None:
        """Adds an event."""
        super().guard_rejected(guard, detail, similarity)
        facts: dict[str, str | float] = {"ragherd.guard": guard, "ragherd.cache.similarity": round(similarity, 4)}
        trace.get_current_span().add_event("guard_rejected", facts)

    def policy_decided(self, decision: PolicyDecision) -> None:
        """Adds the outcome."""
        super().policy_decided(decision)
        facts = {"ragherd.cache.policy": decision.policy.value, "ragherd.cache.decision": decision.outcome.value}
        trace.get_current_span().set_attributes(facts)

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """Adds the outcome."""
        super().grounded(outcome, passages)
        facts = {"ragherd.retrieval.outcome": outcome, "ragherd.retrieval.passages": passages}
        trace.get_current_span().set_attributes(facts)

    def failed_over(self, backend: str, error: UpstreamError) -> None:
        """Adds an event."""
        super().failed_over(backend, error)
        facts = {"ragherd.backend": backend, "error.type": error.fault.value}
        trace.get_current_span().add_event("failed_over", facts)


class TracedAnswerCache:
    """An `AnswerCache` with spans."""

    def __init__(self, cache: AnswerCache, tracer: Tracer) -> None:
        self._cache = cache
        self._tracer = tracer
        self.used = cache.used
        self.join = cache.join
        self.entry = cache.entry
        self.find_near = cache.find_near

    async def find_exact(
        self,
        scope: str,
        digest: str,
        tenant: str = "",
        *,
        documents: bool = False,
        search: NearestSearch | None = None,
        charge: Charge | None = None,
    ) -> ExactLookup:
        with span_of(self._tracer, "cache.exact") as span:
            along: dict[str, Any] = {"documents": documents, "search": search, "charge": charge}
            found = await self._cache.find_exact(scope, digest, tenant, **along)
            span.set_attribute("ragherd.cache.found", found.match is not None)
            if found.similar is not None:
                span.set_attribute("ragherd.cache.candidates", len(found.similar))
            return found

    async def reread(
        self, scope: str, entries: Sequence[str], charge: Charge | None = None
    ) -> tuple[int, list[CachedAnswer | None]]:
        with span_of(self._tracer, "cache.exact") as span:
            now_ms, answers = await self._cache.reread(scope, entries, charge)
            span.set_attribute("ragherd.cache.found", answers[0] is not None)
            return now_ms, answers

    async def find_similar(
        self,
        embedder: EmbedderIdentity,
        scope: str,
        vector: Vector,
        now_ms: int,
        *,
        stale_ms: int = 0,
        neighbours: int = 5,
    ) -> Sequence[CacheMatch]:
        with span_of(self._tracer, "cache.search") as span:
            searching = self._cache.find_similar(
                embedder, scope, vector, now_ms, stale_ms=stale_ms, neighbours=neighbours
            )
            found = await searching
            span.set_attribute("ragherd.cache.candidates", len(found))
            return found

    async def store(
        self, scope: str, digest: str, vector: Vector | None, answer: NewAnswer, *, claim: Claim | None = None
    ) -> CachedAnswer | None:
        with span_of(self._tracer, "cache.store") as span:
            stored = await self._cache.store(scope, digest, vector, answer, claim=claim)
            span.set_attribute("ragherd.cache.stored", stored is not None)
            return stored


class TracedEmbedder:
    """An `Embedder` with spans. `here`: it runs in this process."""

    def __init__(self, embedder: Embedder, tracer: Tracer, vocabulary: Vocabulary, model: str, *, here: bool) -> None:
        self._embedder = embedder
        self._tracer = tracer
        self._name = f"embeddings {model}"
        self._facts = vocabulary.call("embeddings", model, HERE if here else PROVIDER)
        self._kind = SpanKind.INTERNAL if here else SpanKind.CLIENT
        self.current: CurrentIdentity = embedder.current

    async def identity(self) -> EmbedderIdentity:
        return await self._embedder.identity()

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        with span_of(self._tracer, self._name, self._facts, self._kind) as span:
            span.set_attribute("ragherd.embeddings.texts", len(texts))
            return await self._embedder.embed(texts, tenant=tenant)


class TracedVerifier:
    """A `Verifier` with spans."""

    def __init__(self, verifier: Verifier, tracer: Tracer) -> None:
        self._verifier = verifier
        self._tracer = tracer

    @property
    def digest(self) -> str:
        return self._verifier.digest

    async def score(self, question: str, candidates: Sequence[str]) -> Sequence[float]:
        with span_of(self._tracer, "verifier", {"ragherd.verifier.candidates": len(candidates)}):
            return await self._verifier.score(question, candidates)


class TracedBulkhead:
    """A `Bulkhead` with a span of each wait."""

    def __init__(self, bulkhead: Bulkhead, tracer: Tracer) -> None:
        self._bulkhead = bulkhead
        self._tracer = tracer
        self.ask_early = bulkhead.ask_early

    @asynccontextmanager
    async def permit(
        self, tenant: str, *, place: QueuePlace | None = None, within: float | None = None, queues: bool = True
    ) -> AsyncIterator[None]:
        permit = self._bulkhead.permit(tenant, place=place, within=within, queues=queues)
        async with AsyncExitStack() as stack:
            priority = Priority.USER if place is None else place.priority
            attributes = {"ragherd.background": priority is Priority.BACKGROUND, "ragherd.priority": priority.value}
            with span_of(self._tracer, "bulkhead.wait", attributes):
                await stack.enter_async_context(permit)
            yield


class TracedLanguageModel:
    """A `LanguageModel` with a span of each call. Its context goes to Ollama as `traceparent`."""

    def __init__(self, model: LanguageModel, tracer: Tracer, vocabulary: Vocabulary, url: str) -> None:
        self._model = model
        self._tracer = tracer
        self._vocabulary = vocabulary
        parts = urlsplit(url)
        self._server = {
            "server.address": parts.hostname or "",
            "server.port": parts.port or _PORTS.get(parts.scheme, 80),
        }

    def stream(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Token | Thought | GenerationEnd]]:
        return self._stream(request)

    @asynccontextmanager
    async def _stream(self, request: GenerationRequest) -> AsyncIterator[_Watched]:
        facts = {**self._vocabulary.generation(request), **self._server}
        with span_of(self._tracer, f"chat {request.model}", facts, SpanKind.CLIENT) as span:
            async with self._model.stream(request) as events:
                yield _Watched(events, span, self._vocabulary)


class _Watched:
    """Passes on the events of a generation, and adds them to its span."""

    def __init__(
        self, events: AsyncIterator[Token | Thought | GenerationEnd], span: Span, vocabulary: Vocabulary
    ) -> None:
        self._events = events
        self._span = span
        self._vocabulary = vocabulary
        self._began = time.perf_counter()
        self._first: float | None = None
        self._texts: list[str] = []

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Token | Thought | GenerationEnd:
        event = await anext(self._events)
        if self._first is None:
            self._first = time.perf_counter() - self._began
        if isinstance(event, GenerationEnd):
            self._span.set_attributes(self._vocabulary.end(event, self._first, "".join(self._texts)))
        elif isinstance(event, Token) and self._vocabulary.captures:
            self._texts.append(event.text)
        return event
