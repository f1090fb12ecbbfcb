"""Deletes cached answers that are no longer right, on every worker at once."""

from __future__ import annotations

from api.errors import EmbeddingUnavailable, ServiceUnavailable, StoreUnavailable
from api.ports.answer_cache import CacheSweep, Invalidation, Neighbourhood, Selection, Swept
from api.ports.document_work import Deletions, tags_of
from api.ports.inference import Embedder
from api.ports.question import Query
from api.ports.telemetry import Telemetry
from api.query.cache_key import question_digest
from api.values import NO_TENANT


class Invalidator:
    """Deletes cached answers. A generation that began earlier cannot store one again."""

    def __init__(self, sweep: CacheSweep, deletions: Deletions, embedder: Embedder, events: Telemetry) -> None:
        self._sweep = sweep
        self._deletions = deletions
        self._embedder = embedder
        self._events = events

    async def invalidate(self, asked: Invalidation, *, dry_run: bool = False) -> Swept:
        """Deletes the answers, or only counts them with `dry_run`. Raises `StoreUnavailable`, `ServiceUnavailable`."""
        selection = await self._selection(asked)
        if dry_run:
            swept = await self._sweep.sweep(selection, dry_run=True)
        else:
            swept = await self._swept(selection)
            self._events.invalidated(asked, swept)
        if not swept.complete:
            raise ServiceUnavailable(
                "Not all entries were looked at in time; what was deleted stays so. Repeat it.",
                retry_after=1,
                matched=swept.matched,
                deleted=swept.deleted,
            )
        return swept

    async def _swept(self, selection: Selection) -> Swept:
        """Deletes even if the deletion cannot be recorded now: in a cluster that may be on another shard."""
        fault: StoreUnavailable | None = None
        try:
            await self._deletions.note(tags_of(selection))
        except StoreUnavailable as error:
            fault = error
        swept = await self._sweep.sweep(selection, dry_run=False)
        if fault is not None:
            raise fault
        return swept

    async def _selection(self, asked: Invalidation) -> Selection:
        if asked.kind == "question" and asked.question is not None:
            near = await self._near(asked.question, asked.similarity, asked.tenant or NO_TENANT)
            digest = question_digest(asked.question)
            return Selection(digest=digest, near=near, tenant=asked.tenant, model=asked.model)
        return Selection(
            entry=asked.entry, source=asked.source, tenant=asked.tenant, release=asked.release, since_ms=asked.since
        )

    async def _near(self, question: str, similarity: float | None, tenant: str) -> Neighbourhood | None:
        """Returns None to match only the exact question, as for questions that are never compared by meaning."""
        if similarity is None or not Query(question, tenant="", model="").has_meaning:
            return None
        try:
            identity = await self._embedder.identity()
            (embedding,) = await self._embedder.embed([question], tenant=tenant)
            return Neighbourhood(identity, embedding.vector, similarity)
        except EmbeddingUnavailable as error:
            message = "The question cannot be embedded now. Omit `similarity` to delete the exact question."
            raise ServiceUnavailable(message, retry_after=1) from error
