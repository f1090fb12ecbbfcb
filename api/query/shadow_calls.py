"""Shadow calls: answers a sample of the hits again in the background, and labels the answers that went out.

A label says whether the answer was right. From these labels the fleet knows its error (see `api.quality.assessment`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from api.errors import BreakerOpen, BulkheadFull, RagherdError, StoreUnavailable
from api.guards.agreement import read
from api.ports.answer_quality import Evidence, Observation, QualityState, ShadowLimit
from api.ports.question import Query
from api.ports.telemetry import ShadowOutcome
from api.quality.answer_facts import AnswerText
from api.quality.evidence import FRESH, NEAR, NearEntry, evidence_of, polled
from api.quality.policies import SPARE_PART, sampling_rate, spare_rate
from api.query.cache import Lookup, is_complete
from api.query.candidates import guarded, stored_by
from api.values import CachedAnswer, CacheKind, CacheMatch

if TYPE_CHECKING:
    from api.query.generate import FreshAnswers
    from api.query.labels import Labelling

SHADOWS: Final = 16
"""Hits of one worker that may wait for a shadow call."""
RATE_SECONDS: Final = 1.0
"""Time between two readings of the fleet's error."""
SHARE_SECONDS: Final = 300.0
"""After this time a sampled hit counts half in the share of them that is compared. Limits hold for a minute."""


@dataclass(frozen=True, slots=True)
class SpareTime:
    """Whether Ollama has time for work that nobody waits for. No I/O."""

    is_closed: Callable[[], bool]
    """Every breaker is closed."""
    has_waiting: Callable[[], bool]
    """A call waits for a permit."""


@dataclass(frozen=True, slots=True)
class _Served:
    """An answer that went out. `rate`: the sampling rate at that time. `most`: shadow calls that a minute allows it."""

    query: Query
    lookup: Lookup
    match: CacheMatch
    kind: str
    rate: float
    most: int


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

    `rates`: the share of hits that is sampled now, by kind of match. `quality` returns what the fleet knows of its
    error. `fresh` reports to no telemetry: users' figures do not count these calls.
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
        self.rates: dict[CacheKind, float] = dict.fromkeys(get_args(CacheKind), rate)
        self._labelling = labelling
        self._fresh = fresh
        self._limit = limit
        self._spare = spare
        self._per_minute = per_minute
        self._base = self._due = rate
        self._quality = quality
        self._queue: asyncio.Queue[_Served] = asyncio.Queue(SHADOWS)
        self._by_rate: dict[float, _Compared] = defaultdict(_Compared)

    def sample(self, query: Query, lookup: Lookup, *, stale: bool) -> None:
        """Queues an answer that went out, unless its caller allows no call to Ollama. No I/O here.

        The answer to a forwarded request is not compared: it belongs to the same request, and is not a text.
        """
        if lookup.match is None or query.cache_control.only_if_cached or query.forwarded is not None:
            return
        kind = "stale" if stale else lookup.match.kind
        rate = self.rates[lookup.match.kind]
        try:
            self._queue.put_nowait(_Served(query, lookup, lookup.match, kind, rate, self._most(lookup.match.kind)))
        except asyncio.QueueFull:
            self._ended(rate, "queue_full")

    def _most(self, kind: CacheKind) -> int:
        """Returns how many shadow calls a minute allows: a part of them for samples above the usual rate."""
        is_usual = kind != "semantic" or random.random() * self.rates[kind] < self._due  # noqa: S311 - no secret
        return self._per_minute if is_usual else self._per_minute // SPARE_PART

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
        """Follows the fleet's error forever, as a background task: a hit reads only a number.

        The rate of exact hits stays: no level stops equal questions, so more of their labels would help nobody.
        """
        while True:
            state = self._quality()
            self._due, self.rates["semantic"] = sampling_rate(self._base, state), spare_rate(self._base, state)
            await asyncio.sleep(RATE_SECONDS)

    async def _compared(self, served: _Served) -> ShadowOutcome:
        await self._labelling.calm()
        if not self._spare.is_closed():
            return "breaker_open"
        if self._spare.has_waiting():
            return "users_waiting"
        if not await self._limit.admit_shadow(served.most):
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
        compared = [self._labelling.text(one) for one in (cached, *alike)]
        comparing = polled([(FRESH, place) for place in range(len(compared))])
        votes = await self._labelling.compared(comparing, [*compared, answer], served.query.tenant)
        chance = self.probability(served.rate)
        query, embedder = served.query, key.embedder.fingerprint
        seen = Observation(
            query.tenant,
            query.question,
            key.scope,
            embedder,
            "shadow",
            served.kind,
            served=True,
            probability=chance,
            variant=query.variant,
        )
        await self._labelling.append(seen, evidence, cached, votes)

    async def _evidence(self, served: _Served) -> tuple[Evidence, list[CachedAnswer]]:
        """Returns what a policy knows about the answer that went out, and the other answers of its group nearby.

        The same question needs no evidence.
        """
        if served.match.kind == "exact":
            return Evidence(served.match.similarity), []
        cached = served.match.answer
        found = stored_by(served.match.now_ms, await self._labelling.nearest(served.lookup))
        others = [match for match in found if match.answer.entry != cached.entry]
        matches = sorted([served.match, *others], key=lambda match: -match.similarity)
        near = [NearEntry(match.similarity, match.answer.group) for match in matches]
        asked, index = self._labelling.asked(served.query, served.lookup), matches.index(served.match)
        judged = guarded(asked, read(asked.question), served.match)
        near[index] = await self._labelling.scored(asked.question, judged, cached)
        alike = [one.answer for one in others if one.answer.group == cached.group and one.similarity >= NEAR]
        return evidence_of(near, index), alike
