"""Labels: compares fresh answers with cached ones in the background, and so learns which cached answers are right.

- A miss ends with a fresh answer. It is compared with the cached answers to similar questions. That also finds the
  answer group of the new entry.
- Some answers from the cache are generated again (shadow calls) and compared with the one that went out.

A comparison can be wrong. So several answers of a group are compared: the first verdict is what the estimate counts,
and the majority what the policy learns from and the groups are built on.

No user waits for this: a request only puts work into a bounded queue. Work that does not fit is counted, and so are
misses that are left out because comparing has used up its share of the processor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

import structlog

from api.errors import StoreUnavailable, VerifierUnavailable
from api.guards.agreement import read
from api.languages.identify import Languages
from api.ports.answer_cache import AnswerCache
from api.ports.answer_quality import (
    Evidence,
    Label,
    LabelledPair,
    LabelStore,
    Observation,
    PolicyDecision,
    PolicyName,
    PolicyOutcome,
    Verdict,
    Verifier,
    Versions,
)
from api.ports.question import Query
from api.ports.telemetry import Telemetry
from api.quality.answer_facts import AnswerText
from api.quality.evidence import (
    MOST_OF_A_MISS,
    NEAR,
    NEIGHBOURS,
    Comparing,
    Grouped,
    NearEntry,
    Votes,
    evidence_of,
    grouped,
)
from api.query.cache import Lookup, is_complete
from api.query.candidates import ComparedQuestion, guarded, stored_by
from api.query.generate import FreshAnswer
from api.values import CachedAnswer, CacheMatch

if TYPE_CHECKING:
    from api.quality.comparator import Comparator

T = TypeVar("T")

CONCURRENCY: Final = 2
"""Tasks of one worker that compare misses, and as many that make shadow calls."""
REST: Final = 4.0
"""A task rests this many times as long as a comparison took, so users' questions get most of the processor."""
MOST_REST_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.1
"""Time between two checks whether a busy worker is idle again."""
PER_MISS: Final = 0.002
"""Seconds of comparing that a worker earns with each miss: a fifth of what the miss itself costs."""
PER_MISS_VERIFIED: Final = 0.01
"""The same if the policy learns from the answer groups. Each hit that it learns to serve saves a generation."""
PER_SECOND: Final = 0.01
"""Seconds of comparing that a worker earns in each second."""
MOST_EARNED: Final = 5.0
"""Seconds that can be saved up. A worker starts with them, so that a new fleet soon has labels."""
SEARCH_SECONDS: Final = 0.003
"""What a miss costs besides its comparisons: the search, the guards and the labels."""
MOST_CHARGED: Final = 0.1
"""The most that a comparison is charged: a judge model takes seconds, but none of this worker's processor."""
LABELED: Final = 4
"""Pairs of answers compared for a miss if no policy learns from the answer groups: for the labels only."""
DRAIN_SECONDS: Final = 2.0
"""Seconds that waiting comparisons have to finish when the worker stops."""


