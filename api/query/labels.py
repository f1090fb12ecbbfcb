"""Labels: compares fresh answers with cached ones in the background, and so learns which cached answers are right.

- A miss ends with a fresh answer. It is compared with the cached answers to similar questions. That also finds the
  answer group of the new entry.
- Some answers from the cache are generated again (shadow calls) and compared with the one that went out.

A comparison can be wrong. So several answers of a group are compared: the first verdict is what the estimate counts,
and the majority what the policy learns from and the groups are built on.

No user waits for this: a request only puts work into a bounded queue. Work that does not fit is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar, cast

import structlog

from api.errors import BreakerOpen, BulkheadFull, RagherdError, StoreUnavailable, VerifierUnavailable
from api.guards.agreement import Features, disagreement, read
from api.languages.identify import Languages
from api.ports.answer_cache import AnswerCache
from api.ports.answer_quality import (
    Evidence,
    Label,
    LabelledPair,
    LabelSource,
    LabelStore,
    PolicyName,
    PolicyOutcome,
    QualityState,
    ShadowLimit,
    Verdict,
    Verifier,
    Versions,
)
from api.ports.question import Query
from api.ports.telemetry import ShadowOutcome, Telemetry
from api.quality.answer_facts import AnswerText
from api.quality.comparator import Comparator
from api.quality.evidence import (
    FRESH,
    NEAR,
    NEIGHBOURS,
    Comparing,
    Grouped,
    NearEntry,
    Votes,
    evidence_of,
    grouped,
    polled,
)
from api.quality.policies import sampling_rate
from api.query.cache import Lookup, is_complete
from api.query.cache_key import CacheKey
from api.query.candidates import ComparedQuestion, incomparable
from api.query.generate import FreshAnswer, FreshAnswers
from api.values import CachedAnswer, CacheMatch

T = TypeVar("T")

CONCURRENCY: Final = 2
"""Tasks of one worker that compare misses, and as many that make shadow calls."""
REST: Final = 4.0
"""A task rests this many times as long as a comparison took, so users' questions get most of the processor."""
MOST_REST_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.1
"""Time between two checks whether a busy worker is idle again."""
SHADOWS: Final = 16
"""Hits of one worker that may wait for a shadow call."""
RATE_SECONDS: Final = 1.0
"""Time between two readings of the fleet's error."""
DRAIN_SECONDS: Final = 2.0
"""Seconds that waiting comparisons have to finish when the worker stops."""
SHARE_SECONDS: Final = 300.0
"""After this time a sampled hit counts half in the share of them that is compared. Limits hold for a minute."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The circumstances of a label. `probability`: the chance that such an answer is sampled."""

    query: Query
    key: CacheKey
    source: LabelSource
    kind: str = "semantic"
    served: bool = False
    probability: float = 1.0


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

    async def calm(self) -> None:
        """Waits until the worker is not busy. Other tasks run first in any case."""
        await asyncio.sleep(0)
        while self._busy():  # noqa: ASYNC110 - the event loop's lag is sampled, not announced
            await asyncio.sleep(PAUSE_SECONDS)

    async def compared(self, comparing: Comparing[T], answers: Sequence[AnswerText], tenant: str) -> T:
        """Compares the pairs of a tenant's answers that are asked for. The fresh answer is the last one."""
        try:
            one, other = next(comparing)
            while True:
                await self.calm()
                began = time.perf_counter()
                found = await self._comparator.compare(answers[one], answers[other], tenant=tenant)
                await asyncio.sleep(min(REST * (time.perf_counter() - began), MOST_REST_SECONDS))
                one, other = comparing.send(found.verdict)
        except StopIteration as end:
            return cast("T", end.value)

    def asked(self, query: Query, lookup: Lookup) -> ComparedQuestion:
        """Returns the question as the semantic tier compares it."""
        return ComparedQuestion(query.question, lookup.unread, self._languages)

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
            seen.key.embedder.fingerprint,
            self._verifier.digest if self._verifier is not None else "",
            f"{self._comparator.name}-{self._comparator.version}",
        )
        label = Label(
            evidence,
            votes.first,
            seen.source,
            seen.served,
            seen.kind,
            self._policy,
            versions,
            seen.probability,
            entry=cached.entry.rpartition(":")[2],
            votes=votes.majority,
        )
        scope, pair = seen.key.scope, None
        if self._keeps_pairs and seen.kind == "semantic" and votes.majority:
            verdict = Verdict.SAME if votes.majority > 0 else Verdict.DIFFERENT
            pair = LabelledPair(seen.query.question, cached.question, verdict, scope)
        await self._store.append(scope, seen.query.tenant, label, pair)
        self.telemetry.labelled(seen.source, votes.first)

    def failed(self) -> None:
        """Logs the current exception: a bug with one answer must not stop the others."""
        self._log.exception("label_failed")
        self.telemetry.label_dropped("failed")


def answer_text(cached: CachedAnswer) -> AnswerText:
    """Returns a cached answer as the comparator reads it."""
    return AnswerText(cached.question, cached.answer, cached.sources)


