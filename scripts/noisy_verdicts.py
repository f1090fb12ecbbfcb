"""Simulates the verdicts of the comparator on answers to questions whose intents are known.

Its error rates are those measured on labeled pairs of answers. The same two answers always get the same verdict, and
errors repeat: some intents have answers that are hard to tell apart, and some answers are hard to compare with any
answer of an intent. On the labeled pairs, 43 % of the answers that were wrongly called the same as another one were
also called the same as a second answer with that meaning. Of those wrongly called different, 33 % were called so again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Final

from api.ports.answer_quality import Verdict
from api.quality.comparator import VerdictCounts

BY_INTENT: Final = 0.35
"""The share of the variance that all answers of two intents have in common."""
BY_ANSWER: Final = 0.5
"""The share that an answer has in common with itself in all comparisons with one intent."""
NORMAL: Final = NormalDist()


class NoisyVerdicts:
    """Verdicts on pairs of answers. `intents`: those of the questions. `repeated`: errors repeat; else each is new."""

    def __init__(self, counts: VerdictCounts, intents: Sequence[int], seed: int, *, repeated: bool = True) -> None:
        self._intents = intents
        by_intent, by_answer = (BY_INTENT, BY_ANSWER) if repeated else (0.0, 0.0)
        self._shares = math.sqrt(by_intent), math.sqrt(by_answer / 2), math.sqrt(1 - by_intent - by_answer)
        wrong = (counts.different_same / counts.n_different, counts.same_different / counts.n_same)
        unsure = (counts.p_unsure_given_different, counts.p_unsure_given_same)
        self._bounds = [(_bound(one), _bound(one + other)) for one, other in zip(wrong, unsure, strict=True)]
        self._seed = seed
        self._ease = lru_cache(maxsize=None)(self._drawn_ease)
        self._normal = lru_cache(maxsize=None)(self._drawn)

    def __call__(self, one: int, other: int, same: bool) -> Verdict:
        """Returns the verdict on the answers to two questions. `same`: they say the same in truth."""
        ease = self._ease(min(one, other), max(one, other))
        wrong, unsure = self._bounds[same]
        if ease < wrong:
            return Verdict.DIFFERENT if same else Verdict.SAME
        if ease < unsure:
            return Verdict.UNSURE
        return Verdict.SAME if same else Verdict.DIFFERENT

    def _drawn_ease(self, one: int, other: int) -> float:
        """Returns how easily two answers are compared, as a normal variable."""
        of_intents, of_answer, of_pair = self._shares
        kind, other_kind = self._intents[one], self._intents[other]
        both = self._normal("answer", one, other_kind) + self._normal("answer", other, kind)
        intents = self._normal("intents", min(kind, other_kind), max(kind, other_kind))
        return of_intents * intents + of_answer * both + of_pair * self._normal("pair", one, other)

    def _drawn(self, *of: object) -> float:
        """Returns a normal variable that depends only on the seed and on what it is of."""
        digest = hashlib.blake2b(repr((self._seed, *of)).encode(), digest_size=8).digest()
        return NORMAL.inv_cdf((int.from_bytes(digest, "big") + 0.5) / 2**64)


def _bound(share: float) -> float:
    return NORMAL.inv_cdf(min(max(share, 1e-9), 1 - 1e-9))
