"""Lets a quality policy choose which of the nearest cached questions answers this one, if any.

The policy `guarded` needs none of this: the guards alone decide.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from api.errors import VerifierUnavailable
from api.ports.answer_quality import PolicyDecision, PolicyOutcome, Verifier
from api.ports.question import Query, Timings
from api.quality.evidence import NearEntry
from api.quality.keeper import QualityView
from api.quality.policies import Rules, decide
from api.query.candidates import Candidate, ComparedQuestion, Sight, sighted
from api.values import CacheMatch

if TYPE_CHECKING:
    from api.query.cache import Lookup
    from api.query.grounding import GroundedCheck


class PolicyChoice:
    """The choice of one worker. `grounded_check` and `verifier` are None if they are not used."""

    def __init__(self, quality: QualityView, grounded_check: GroundedCheck | None, verifier: Verifier | None) -> None:
        self._quality = quality
        self._grounded_check = grounded_check
        self._verifier = verifier

    async def best(
        self,
        matches: Sequence[CacheMatch],
        rules: Rules,
        asked: ComparedQuestion,
        query: Query,
        lookup: Lookup,
        timings: Timings,
        stale_seconds: float,
        *,
        explores: bool,
    ) -> Candidate | None:
        """Sets the look-up's candidates and decision. `explores`: it may generate an answer to learn from it."""
        sight = sighted(asked, matches, rules, query.cache_control, stale_seconds)
        near = await self._scored(asked, sight) if rules.verifies and rules.scored else sight.near
        chance = random.random() if explores else 1.0  # noqa: S311 - a sample, no secret
        decision = decide(near, sight.usable, rules, chance)
        lookup.candidates = candidates = list(sight.candidates)
        chosen = None
        if decision.outcome is PolicyOutcome.SERVED and decision.index is not None:
            chosen = candidates[decision.index]
            if self._grounded_check is not None:
                chosen = candidates[decision.index] = await self._grounded_check.checked(chosen, query, lookup, timings)
            if chosen.objection is not None:
                chosen = None
                decision = PolicyDecision(rules.policy, PolicyOutcome.REFUSED, reason="guard: grounding")
        lookup.decision = decision
        return chosen

    async def _scored(self, asked: ComparedQuestion, sight: Sight) -> Sequence[NearEntry]:
        """Adds the verifier's score of the candidate that may be served. Without a score it is not served.

        The score of another verifier than the one whose labels the fleet has learned from says nothing: the model and
        the verifier do not change at the same moment.
        """
        near = list(sight.near)
        learned = self._quality.published.state.versions.verifier
        if self._verifier is not None:
            for index in sight.usable:
                cached = sight.candidates[index].match.answer.question
                with suppress(VerifierUnavailable):  # at its deadline, or at a fault: a miss
                    (score,) = await self._verifier.score(asked.question, [cached])
                    if self._verifier.digest == learned:
                        near[index] = replace(near[index], verifier=score)
        return near
