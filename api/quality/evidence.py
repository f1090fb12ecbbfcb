"""Builds the evidence about a candidate from the questions around it. Pure; the look-up and the labels share it.

Entries with the same answer form an answer group. If the entries around a question agree on one answer, and the nearest
other answer is far away, the candidate is probably right. If two answers are about equally near, it is probably not.

A comparison of two answers can be wrong. So an answer is compared with several of a group, and their majority counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final, TypeVar, cast

from api.ports.answer_quality import Evidence, Verdict

T = TypeVar("T")
Comparing = Generator[tuple[int, int], Verdict, T]
"""Yields pairs of answers, by their places among the entries, and is sent the verdict on each."""

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
AGREED: Final = 2
"""A majority of so many verdicts ends the comparisons with a group. If verdicts differ, it takes so many to count."""
MOST_COMPARED: Final = 4
"""Answers of a group that an answer is compared with."""
MOST_OF_A_MISS: Final = 12
"""Pairs of answers that are compared for one miss. After that no other answer group is looked at."""
FRESH: Final = -1
"""The place of the fresh answer, in pairs of answers to compare."""


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


# -- answer groups -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Votes:
    """Whether an answer is that of a group. `first`: the verdict on the first pair.

    `majority`: how many more verdicts say `same` than `different`; 0 if they leave it open.
    """

    first: Verdict = Verdict.UNSURE
    majority: int = 0


@dataclass(frozen=True, slots=True)
class Grouped:
    """What the comparisons with the entries nearby have shown. `votes`: of each answer group that was compared.

    `joined`: the groups with the fresh answer, the first of which it joins; empty if none has it.
    """

    votes: Mapping[str, Votes]
    joined: Sequence[str] = ()


def grouped(
    groups: Sequence[str], *, is_stored: bool, most: int = MOST_OF_A_MISS, first: Sequence[str] = ()
) -> Comparing[Grouped]:
    """Finds the answer group of a fresh answer. `groups`: those of the entries near it, nearest first.

    The groups in `first` are compared first, then the others, nearest first, until `most` pairs were compared.

    It joins the group with the largest majority, the nearest of equals. Other groups with the same answer merge with
    that one only if their own answers are the same too. So wrong verdicts on one answer merge no groups. An answer that
    was not stored joins none.
    """
    places = {group: [place for place, one in enumerate(groups) if one == group] for group in groups}
    votes: dict[str, Votes] = {}
    left = _Left(most)
    for group in dict.fromkeys((*first, *places)):
        if left.pairs <= 0:
            break
        votes[group] = yield from left.counting(polled([(FRESH, place) for place in places[group]]))
    agreeing = sorted(
        (one for one in places if one in votes and votes[one].majority > 0), key=lambda one: -votes[one].majority
    )
    if not is_stored or not agreeing:
        return Grouped(votes)
    own, *others = agreeing
    joined = [own]
    for group in others:
        if left.pairs <= 0:
            break
        between = yield from left.counting(polled(product(places[own][:AGREED], places[group][:AGREED])))
        if between.majority > 0:
            joined.append(group)
    return Grouped(votes, joined)


class _Left:
    """Counts down how many pairs may still be compared."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def counting(self, comparing: Comparing[T]) -> Comparing[T]:
        """Yields the pairs of `comparing`, and counts them."""
        try:
            pair = next(comparing)
            while True:
                self.pairs -= 1
                pair = comparing.send((yield pair))
        except StopIteration as end:
            return cast("T", end.value)


def polled(pairs: Iterable[tuple[int, int]]) -> Comparing[Votes]:
    """Compares pairs until the majority is clear. An unsure verdict counts as neither."""
    verdicts: list[Verdict] = []
    majority = 0
    for pair in islice(pairs, MOST_COMPARED):
        verdicts.append((yield pair))
        majority = verdicts.count(Verdict.SAME) - verdicts.count(Verdict.DIFFERENT)
        if abs(majority) >= AGREED:
            break
    is_contested = Verdict.SAME in verdicts and Verdict.DIFFERENT in verdicts
    return Votes(verdicts[0], 0 if is_contested and abs(majority) < AGREED else majority)


def concluded(comparing: Comparing[T], verdict: Callable[[int, int], Verdict]) -> T:
    """Runs the comparisons where verdicts are at hand, as in a replay, and returns their result."""
    try:
        pair = next(comparing)
        while True:
            pair = comparing.send(verdict(*pair))
    except StopIteration as end:
        return cast("T", end.value)
