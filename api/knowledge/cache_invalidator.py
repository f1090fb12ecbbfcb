"""Invalidates cached answers when documents change.

Answers that cite a changed document are deleted. Answers that it could change become stale.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Literal

from api.errors import EmbeddingUnavailable, ServiceUnavailable
from api.knowledge.retrieval import PassageQuery, Retriever
from api.ports.answer_cache import CachedQuestion, CacheSweep, InvalidationTags, Selection
from api.ports.document_work import DocumentWork, Work
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry

OnNewDocuments = Literal["affected", "all", "none"]

VECTORS: Final = 32
"""Chunks whose similar questions are looked up together."""
LIMIT: Final = 1000
"""Cached questions checked for one document."""
SECONDS: Final = 2.0
"""Seconds to check which cached answers a document changes. After that, all of them count as changed."""
SHARE: Final = 0.25
"""The share of a worker's time for these checks while documents arrive one after another."""


class TimeBudget:
    """A worker's seconds for these checks: up to `SECONDS`, refilled at a rate of `SHARE`."""

    def __init__(self) -> None:
        self._left, self._at = SECONDS, time.monotonic()

    def left(self) -> float:
        """The seconds that are left now."""
        now = time.monotonic()
        self._left, self._at = min(SECONDS, self._left + SHARE * (now - self._at)), now
        return max(self._left, 0.0)

    def spent(self, seconds: float) -> None:
        """Uses up `seconds`."""
        self._left -= seconds


class CacheInvalidator:
    """One worker's invalidation. It also runs where the cache is off: other workers may have it on."""

    def __init__(
        self,
        sweep: CacheSweep,
        answers: InvalidationTags,
        retriever: Retriever,
        work: DocumentWork,
        embedder: Embedder,
        telemetry: Telemetry,
        on_new_documents: OnNewDocuments,
    ) -> None:
        self._sweep = sweep
        self._answers = answers
        self._retriever = retriever
        self._work = work
        self._embedder = embedder
        self._telemetry = telemetry
        self._on_new_documents = on_new_documents
        self._budget = TimeBudget()

    async def notify_cache(self, work: Work) -> None:
        """After a document was deleted, added or replaced. Raises `StoreUnavailable`, `ServiceUnavailable`."""
        concerns = not work.gone and self._on_new_documents != "none"
        if work.gone or work.replaced:
            await self.changed(work)
        elif concerns:
            await self._sweep.outdate(work.facts.tenant)
        if concerns:
            self._telemetry.answers_outdated("affected", await self._affected(work))
        elif work.gone and (await self._retriever.corpus(work.facts.tenant)).documents == 0:
            # Without documents the model answers alone: cached answers that found none are outdated too.
            self._telemetry.answers_outdated("affected", await self._answers.expire_all(work.facts.tenant))

    async def owed(self, work: Work) -> None:
        """Finishes an earlier change's pending invalidation, when the later change failed: what it put into service is
        new.

        Raises `StoreUnavailable`.
        """
        if self._on_new_documents != "none":
            self._telemetry.answers_outdated("affected", await self._answers.expire_all(work.facts.tenant))

    async def changed(self, work: Work) -> None:
        """Deletes answers that cite the document, whatever its revision."""
        # First of all: answers stored from now on are checked, and those stored before are found below.
        await self._sweep.outdate(work.facts.tenant)
        swept = await self._sweep.sweep(Selection(sources=frozenset((work.id,))), dry_run=False)
        self._telemetry.answers_outdated("changed", swept.deleted)
        if not swept.complete:
            raise ServiceUnavailable("The cache was not fully checked in time. Try again.", retry_after=1)

    async def _affected(self, work: Work) -> int:
        """The number of answers that became stale."""
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
        """Questions similar enough for a passage of the document to be relevant; whether these are all.

        Incomplete if another embedder embedded the document: its worker crashed before it notified the cache.
        """
        embedder, found = await self._embedder.identity(), dict[str, CachedQuestion]()
        floor = self._retriever.policy.floor
        offset = 0
        while vectors := await self._work.vectors(work, embedder, offset, VECTORS):
            known = [vector for vector in vectors if vector is not None]
            if len(known) < len(vectors):
                return (), False  # a chunk without a vector can affect questions of any similarity
            near, complete = await self._answers.near(embedder, work.facts.tenant, known, floor, LIMIT)
            found |= {question.entry: question for question in near}
            if not complete or len(found) > LIMIT:
                return (), False
            offset += VECTORS
        return list(found.values()), offset > 0

    async def _changed_by(self, work: Work, questions: Sequence[CachedQuestion]) -> list[str]:
        """The questions that would now find other passages. Those not checked in time count as changed."""
        began, seconds = time.monotonic(), self._budget.left()
        until = began + seconds
        changed = [one.entry for one in questions if time.monotonic() > until or await self._is_changed(work, one)]
        self._budget.spent(time.monotonic() - began)
        return changed

    async def _is_changed(self, work: Work, question: CachedQuestion) -> bool:
        wanted = PassageQuery(question.question, question.tenant, question.top_k, question.wanted, question.vector)
        return await self._retriever.would_change(wanted, work.id)
