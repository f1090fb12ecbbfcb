"""Tells the cache of documents that changed: answers that used them go, answers that they could change are stale."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Literal

from api.errors import EmbeddingUnavailable, ServiceUnavailable
from api.knowledge.retrieval import PassageQuery, Retriever
from api.ports.cache import CachedQuestion, CacheSweep, InvalidationTags, Selection
from api.ports.document_work import DocumentWork, Work
from api.ports.models import Embedder
from api.ports.telemetry import Telemetry

OnNewDocuments = Literal["affected", "all", "none"]

VECTORS: Final = 32
"""Chunks whose neighbourhood is searched before the next are read."""
LIMIT: Final = 1000
"""Cached questions looked at for one document."""
SECONDS: Final = 2.0
"""How long may be spent on asking whether a document changes a cached answer; past that it counts as changed."""
SHARE: Final = 0.25
"""Of a worker's time, where documents come one after the other: it has them to store, and questions to answer."""


class TimeBudget:
    """Seconds that a worker may ask whether answers are outdated: `SECONDS`, which come back at a rate of `SHARE`."""

    def __init__(self) -> None:
        self._left, self._at = SECONDS, time.monotonic()

    def left(self) -> float:
        """Now."""
        now = time.monotonic()
        self._left, self._at = min(SECONDS, self._left + SHARE * (now - self._at)), now
        return max(self._left, 0.0)

    def spent(self, seconds: float) -> None:
        """So many of them."""
        self._left -= seconds


class CacheInvalidator:
    """For one worker, also where it has the cache switched off: others may have it on."""

    def __init__(
        self,
        sweep: CacheSweep,
        answers: InvalidationTags,
        retriever: Retriever,
        work: DocumentWork,
        embedder: Embedder,
        events: Telemetry,
        on_new_documents: OnNewDocuments,
    ) -> None:
        self._sweep = sweep
        self._answers = answers
        self._retriever = retriever
        self._work = work
        self._embedder = embedder
        self._events = events
        self._on_new_documents = on_new_documents
        self._patience = TimeBudget()

    async def notify_cache(self, work: Work) -> None:
        """Of a document that is gone, new, or another now. Raises `StoreUnavailable`, `ServiceUnavailable`."""
        concerns = not work.gone and self._on_new_documents != "none"
        if work.gone or work.replaced:
            await self.changed(work)
        elif concerns:
            await self._sweep.outdate(work.facts.tenant)
        if concerns:
            self._events.answers_outdated("affected", await self._affected(work))
        elif work.gone and (await self._retriever.corpus(work.facts.tenant)).documents == 0:
            # The model answers alone from now on, what the cache says is not in the documents as well.
            self._events.answers_outdated("affected", await self._answers.expire_all(work.facts.tenant))

    async def owed(self, work: Work) -> None:
        """Of a change that a later one came upon before it was told of, where that came to nothing: what serves is new.

        Raises `StoreUnavailable`.
        """
        if self._on_new_documents != "none":
            self._events.answers_outdated("affected", await self._answers.expire_all(work.facts.tenant))

    async def changed(self, work: Work) -> None:
        """Deletes answers that used the document, whichever revision."""
        # Before anything is looked for: what is stored from here on is checked, what was stored before is found.
        await self._sweep.outdate(work.facts.tenant)
        swept = await self._sweep.sweep(Selection(source=work.id), dry_run=False)
        self._events.answers_outdated("changed", swept.deleted)
        if not swept.complete:
            raise ServiceUnavailable("Not all cached answers were looked at in time.", retry_after=1)

    async def _affected(self, work: Work) -> int:
        """How many answers are stale from now on."""
        tenant = work.facts.tenant
        if self._on_new_documents == "all":
            return await self._answers.expire_all(tenant)
        try:
            near, complete = await self._near(work)
        except EmbeddingUnavailable:
            complete = False
        if not complete:
            return await self._answers.expire_all(tenant)
        changed = await self._changed_by(work, near)
        others, complete = await self._answers.incomparable(await self._embedder.identity(), tenant, LIMIT)
        if not complete:
            return await self._answers.expire_all(tenant)
        return await self._answers.expire([*changed, *others])

    async def _near(self, work: Work) -> tuple[Sequence[CachedQuestion], bool]:
        """Questions near enough for a passage of the document to be relevant; whether these are all.

        Not where another embedder stored it, whose worker died before it had told the cache.
        """
        embedder, found = await self._embedder.identity(), dict[str, CachedQuestion]()
        floor = self._retriever.policy.floor
        offset = 0
        while vectors := await self._work.vectors(work, embedder, offset, VECTORS):
            known = [vector for vector in vectors if vector is not None]
            if len(known) < len(vectors):
                return (), False  # what is found by its words alone concerns questions that are not near
            near, complete = await self._answers.near(embedder, work.facts.tenant, known, floor, LIMIT)
            found |= {question.entry: question for question in near}
            if not complete or len(found) > LIMIT:
                return (), False
            offset += VECTORS
        return list(found.values()), offset > 0

    async def _changed_by(self, work: Work, questions: Sequence[CachedQuestion]) -> list[str]:
        """Those for which other passages would be found now. What is not looked at in time counts as changed."""
        began, patience = time.monotonic(), self._patience.left()
        until = began + patience
        changed = [one.entry for one in questions if time.monotonic() > until or await self._is_changed(work, one)]
        self._patience.spent(time.monotonic() - began)
        return changed

    async def _is_changed(self, work: Work, question: CachedQuestion) -> bool:
        wanted = PassageQuery(question.question, question.tenant, question.top_k, question.wanted, question.vector)
        return await self._retriever.would_change(wanted, work.id)