def _found_nothing_near(query: Query, lookup: Lookup) -> bool:
    """Returns whether the look-up has shown that no entry is near, which saves another search.

    It has not searched by meaning if it found the question's own entry, or if the caller wanted no cached answer.
    """
    if lookup.match is not None or not query.cache_control.reads:
        return False
    return not lookup.candidates or lookup.candidates[0].match.similarity < NEAR


def _stored_by(now_ms: int, matches: Sequence[CacheMatch]) -> list[CacheMatch]:
    """Returns those that the look-up could find. Answers stored later only show which others are the same."""
    return [match for match in matches if match.answer.created_ms <= now_ms]


def _guarded(asked: ComparedQuestion, features: Features, match: CacheMatch) -> NearEntry:
    """Returns an entry with the first guard that objects."""
    objection = incomparable(asked, match.answer) or disagreement(features, match.answer.question)
    return NearEntry(match.similarity, match.answer.group, objection.guard if objection is not None else "")


# -- misses ------------------------------------------------------------------------------------------------------------


class LabelCollector:
    """Compares the fresh answers of one worker's misses with the cached answers to similar questions."""

    def __init__(self, labelling: Labelling, queue: asyncio.Queue[FreshAnswer]) -> None:
        self._labelling = labelling
        self._queue = queue

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
        await self._labelling.calm()
        asked = self._labelling.asked(fresh.query, fresh.lookup)
        if asked.language or not is_complete(fresh.generation, fresh.query.options):
            return
        if self._labelling.has_searched and _found_nothing_near(fresh.query, fresh.lookup):
            return
        matches = await self._labelling.nearest(fresh.lookup)
        close = [match for match in matches if match.similarity >= NEAR]
        if not close:
            return
        found = await self._grouped(fresh, close)
        await self._append(fresh, asked, _stored_by(fresh.lookup.now_ms, matches), found.votes)
        members = [match.answer for match in close if match.answer.group in found.joined]
        if fresh.stored is not None and members:
            await self._labelling.cache.join([fresh.stored, *members])

    async def _grouped(self, fresh: FreshAnswer, close: Sequence[CacheMatch]) -> Grouped:
        """Compares the answer with those of each answer group, nearest first, and finds its group."""
        answers = [answer_text(match.answer) for match in close]
        answers.append(AnswerText(fresh.query.question, fresh.generation.text, fresh.sources))
        comparing = grouped([match.answer.group for match in close], is_stored=fresh.stored is not None)
        return await self._labelling.compared(comparing, answers, fresh.query.tenant)

    async def _append(
        self,
        fresh: FreshAnswer,
        asked: ComparedQuestion,
        matches: Sequence[CacheMatch],
        votes: Mapping[str, Votes],
    ) -> None:
        """Labels the entries that a policy could serve: the nearest, and the nearest that all guards let pass."""
        if fresh.lookup.key is None or not matches or matches[0].similarity < NEAR:
            return
        near = [NearEntry(match.similarity, match.answer.group) for match in matches]
        index = await self._guard(asked, matches, near)
        decision = fresh.lookup.decision
        explored = decision is not None and decision.outcome is PolicyOutcome.EXPLORED
        for place in sorted({0, index}):
            cached = matches[place].answer
            near[place] = await self._labelling.scored(asked.question, near[place], cached)
            chance = decision.probability if decision is not None and explored and place == index else 1.0
            seen = Observation(fresh.query, fresh.lookup.key, "miss", probability=chance)
            await self._labelling.append(seen, evidence_of(near, place), cached, votes[cached.group])

    async def _guard(self, asked: ComparedQuestion, matches: Sequence[CacheMatch], near: list[NearEntry]) -> int:
        """Runs the guards up to the first entry that they let pass, and returns its index; 0 if there is none."""
        features = read(asked.question)
        for index, match in enumerate(matches):
            if match.similarity < NEAR:
                break
            await self._labelling.calm()
            near[index] = _guarded(asked, features, match)
            if not near[index].guard:
                return index
        return 0


# -- shadow calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpareTime:
    """Whether Ollama has time for work that nobody waits for. No I/O."""

    is_closed: Callable[[], bool]
    """Every breaker is closed."""
    has_waiting: Callable[[], bool]
    """A call waits for a permit."""


@dataclass(frozen=True, slots=True)
class _Served:
    """An answer that went out. `rate`: the sampling rate at that time."""

    query: Query
    lookup: Lookup
    match: CacheMatch
    kind: str
    rate: float


class _Compared:
    """How many of the hits sampled at one rate were compared lately, and not left out because there were too many."""

    def __init__(self) -> None:
        self._sampled = self._compared = 1.0
        self._at = time.monotonic()

    def add(self, *, compared: bool) -> None:
        """Counts a sampled hit."""
        now = time.monotonic()
        fade = 0.5 ** ((now - self._at) / SHARE_SECONDS)
        self._sampled, self._compared = self._sampled * fade + 1, self._compared * fade + compared
        self._at = now

    @property
    def share(self) -> float:
        return self._compared / self._sampled


