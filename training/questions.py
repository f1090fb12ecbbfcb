"""Reads training/questions.txt: questions written for this project, in clusters that share one answer.

A block of lines is a cluster. The questions of its first lines have one answer. Each line after a dash is near them and
has another answer, as `gift` and `gift card` do, or `before` and `after`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from training.pairs import Pair
from training.surface import misspell, reorder, shorten, vary

SOURCE: Final = "written"
TRAINED_ON: Final = 0.6
"""The share of the clusters that a verifier trains on. The others calibrate it."""
RETYPED: Final = 0.5
"""The share of training questions that are typed otherwise: with misspellings, shorter or in another order."""


class Cluster(NamedTuple):
    """Questions with one answer, and near questions with other answers."""

    same: Sequence[str]
    others: Sequence[str]

    @property
    def is_trained_on(self) -> bool:
        """Decided by a hash of the first question, so it does not change while clusters are added."""
        first = hashlib.sha256(self.same[0].encode()).digest()
        return int.from_bytes(first[:4]) / 2**32 < TRAINED_ON

    def pairs(self) -> list[Pair]:
        """Returns all pairs of the cluster's questions. No two of the others have one answer."""
        alike = [Pair(one, two, True, SOURCE) for one, two in combinations(self.same, 2)]
        apart = [*product(self.same, self.others), *combinations(self.others, 2)]
        return alike + [Pair(one, two, False, SOURCE) for one, two in apart]


@cache
def clusters() -> Sequence[Cluster]:
    """Returns the clusters of questions.txt."""
    blocks = Path(__file__).with_suffix(".txt").read_text("utf-8").strip().split("\n\n")
    found = []
    for block in blocks:
        lines = block.splitlines()
        others = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        found.append(Cluster([line for line in lines if not line.startswith("- ")], others))
    return found


def training_pairs(times: int, random: Random) -> list[Pair]:
    """Returns the pairs to train on, each `times`, half of their questions typed in other ways.

    Each question also makes a pair with itself.
    """
    trained = [cluster for cluster in clusters() if cluster.is_trained_on]
    pairs = [pair for cluster in trained for pair in cluster.pairs()]
    pairs += [Pair(one, one, True, SOURCE) for cluster in trained for one in (*cluster.same, *cluster.others)]
    retyped = [
        Pair(_retyped(pair.first, random), _retyped(pair.second, random), pair.same, SOURCE) for pair in pairs * times
    ]
    return [pair for pair in retyped if pair.first != pair.second]


def calibration_pairs(random: Random) -> list[Pair]:
    """Returns the pairs of the clusters that no verifier trains on, and each question with itself typed otherwise."""
    kept = [cluster for cluster in clusters() if not cluster.is_trained_on]
    questions = [one for cluster in kept for one in (*cluster.same, *cluster.others)]
    repeats = [Pair(one, _retyped(one, random), True, SOURCE) for one in questions]
    return [pair for cluster in kept for pair in cluster.pairs()] + [one for one in repeats if one.first != one.second]


def _retyped(question: str, random: Random) -> str:
    if random.random() >= RETYPED:
        return question
    ways = (vary(question, random), misspell(question, random), reorder(question, random), shorten(question, random))
    return random.choice([one for one in ways if one])