class Labelling:
    """Compares answers and writes labels, for one worker.

    `policy`: the configured one. `busy` returns whether this worker's event loop is late. `keeps_pairs`: the questions
    are stored, too.
    """

    def __init__(
        self,
        cache: AnswerCache,
        store: LabelStore,
        comparator: Comparator,
        telemetry: Telemetry,
        languages: Languages,
        *,
        policy: PolicyName = PolicyName.GUARDED,
        busy: Callable[[], bool] = lambda: False,
        keeps_pairs: bool = False,
        verifier: Verifier | None = None,
    ) -> None:
        self.cache = cache
        self.telemetry = telemetry
        self._store = store
        self._comparator = comparator
        self._languages = languages
        self._policy = policy
        self._busy = busy
        self._keeps_pairs = keeps_pairs
        self._verifier = verifier
        self._log = structlog.get_logger("ragherd.labels")

    @property
    def has_searched(self) -> bool:
        """Returns whether each miss was looked up by meaning. `observe` stops if the exact tier would have served."""
        return self._policy is not PolicyName.OBSERVE

    @property
    def learns_from_groups(self) -> bool:
        """Whether the policy decides by the answer groups."""
        return self._policy is PolicyName.VERIFIED

    async def calm(self) -> None:
        """Waits until the worker is not busy. Other tasks run first in any case."""
        await asyncio.sleep(0)
        while self._busy():  # noqa: ASYNC110 - the event loop's lag is sampled, not announced
            await asyncio.sleep(PAUSE_SECONDS)

    async def compared(
        self,
        comparing: Comparing[T],
        answers: Sequence[AnswerText],
        tenant: str,
        allowance: Allowance | None = None,
    ) -> T:
        """Compares the pairs of a tenant's answers that are asked for. The fresh answer is the last one."""
        try:
            one, other = next(comparing)
            while True:
                await self.calm()
                began = time.perf_counter()
                found = await self._comparator.compare(answers[one], answers[other], tenant=tenant)
                took = time.perf_counter() - began
                if allowance is not None:
                    allowance.spend(min(took, MOST_CHARGED))
                await asyncio.sleep(min(REST * took, MOST_REST_SECONDS))
                one, other = comparing.send(found.verdict)
        except StopIteration as end:
            return cast("T", end.value)

    def asked(self, query: Query, lookup: Lookup) -> ComparedQuestion:
        """Returns the question as the semantic tier compares it."""
        return lookup.asked or ComparedQuestion(query.question, lookup.unread, self._languages)

    async def nearest(self, lookup: Lookup) -> list[CacheMatch]:
        """Returns the nearest entries that were fresh at the look-up, without the question's own."""
        if lookup.key is None or lookup.vector is None:
            return []
        key = lookup.key
        found = await self.cache.find_similar(
            key.embedder, key.scope, lookup.vector, lookup.now_ms, neighbours=NEIGHBOURS + 1
        )
        return [match for match in found if not match.answer.entry.endswith(f":{key.digest}")][:NEIGHBOURS]

    async def scored(self, question: str, entry: NearEntry, cached: CachedAnswer) -> NearEntry:
        """Returns the entry with the verifier's score, if there is a verifier and it answers."""
        if self._verifier is not None:
            with suppress(VerifierUnavailable):
                (score,) = await self._verifier.score(question, [cached.question])
                return replace(entry, verifier=score)
        return entry

    async def append(self, seen: Observation, evidence: Evidence, cached: CachedAnswer, votes: Votes) -> None:
        """Writes a label, and the pair of questions if it is kept. Raises `StoreUnavailable`."""
        versions = Versions(
            seen.embedder,
            self._verifier.digest if self._verifier is not None else "",
            f"{self._comparator.name}-{self._comparator.version}",
        )
        variant = seen.variant
        label = Label(
            evidence,
            votes.first,
            seen.source,
            seen.served,
            seen.kind,
            self._policy if variant is None or variant.policy is None else variant.policy,
            versions,
            seen.probability,
            entry=cached.entry.rpartition(":")[2],
            votes=votes.majority,
            variant=variant.label if variant is not None else "",
            deviates=variant is not None and variant.deviates,
        )
        pair = None
        if self._keeps_pairs and seen.kind == "semantic" and votes.majority:
            verdict = Verdict.SAME if votes.majority > 0 else Verdict.DIFFERENT
            pair = LabelledPair(seen.question, cached.question, verdict, seen.scope)
        await self._store.append(seen.scope, seen.tenant, label, pair)
        self.telemetry.labelled(seen.source, votes.first, variant)

    def text(self, cached: CachedAnswer) -> AnswerText:
        """Returns a cached answer as the comparator reads it."""
        return AnswerText(cached.question, cached.answer, cached.sources)

    def failed(self) -> None:
        """Logs the current exception: a bug with one answer must not stop the others."""
        self._log.exception("label_failed")
        self.telemetry.label_dropped("failed")


def _found_nothing_near(query: Query, lookup: Lookup) -> bool:
    """Returns whether the look-up has shown that no entry is near, which saves another search.

    It has not searched by meaning if it found the question's own entry, or if the caller wanted no cached answer.
    """
    if lookup.match is not None or not query.cache_control.reads:
        return False
    return not lookup.candidates or lookup.candidates[0].match.similarity < NEAR


def _explored(lookup: Lookup) -> PolicyDecision | None:
    """Returns the policy's decision, if it was to generate an answer in order to learn."""
    decision = lookup.decision
    return decision if decision is not None and decision.outcome is PolicyOutcome.EXPLORED else None


# -- misses ------------------------------------------------------------------------------------------------------------


