"""Chooses passages that add something: no near-copies, and others than those chosen. Pure.

Maximal marginal relevance after Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering
Documents and Producing Summaries" (SIGIR 1998): the next passage is the one with the most relevance less its
resemblance to those chosen.

A near-copy has the same words as a chosen passage but for a few. A different number, code or name, or a negation,
makes it another passage: two sheets may differ in the serial number alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

Place = TypeVar("Place", bound=Hashable)

ALIKE: Final = 0.7
"""Cosine from which on two passages resemble each other."""
RESEMBLANCE: Final = 0.2
"""How much relevance a passage loses for each further point of its cosine to a chosen one. With more, or from a lower
`ALIKE` on, `scripts/bench_retrieval.py` finds less."""
CONSIDERED: Final = 3
"""Times as many passages are considered as are wanted."""
COPY: Final = 0.9
"""Share of words that near-copies have in common."""
NEGATIONS: Final = frozenset(
    re.findall(
        r"\w+", "no not never none without nicht kein keine ohne nie ne pas sans jamais sin nunca non senza niet geen"
    )
)
_WORD: Final = re.compile(r"\w+(?:[-./:]\w+)*")
_NAMED: Final = re.compile(r"(?<=[\w,;:] )[^\W\d_a-zß-öø-ÿ]\w+")
"""A word with a capital letter that does not begin a sentence."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a passage: all, and those that name one thing."""

    all: frozenset[str]
    distinctive: frozenset[str]


def words_of(text: str) -> Words:
    """Words with a digit, with a capital within a sentence, and negations are distinctive."""
    words = _WORD.findall(text)
    named = [*map(str.casefold, _NAMED.findall(text)), *(word for word in words if any(map(str.isdigit, word)))]
    folded = frozenset(map(str.casefold, words))
    return Words(folded, folded & NEGATIONS | frozenset(named))


def is_copy(one: Words, other: Words) -> bool:
    """Returns whether two passages say the same in almost the same words."""
    if one.distinctive != other.distinctive or not one.all:
        return False
    return len(one.all & other.all) >= COPY * len(one.all | other.all)


def diverse(
    scored: Sequence[tuple[Place, float]],
    count: int,
    texts: Callable[[Place], str],
    resemblance: Callable[[Place, Place], float],
    leading: int = 0,
) -> list[tuple[Place, float]]:
    """The best `count` of the scored passages, without near-copies. The first `leading` keep their places.

    `resemblance`: the cosine of two passages. A passage that is ahead of one with a higher score counts as high.
    """
    left = list(range(min(len(scored), max(CONSIDERED * count, leading))))
    worth = _worth([score for _, score in scored])
    words: dict[int, Words] = {}
    nearest = dict.fromkeys(left, 0.0)
    chosen: list[int] = []
    while left and len(chosen) < count:
        lead = [one for one in left if one < leading]
        best = lead[0] if lead else max(left, key=lambda one: worth[one] - RESEMBLANCE * max(0.0, nearest[one] - ALIKE))
        left.remove(best)
        words[best] = words_of(texts(scored[best][0]))
        if any(is_copy(words[best], words[one]) for one in chosen):
            continue
        chosen.append(best)
        for one in left:
            nearest[one] = max(nearest[one], resemblance(scored[one][0], scored[best][0]))
    return [scored[one] for one in chosen]


def _worth(scores: Sequence[float]) -> list[float]:
    """Each score, or the highest behind it."""
    found: list[float] = []
    for score in reversed(scores):
        found.append(max(score, found[-1] if found else score))
    return found[::-1]
