"""Generates fresh answers (passages, prompt, language model, cache), and refreshes expired ones in the background.

One worker of the fleet refreshes an answer, behind all users.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from api.backends.failover import Generations, Unread
from api.cancellation import cancel_and_wait, log_failure
from api.errors import DocumentsChanged, RagherdError, UpstreamError
from api.ports.answer_cache import Claim
from api.ports.coordination import AnswerOutput, Flights
from api.ports.question import Query, Timings
from api.ports.telemetry import RefreshOutcome, Telemetry
from api.query.citations import Citations, clean, with_quotes
from api.query.grounding import PassageRetriever, PromptBuilder, Retrieval
from api.values import (
    CachedAnswer,
    CompletedAnswer,
    FlightKey,
    Generation,
    GenerationEnd,
    GenerationRequest,
    QueuePlace,
    Source,
    Usage,
)

if TYPE_CHECKING:
    from api.query.cache import Lookup, SemanticCache


MAX_STORED: Final = 1024 * 1024
"""Characters of an answer that is stored. A longer one is a stream with `logprobs`, or an image."""
MAX_CHECKS: Final = 3
"""Number of times an answer is checked against documents that keep changing."""


@dataclass(frozen=True, slots=True)
class FreshAnswer:
    """A fresh answer that cached ones are compared with. `stored`: its entry; None if it is not stored."""

    query: Query
    lookup: Lookup
    generation: Generation
    sources: tuple[Source, ...]
    stored: CachedAnswer | None


class FreshAnswers:
    """Generates and stores answers, for a flight that callers share or in the background.

    `made` takes the answers of users' questions that have a vector, while it has room.
    """

    def __init__(
        self,
        backends: Generations,
        shared: SemanticCache,
        grounder: PassageRetriever,
        prompting: PromptBuilder,
        observer: Telemetry,
        made: asyncio.Queue[FreshAnswer] | None = None,
    ) -> None:
        self._backends = backends
        self._shared = shared
        self._grounder = grounder
        self._prompting = prompting
        self._observer = observer
        self._made = made

    async def generate(
        self,
        query: Query,
        lookup: Lookup,
        timings: Timings,
        output: AnswerOutput,
        claim: Claim | None = None,
        *,
        buffered: bool,
        background: bool = False,
    ) -> CompletedAnswer:
        """Writes the answer as it comes, and stores it: what `claim` is for.

        `timings` are those of the caller that causes it. `buffered`: nobody reads along. `background`: for no user. The
        output's place has the priority. Raises `BulkheadFull`, `BreakerOpen` and `UpstreamError`, in mid-answer too.
        """
        if lookup.match is not None and lookup.vector is None:
            await self._shared.embed(query, lookup, timings)  # refreshes an expired answer to the same question
        grounding = lookup.retrieval
        if grounding is None or not grounding.keeps:
            asked = (query, lookup.vector, lookup.now_ms, timings)
            grounding = await self._grounder.ground(*asked, corpus=lookup.corpus, background=background)
        answer = await self._answered(query, grounding, output, buffered=buffered)
        generation, sources = answer
        stored = await self._stored(query, lookup, grounding, sources, generation, timings, claim)
        self._observer.generated(generation.end.usage, stored=stored is not None)
        if self._made is not None and lookup.vector is not None and lookup.available:
            self._hand_over(FreshAnswer(query, lookup, generation, sources, stored))
        return CompletedAnswer(
            generation.text,
            generation.end.model,
            generation.end.usage,
            done_reason=generation.end.done_reason,
            sources=sources,
            entry=stored.entry if stored is not None else None,
            generation=generation,
        )

    def ask_early(self, query: Query, lookup: Lookup, place: QueuePlace) -> None:
        """Asks for the permit of `generate`, if it makes no search first; no I/O here."""
        corpus = lookup.corpus
        searches = query.wants_passages if corpus is None else corpus.documents > 0
        if not searches:
            self._backends.ask_early(query.tenant, place)

    async def again(self, query: Query, lookup: Lookup) -> tuple[Generation, tuple[Source, ...]] | None:
        """Answers a question again, behind all users, and stores nothing. None if the passages cannot be searched.

        Raises `BulkheadFull`, `BreakerOpen` and `UpstreamError`.
        """
        grounding = await self._grounder.ground(query, lookup.vector, lookup.now_ms, Timings(), background=True)
        if not grounding.keeps:
            return None
        return await self._answered(query, grounding, Unread(), buffered=True)

    async def _answered(
        self, query: Query, grounding: Retrieval, output: AnswerOutput, *, buffered: bool
    ) -> tuple[Generation, tuple[Source, ...]]:
        """Writes the answer as it comes. Returns it with the passages that it may cite."""
        if self._prompting.says_so(grounding):
            generation = _said(self._prompting.nothing_relevant(query), query)
            await output.ground(())
            await output.write(generation.text)
            return generation, ()
        asked = self._prompting.request(query, grounding.sources, buffered=buffered, place=output.place)
        request, sources = asked
        generation = await self._worded(request, sources, output)
        return generation, with_quotes(sources, generation.text) if sources else sources

    def _hand_over(self, fresh: FreshAnswer) -> None:
        """Queues the answer to be compared with cached ones."""
        assert self._made is not None
        try:
            self._made.put_nowait(fresh)
        except asyncio.QueueFull:
            self._observer.label_dropped("queue_full")

    async def _worded(
        self, request: GenerationRequest, sources: tuple[Source, ...], output: AnswerOutput
    ) -> Generation:
        """Generates with the language model, and removes citations that name no source."""
        await output.ground(sources)
        cited = CitedOutput(output, len(sources)) if sources else None
        try:
            generation = await self._backends.generate(request, cited or output)
        except UpstreamError as error:
            self._observer.upstream_failed(error)
            raise
        if cited is None:
            return generation
        await cited.end()
        self._observer.cited(len(cited.citations.cited), cited.citations.removed)
        return replace(generation, text=clean(generation.text, len(sources)))

    async def _stored(
        self,
        query: Query,
        lookup: Lookup,
        grounding: Retrieval,
        sources: tuple[Source, ...],
        generation: Generation,
        timings: Timings,
        claim: Claim | None,
    ) -> CachedAnswer | None:
        """Stores the answer. If documents changed meanwhile, it does so only if the search finds the same passages."""
        if not grounding.keeps or len(generation.text) > MAX_STORED:
            return None
        for _ in range(MAX_CHECKS):
            try:
                return await self._shared.store(query, lookup, grounding.grounds, sources, generation, timings, claim)
            except DocumentsChanged as changed:
                now = await self._grounder.ground_again(query, lookup.vector, grounding, changed.now_ms, timings)
                if not (now.keeps and now.is_like(grounding)):
                    return None
                grounding = now
        return None


def _said(text: str, query: Query) -> Generation:
    """Returns an answer that needs no language model."""
    return Generation(text, GenerationEnd(query.model, "stop", Usage()), 0.0)


class CitedOutput:
    """Writes an answer without citations that name none of its sources."""

    def __init__(self, output: AnswerOutput, sources: int) -> None:
        self.begun = False
        self.citations = Citations(sources)
        self._output = output
        self._sources = sources

    async def write(self, text: str) -> None:
        """Writes a piece of text, not empty. Waits while every reader lags behind.

        A part of a citation is held back until it is complete.
        """
        self.begun = True
        if text := self.citations.feed(text):
            await self._output.write(text)

    def restart(self) -> None:
        """Discards what was written: the answer starts again with the same sources."""
        self.begun = False
        self.citations = Citations(self._sources)
        self._output.restart()

    async def end(self) -> None:
        """Writes what was held back."""
        if rest := self.citations.end():
            await self._output.write(rest)


CONCURRENCY: Final = 16
"""Refreshes that one worker runs at once; beyond that, expired answers are served without a refresh."""


class Refresher:
    """Refreshes expired answers in background tasks."""

    def __init__(self, fresh: FreshAnswers, flights: Flights, observer: Telemetry) -> None:
        self._fresh = fresh
        self._flights = flights
        self._observer = observer
        self._tasks: dict[FlightKey, asyncio.Task[None]] = {}

    def start(self, query: Query, lookup: Lookup) -> None:
        """Starts refreshing an answer, unless this worker is refreshing it or too many others. No I/O here."""
        if lookup.key is None:
            return
        key = FlightKey(lookup.key.scope, lookup.key.digest)
        if key in self._tasks:
            return
        if len(self._tasks) >= CONCURRENCY:
            self._observer.refreshing("too_many")
            return
        task = asyncio.create_task(self._refresh(query, lookup, key), name="refresh")
        self._tasks[key] = task
        log_failure(task)
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def aclose(self) -> None:
        """Cancels the refreshes in progress."""
        await cancel_and_wait(self._tasks.values())

    async def _refresh(self, query: Query, lookup: Lookup, key: FlightKey) -> None:
        try:
            async with self._flights.exclusive(key) as claim:
                outcome = await self._generate(query, lookup, claim) if claim is not None else "elsewhere"
        except RagherdError:
            outcome = "failed"  # the breaker and the metrics of Ollama know why
        self._observer.refreshing(outcome)

    async def _generate(self, query: Query, lookup: Lookup, claim: Claim) -> RefreshOutcome:
        answer = await self._fresh.generate(query, lookup, Timings(), Unread(), claim, buffered=True, background=True)
        return "stored" if answer.entry is not None else "not_stored"
