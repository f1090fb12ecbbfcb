"""Several rankings of the same things, fused into one: weighted reciprocal rank fusion. Pure.

After Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods"
(SIGIR 2009): a thing is worth the sum of weight / (K + its rank) over the rankings that have it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, TypeVar

Thing = TypeVar("Thing", bound=Hashable)

K: Final = 5
"""The paper's 60 lets being in both rankings count for more than being first in one: too much where one is better."""
MEANING: Final = 1.0
WORDS: Final = 0.4
"""What a ranking by meaning and one by words weigh. `scripts/bench_retrieval.py` shows what they do.

K and these are the best on its even questions; on the odd ones fused is then the best in every column too. From 0.5 on
words cost more than they bring where documents do not share the question's words.
"""


def fused(rankings: Iterable[tuple[float, Sequence[Thing]]], k: int = K) -> list[Thing]:
    """All that any ranking has, the worthiest first; of equals, the one that an earlier ranking names first."""
    worth: defaultdict[Thing, float] = defaultdict(float)
    for weight, ranking in rankings:
        for rank, thing in enumerate(ranking, start=1):
            worth[thing] += weight / (k + rank)
    return sorted(worth, key=lambda thing: -worth[thing])