class Allowance:
    """The time that one worker may spend on comparing the answers of its misses. `clock`: monotonic."""

    def __init__(self, per_miss: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_miss = per_miss
        self._clock = clock
        self._left, self._at = MOST_EARNED, clock()

    def earn(self) -> None:
        """Counts a miss, and the time since the one before."""
        now = self._clock()
        self._left = min(MOST_EARNED, self._left + self._per_miss + PER_SECOND * (now - self._at))
        self._at = now

    def spend(self, seconds: float) -> None:
        """Counts time spent."""
        self._left -= seconds

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left. The last comparisons may have taken more than there was."""
        return self._left <= 0


class _Seen(NamedTuple):
    """What the look-up could find. `labeled`: the places of the nearest entry and of the one that all guards let pass.

    Those are the entries that a policy could serve.
    """

    matches: Sequence[CacheMatch]
    near: Sequence[NearEntry]
    labeled: Sequence[int]


class LabelCollector:
    """Compares the fresh answers of one worker's misses with the cached answers to similar questions."""

    def __init__(self, labelling: Labelling, queue: asyncio.Queue[FreshAnswer]) -> None:
        self._labelling = labelling
        self._queue = queue
        self._allowance = Allowance(PER_MISS_VERIFIED if labelling.learns_from_groups else PER_MISS)

    async def keep_collecting(self) -> None:
        """Collects labels forever, as a background task."""
        while True:
            fresh = await self._queue.get()
            try:
                await self._collect(fresh)
            except StoreUnavailable:
                self._labelling.telemetry.label_dropped("store_unavailable")
            except asyncio.CancelledError:
                self._labelling.telemetry.label_dropped("stopped")
                raise
            except Exception:  # noqa: BLE001 - see `failed`
                self._labelling.failed()
            finally:
                self._queue.task_done()

    async def drain(self) -> None:
        """Waits up to `DRAIN_SECONDS` for what is queued."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._queue.join()

    def count_left(self) -> None:
        """Counts what is still queued after the last task has ended."""
        while not self._queue.empty():
            self._queue.get_nowait()
            self._labelling.telemetry.label_dropped("stopped")

    async def _collect(self, fresh: FreshAnswer) -> None:
        self._allowance.earn()
        await self._labelling.calm()
        asked = self._labelling.asked(fresh.query, fresh.lookup)
        if asked.language or not is_complete(fresh.generation, fresh.query.options):
            return
        if self._labelling.has_searched and _found_nothing_near(fresh.query, fresh.lookup):
            return
        if self._allowance.is_spent and _explored(fresh.lookup) is None:
            self._labelling.telemetry.label_dropped("allowance_spent")
            return
        self._allowance.spend(SEARCH_SECONDS)
        matches = await self._labelling.nearest(fresh.lookup)
        close = [match for match in matches if match.similarity >= NEAR]
        if not close:
            return
        seen = await self._seen(asked, stored_by(fresh.lookup.now_ms, matches))
        found = await self._grouped(fresh, close, [seen.matches[place].answer.group for place in seen.labeled])
        await self._append(fresh, asked, seen, found.votes)
        members = [match.answer for match in close if match.answer.group in found.joined]
        if fresh.stored is not None and members:
            await self._labelling.cache.join([fresh.stored, *members])

    async def _seen(self, asked: ComparedQuestion, matches: Sequence[CacheMatch]) -> _Seen:
        """Runs the guards up to the first entry that they let pass."""
        near = [NearEntry(match.similarity, match.answer.group) for match in matches]
        features, passed = read(asked.question), 0
        for place, match in enumerate(matches):
            if match.similarity < NEAR:
                break
            await self._labelling.calm()
            near[place] = guarded(asked, features, match)
            if not near[place].guard:
                passed = place
                break
        labeled = sorted({0, passed}) if matches and matches[0].similarity >= NEAR else []
        return _Seen(matches, near, labeled)

    async def _grouped(self, fresh: FreshAnswer, close: Sequence[CacheMatch], first: Sequence[str]) -> Grouped:
        """Compares the answer with those of answer groups, `first` and then the nearest, and finds its group."""
        answers = [self._labelling.text(match.answer) for match in close]
        answers.append(AnswerText(fresh.query.question, fresh.generation.text, fresh.sources))
        most = MOST_OF_A_MISS if self._labelling.learns_from_groups else LABELED
        groups = [match.answer.group for match in close]
        comparing = grouped(groups, is_stored=fresh.stored is not None, most=most, first=first)
        return await self._labelling.compared(comparing, answers, fresh.query.tenant, self._allowance)

    async def _append(
        self, fresh: FreshAnswer, asked: ComparedQuestion, seen: _Seen, votes: Mapping[str, Votes]
    ) -> None:
        """Labels the entries that a policy could serve."""
        if fresh.lookup.key is None:
            return
        query, key, near = fresh.query, fresh.lookup.key, list(seen.near)
        for place in seen.labeled:
            cached = seen.matches[place].answer
            if cached.group not in votes:
                continue  # the nearest one took all comparisons
            near[place] = await self._labelling.scored(asked.question, near[place], cached)
            explored = _explored(fresh.lookup) if place == seen.labeled[-1] else None
            chance = explored.probability if explored is not None else 1.0
            label = Observation(
                query.tenant,
                query.question,
                key.scope,
                key.embedder.fingerprint,
                "miss",
                probability=chance,
                variant=query.variant,
            )
            await self._labelling.append(label, evidence_of(near, place), cached, votes[cached.group])
