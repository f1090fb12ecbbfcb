"""Flights, the cache and documents together: workers ask a question while others replace the document that it cites."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final, cast

from api.errors import DocumentsChanged, ServiceUnavailable, StoreUnavailable
from api.ports.answer_cache import Claim, ExactLookup, NewAnswer, RetrievalSnapshot, Selection
from api.ports.coordination import UNKNOWN
from api.ports.document_store import Corpus, DocumentFacts, DocumentFilter, Draft
from api.ports.document_work import Work
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.sweep import _PartitionSweep
from api.redis_store.stores.documents.document_records import DocumentDigests, RedisDocuments
from api.redis_store.stores.documents.work import RedisDocumentWork
from api.redis_store.stores.flights import RedisFlightStore
from api.single_flight.flight import LEASE_MS, FlightRole
from api.values import EmbedderIdentity, FlightKey, Source
from scripts.models.explore import Program, Step, Violation
from scripts.models.hand import Command, LuaChange, Note, gate, unchanged
from scripts.models.model_redis import Contents

KEYS: Final = Keys()
KEY: Final = FlightKey("model-1", "0" * 32)
TENANT, DOCUMENT = "tenant", "document"
EMBEDDER: Final = EmbedderIdentity("model", 4, "model")
FLIGHT: Final = KEYS.flight(*KEY)[0]
ENTRY: Final = KEYS.partition(KEY.scope).entry(*KEY)
WORK_SECONDS: Final = 10.0
CHECKS: Final = 3
"""How often an answer is checked against changed documents, as in `api/query/generate.py`."""
POLLS: Final = 2
"""How often a follower reads before it gives up."""


@dataclass(frozen=True)
class Ghost:
    """`confirmed`: the document's newest confirmed revision. `floors`: what it was when each worker asked.

    `lead`: the worker that leads, and until when (ms). `fence`: of the newest lead.
    """

    confirmed: int = 0
    floors: tuple[tuple[str, int], ...] = ()
    lead: tuple[str, int] | None = None
    fence: str = ""


class AnswersModel:
    """One leader per flight and lease; no late result is stored; no old answer after a change was confirmed."""

    moves: Sequence[int] = (1, round(WORK_SECONDS * 1000))
    repair_after = 3 * round(WORK_SECONDS * 1000)

    def __init__(self, askers: int = 2, carriers: int = 1, change: LuaChange = unchanged) -> None:
        self.name = f"flights, cache and documents, {askers} ask and {carriers} ingest"
        self._change = change
        self.programs: Sequence[Program] = (self._asker,) * askers + (self._carrier,) * carriers
        self.setup: Sequence[Program] = (
            self._first_revision,
            self._carrier,
            self._other_answer,
            self._second_revision,
        )
        self.repair: Program | None = self._carrier

    # -- documents ----------------------------------------------------------------------------------------------------

    async def _first_revision(self, worker: str) -> None:
        await self._propose("first")

    async def _second_revision(self, worker: str) -> None:
        await self._propose("second")

    async def _propose(self, text: str) -> None:
        draft = Draft(DOCUMENT, DocumentFacts(TENANT, "A title"), digest=text, content=text.encode())
        await RedisDocuments(gate(self._change), KEYS).propose(draft, most=10)

    async def _carrier(self, worker: str) -> None:
        """Ingests the document as `api/knowledge/ingestion.py` does, without chunks."""
        store = RedisDocumentWork(gate(self._change), KEYS, worker, ())
        with suppress(StoreUnavailable, ServiceUnavailable):
            work = await store.take(DOCUMENT, WORK_SECONDS)
            if work is None:
                return
            try:
                await self._carried_out(store, work)
            except (StoreUnavailable, ServiceUnavailable):
                await store.release(work)

    async def _carried_out(self, store: RedisDocumentWork, work: Work) -> None:
        if work.pending_invalidation:
            await self._invalidated()
        stored: Work | None = work
        if work.phase == "store":
            stored = await store.commit(work, EMBEDDER, total=1, characters=len(work.digest))
        if stored is not None:
            await self._invalidated()
            await store.finish(stored)

    async def _invalidated(self) -> None:
        """As `CacheInvalidator.changed`."""
        sweep = _PartitionSweep(gate(self._change).of(ENTRY), KEYS.partition(KEY.scope))
        await sweep.note([f"corpus:{TENANT}"])
        await sweep.sweep(Selection(sources=frozenset((DOCUMENT,))), time.monotonic() + 3600, dry_run=False)

    # -- questions ----------------------------------------------------------------------------------------------------

    async def _asker(self, worker: str) -> None:
        """Asks the question once. What it was answered is a note."""
        await Note("asks")
        cache, flights = self._cache(), self._flights(worker)
        while True:
            found: ExactLookup | None = None
            with suppress(StoreUnavailable):
                found = await cache.find_exact(*KEY, TENANT, documents=True)
            if found is not None and found.match is not None:
                await Note("answered", (int(found.match.answer.answer),))
                return
            if not await self._flown(worker, cache, flights, found):
                return

    async def _other_answer(self, worker: str) -> None:
        """Stores the answer of another question: the first of all notes since when changes are known."""
        cache = self._cache()
        for _ in range(2):
            with suppress(DocumentsChanged):
                grounds = RetrievalSnapshot(4, DocumentFilter(), Corpus(1, 1, 0), 0)
                answer = NewAnswer("What?", "An answer.", "model", TENANT, grounds=grounds)
                await cache.store(KEY.scope, "1" * 32, None, answer)

    async def _flown(
        self, worker: str, cache: RedisAnswerCache, flights: RedisFlightStore, found: ExactLookup | None
    ) -> bool:
        """Leads or follows. Returns whether the cache has to be asked again."""
        asked = (found.now_ms, found.invalidated_ms) if found is not None else (0, UNKNOWN)
        fence: str | None = None
        with suppress(StoreUnavailable):
            joined = await flights.join(KEY, *asked)
            for _ in range(POLLS):
                if joined.role is not FlightRole.FOLLOW:
                    break
                for record in await flights.read(KEY, "-"):
                    if record.fence == joined.fence:
                        await Note("answered", (int(record.body),))
                        return False
                joined = await flights.join(KEY, *asked)
            if joined.role is FlightRole.STORED:
                return True
            if joined.role is FlightRole.FOLLOW:
                await flights.leave(KEY, joined.place)
                return False
            fence = joined.fence
        await self._led(cache, flights, found, fence)
        return False

    async def _led(
        self, cache: RedisAnswerCache, flights: RedisFlightStore, found: ExactLookup | None, fence: str | None
    ) -> None:
        with suppress(StoreUnavailable):
            revision = await self._revision()
            claim = flights.claim(KEY, fence) if fence is not None else None
            if found is not None:
                with suppress(StoreUnavailable):
                    await self._stored(cache, found, revision, claim)
            await Note("answered", (revision,))
            if claim is not None and not claim.ended:
                await flights.end(KEY, claim.fence, str(revision))

    async def _stored(self, cache: RedisAnswerCache, found: ExactLookup, revision: int, claim: Claim | None) -> None:
        """Stores the answer, as `api/query/generate.py` does: again if the documents are the same after a change."""
        at_ms = found.now_ms
        for _ in range(CHECKS):
            grounds = RetrievalSnapshot(4, DocumentFilter(), found.corpus or Corpus(1, 1, 0), at_ms)
            sources = (Source(DOCUMENT, "A title", 0, "Text.", 1.0),)
            answer = NewAnswer("Why?", str(revision), "model", TENANT, sources, asked_ms=found.now_ms, grounds=grounds)
            try:
                await cache.store(*KEY, None, answer, claim=claim)
            except DocumentsChanged as changed:
                at_ms = changed.now_ms
                if await self._revision() != revision:
                    return
            else:
                return

    async def _revision(self) -> int:
        return (await DocumentDigests(gate(self._change), KEYS).serving([DOCUMENT]))[DOCUMENT][0]

    def _cache(self) -> RedisAnswerCache:
        part = KEYS.partition(KEY.scope)
        indexes: Any = SimpleNamespace(by_partition={part: SimpleNamespace(supported=True)}, vector_type="float32")
        counters: Any = SimpleNamespace(add=lambda name, by=1: None)
        limits = {"ttl_ms": 3_600_000, "stale_ms": 0, "max_size": 100}
        return RedisAnswerCache(gate(self._change), KEYS, indexes, counters, **cast(Any, limits))

    def _flights(self, worker: str) -> RedisFlightStore:
        def no_reader(seconds: float) -> Any:
            raise NotImplementedError

        return RedisFlightStore(gate(self._change), no_reader, KEYS, worker)

    # -- what must hold -----------------------------------------------------------------------------------------------

    def begin(self, contents: Contents) -> Ghost:
        """Returns the ghost of a document in service, with another revision to come."""
        return Ghost(confirmed=_revision_of(contents))

    def noted(self, ghost: Ghost, worker: str, note: Note, contents: Contents) -> Ghost:
        """Compares an answer with what was confirmed before its question."""
        if note.what == "asks":
            return replace(ghost, floors=(*ghost.floors, (worker, ghost.confirmed)))
        (revision,), floor = note.facts, dict(ghost.floors)[worker]
        if revision < floor:
            raise Violation(f"Answered from revision {revision}, after {floor} was confirmed.")
        return ghost

    def stepped(self, ghost: Ghost, step: Step, before: Contents, after: Contents) -> Ghost:
        """Takes in confirmed changes, leads and stored answers."""
        work = KEYS.document_work(DOCUMENT)
        if work in before.values and work not in after.values:
            ghost = replace(ghost, confirmed=_revision_of(after))
        if step.command is None:
            return ghost
        if step.command.name == "store" and before.hash(ENTRY) != after.hash(ENTRY):
            fence = step.command.arguments[5]
            if fence and fence != ghost.fence:
                raise Violation("A late result was stored: another worker has taken the lead since.")
            if _is_followed(before) and not after.hash(FLIGHT):
                raise Violation("A flight has ended without a message to its followers.")
        return self._leads(ghost, step, before, after)

    def _leads(self, ghost: Ghost, step: Step, before: Contents, after: Contents) -> Ghost:
        was, now, now_ms = before.hash(FLIGHT), after.hash(FLIGHT), after.now_ms
        if not now or "fence" not in now:
            return replace(ghost, lead=None)
        if was.get("fence") == now["fence"]:
            return ghost
        assert step.command is not None
        not_before, asked = int(step.command.arguments[5]), int(was.get("asked_ms", 0))
        if not_before < 0:  # the worker does not know, so any invalidation counts
            invalidated = before.hash(KEYS.partition(KEY.scope).invalidated)
            not_before = max((int(at) for tag, at in invalidated.items() if tag != "began"), default=0)
            asked = asked or int(was.get("began_ms", 0))
        is_outdated = not_before > 0 and asked <= not_before
        if ghost.lead is not None and ghost.lead[1] > now_ms and not is_outdated:
            raise Violation(f"Worker {now['leader']} leads while worker {ghost.lead[0]} does.")
        return replace(ghost, lead=(now["leader"], now_ms + LEASE_MS), fence=now["fence"])

    def is_local(self, command: Command) -> bool:
        """The look at a key that never exists, at quarantined entries, and at chunks, which this model has not."""
        text = " ".join(map(str, command.parts))
        return not command.lua and (
            text.endswith(":absent") or KEYS.partition(KEY.scope).quarantines in text or ":chunks" in text
        )

    def repaired(self, contents: Contents) -> None:
        """Once a worker has finished what others left, the cache has no answer of an old revision."""
        if KEYS.document_work(DOCUMENT) in contents.values:
            raise Violation("The change of the document is never finished.")
        stored = contents.hash(ENTRY)
        if stored and int(stored["answer"]) != _revision_of(contents):
            raise Violation("The cache keeps an answer of an old revision.")


def _is_followed(contents: Contents) -> bool:
    fields = contents.hash(FLIGHT)
    return any(name.startswith("follower:") and int(end) > contents.now_ms for name, end in fields.items())


def _revision_of(contents: Contents) -> int:
    return int(contents.hash(KEYS.document(DOCUMENT))["revision"])
