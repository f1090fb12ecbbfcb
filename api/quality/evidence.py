"""Builds the evidence about a candidate from the questions around it. Pure; the look-up and the labels share it.

Entries with the same answer form an answer group. If the entries around a question agree on one answer, and the nearest
other answer is far away, the candidate is probably right. If two answers are about equally near, it is probably not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.ports.quality import Evidence

NEIGHBOURS: Final = 10
"""Entries that the evidence needs. Fewer miss other answers; more add entries too far away to count."""
NEAR: Final = 0.65
"""The lowest cosine of a candidate that is labeled."""
SHARPNESS: Final = 10.0
"""How fast a neighbor's weight falls: by a factor of e for each 0.1 of cosine."""
BEYOND: Final = 0.05
"""How much farther than the farthest entry another answer is assumed to be, if all entries found have one answer."""
FLOOR: Final = 0.3
"""The lowest cosine assumed for another answer."""


@dataclass(frozen=True, slots=True)
class NearEntry:
    """An entry near a question. `group`: its answer group. `guard`: the first guard that objects, empty if none does.

    `verifier`: the cross-encoder's logit, if it has scored the entry.
    """

    similarity: float
    group: str
    guard: str = ""
    verifier: float | None = None


def evidence_of(near: Sequence[NearEntry], index: int) -> Evidence:
    """Returns the evidence about one of the nearest entries. `near`: all that the search found, nearest first."""
    candidate = near[index]
    others = [one.similarity for one in near if one.group != candidate.group]
    same = [one.similarity for one in near if one.group == candidate.group]
    return Evidence(
        similarity=candidate.similarity,
        other=others[0] if others else max(FLOOR, near[-1].similarity - BEYOND),
        same=_weight(same, candidate.similarity),
        others=_weight(others, candidate.similarity),
        guard=candidate.guard,
        verifier=candidate.verifier,
    )


def _weight(similarities: Sequence[float], center: float) -> float:
    """Counts entries. One as near as the candidate counts 1, a farther one less."""
    return math.fsum(math.exp(SHARPNESS * (similarity - center)) for similarity in similarities)