class ShadowCalls:
    """Answers a sample of one worker's hits again, and labels the answers that went out.

    `rate`: the share of hits that is sampled now. `quality` returns what the fleet knows of its error. `fresh` reports
    to no telemetry: users' figures do not count these calls.
    """

    def __init__(
        self,
        labelling: Labelling,
        fresh: FreshAnswers,
        limit: ShadowLimit,
        spare: SpareTime,
        quality: Callable[[], QualityState] = QualityState,
        *,
        rate: float,
        per_minute: int,
    ) -> None:
        self.rate = rate
        self._labelling = labelling
        self._fresh = fresh
        self._limit = limit
        self._spare = spare
        self._per_minute = per_minute
        self._base = rate
        self._quality = quality
        self._queue: asyncio.Queue[_Served] = asyncio.Queue(SHADOWS)
        self._by_rate: dict[float, _Compared] = defaultdict(_Compared)

    def sample(self, query: Query, lookup: Lookup, *, stale: bool) -> None:
        """Queues an answer that went out, unless its caller allows no call to Ollama. No I/O here."""
        if lookup.match is None or query.cache_control.only_if_cached:
            return
        kind = "stale" if stale else lookup.match.kind
        try:
            self._queue.put_nowait(_Served(query, lookup, lookup.match, kind, self.rate))
        except asyncio.QueueFull:
            self._ended(self.rate, "queue_full")

    def probability(self, rate: float) -> float:
        """Returns the probability that a hit is sampled at this rate and then compared.

        Limits make it smaller, so each compared hit stands for more of them.
        """
        return rate * self._by_rate[rate].share

    def _ended(self, rate: float, outcome: ShadowOutcome) -> None:
        if outcome in ("compared", "limited", "queue_full"):
            self._by_rate[rate].add(compared=outcome == "compared")
        self._labelling.telemetry.shadow_called(outcome)

    async def keep_calling(self) -> None:
        """Makes shadow calls forever, as a background task."""
        while True:
            served = await self._queue.get()
            outcome: ShadowOutcome = "stopped"
            try:
                outcome = await self._compared(served)
            except StoreUnavailable:
                self._labelling.telemetry.label_dropped("store_unavailable")
                outcome = "store_unavailable"
            except Exception:  # noqa: BLE001 - see `failed`
                self._labelling.failed()
                outcome = "failed"
            finally:
                self._ended(served.rate, outcome)

    def count_left(self) -> None:
        """Counts the queued ones. Nobody waits for a generation any more."""
        while not self._queue.empty():
            self._ended(self._queue.get_nowait().rate, "stopped")

    async def keep_rate(self) -> None:
        """Follows the fleet's error forever, as a background task: a hit reads only a number."""
        while True:
            self.rate = sampling_rate(self._base, self._quality())
            await asyncio.sleep(RATE_SECONDS)

    async def _compared(self, served: _Served) -> ShadowOutcome:
        await self._labelling.calm()
        if not self._spare.is_closed():
            return "breaker_open"
        if self._spare.has_waiting():
            return "users_waiting"
        if not await self._limit.admit_shadow(self._per_minute):
            return "limited"
        try:
            answered = await self._fresh.again(served.query, served.lookup)
        except BreakerOpen:
            return "breaker_open"
        except BulkheadFull:
            return "users_waiting"
        except RagherdError:
            return "failed"
        if answered is None or not is_complete(answered[0], served.query.options):
            return "incomplete"
        generation, sources = answered
        await self._label(served, AnswerText(served.query.question, generation.text, sources))
        return "compared"

    async def _label(self, served: _Served, answer: AnswerText) -> None:
        key, cached = served.lookup.key, served.match.answer
        if key is None:
            return
        evidence, alike = await self._evidence(served)
        compared = [answer_text(one) for one in (cached, *alike)]
        comparing = polled([(FRESH, place) for place in range(len(compared))])
        votes = await self._labelling.compared(comparing, [*compared, answer], served.query.tenant)
        chance = self.probability(served.rate)
        seen = Observation(served.query, key, "shadow", served.kind, served=True, probability=chance)
        await self._labelling.append(seen, evidence, cached, votes)

    async def _evidence(self, served: _Served) -> tuple[Evidence, list[CachedAnswer]]:
        """Returns what a policy knows about the answer that went out, and the other answers of its group nearby.

        The same question needs no evidence.
        """
        if served.match.kind == "exact":
            return Evidence(served.match.similarity), []
        cached = served.match.answer
        found = _stored_by(served.match.now_ms, await self._labelling.nearest(served.lookup))
        others = [match for match in found if match.answer.entry != cached.entry]
        matches = sorted([served.match, *others], key=lambda match: -match.similarity)
        near = [NearEntry(match.similarity, match.answer.group) for match in matches]
        asked, index = self._labelling.asked(served.query, served.lookup), matches.index(served.match)
        guarded = _guarded(asked, read(asked.question), served.match)
        near[index] = await self._labelling.scored(asked.question, guarded, cached)
        alike = [one.answer for one in others if one.answer.group == cached.group and one.similarity >= NEAR]
        return evidence_of(near, index), alike
