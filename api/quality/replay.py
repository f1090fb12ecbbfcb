"""Replays questions under cache policies: each is asked in turn, and what misses is cached.

Pure: policies, vectors, guards and truth are passed in. Questions are named by their place in the data.
`replayed_policies.py` has the service's policies.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from api.ports.answer_quality import Verdict
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry
from api.quality.answer_facts import AnswerText
from api.quality.comparator import AnswerScores, Comparator

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Progress = Callable[[int, int], None]
"""Called with the questions done and their number."""

MISS: Final = -1
RIGHT, WRONG, UNKNOWN = 1, 0, -1
BLOCK: Final = 256
"""Questions compared with all earlier ones in one matrix product."""


class Near(NamedTuple):
    """A cached question near the asked one."""

    place: int
    similarity: float


Judge = Callable[[int, Near], str]
Score = Callable[[int, int], float]
"""The verifier's logit for an asked and a cached question."""
Compare = Callable[[Near], bool | None]
"""Whether a candidate's answer is right for the asked question. None if nobody knows."""


@dataclass(slots=True)
class Offer:
    """What the cache finds for a question: the nearest cached questions, nearest first.

    `judge` returns the objection of the guards to a candidate, or an empty string; `score` its logit. Both are slow and
    called at most once per pair, so policies share `objections` and `logits`.
    """

    asked: int
    near: Sequence[Near]
    judge: Judge
    score: Score | None = None
    objections: dict[int, str] = field(default_factory=dict)
    logits: dict[int, float] = field(default_factory=dict)

    def objection(self, candidate: Near) -> str:
        """Returns why the guards reject a candidate; empty if they accept it."""
        if candidate.place not in self.objections:
            self.objections[candidate.place] = self.judge(self.asked, candidate)
        return self.objections[candidate.place]

    def logit(self, candidate: Near) -> float | None:
        """Returns the verifier's logit of a candidate; None without a verifier."""
        if self.score is not None and candidate.place not in self.logits:
            self.logits[candidate.place] = self.score(self.asked, candidate.place)
        return self.logits.get(candidate.place)


class Policy(Protocol):
    """Decides which candidate to serve. One object per replay, because it may learn."""

    name: str
    threshold: float
    """What the policy is set to: a cosine, or for a policy that learns the error rate that it aims at."""
    verifier: bool
    floor: float
    """The lowest cosine of a candidate."""
    neighbours: int
    """The most candidates that it looks at."""

    def decide(self, offer: Offer) -> Near | None:
        """Returns the candidate to serve, or None."""

    def score(self, offer: Offer) -> tuple[Near, float] | None:
        """Returns the candidate that a lower threshold would serve, and the threshold at which it is served."""

    def missed(self, offer: Offer, same: Compare) -> None:
        """Learns from a miss: its fresh answer can be compared with those of the candidates."""

    def served(self, offer: Offer, chosen: Near, same: Compare) -> None:
        """Learns from a hit, if the policy samples it for a shadow call."""


@dataclass(slots=True)
class Run:
    """The course of one policy. `served`: the place of the cached question for each asked one, or `MISS`.

    `exact`: served because both are equal after normalization.
    """

    policy: Policy
    served: Ints
    exact: Flags
    cached: Flags
    keys: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Questions in the order in which they are asked. `vectors`: one unit vector per question.

    `keys`: the normalized questions. `comparable`: whether a question may be compared by its vector.
    """

    vectors: Floats
    keys: Sequence[str]
    comparable: Sequence[bool]

    def __len__(self) -> int:
        return len(self.keys)


Truth = Callable[[int, int], bool | None]
"""Whether the answer to the second question is right for the first. None if nobody knows."""


def replay(
    stream: Stream,
    policies: Sequence[Policy],
    judge: Judge,
    truth: Truth,
    progress: Progress,
    score: Score | None = None,
) -> list[Run]:
    """Asks every question under all policies at once, each with a separate cache that starts empty.

    A miss is answered and cached. The nearest neighbors are exact.
    """
    count = len(stream)
    runs = [
        Run(policy, np.full(count, MISS, np.int64), np.zeros(count, bool), np.zeros(count, bool)) for policy in policies
    ]
    floor = min(policy.floor for policy in policies)
    for asked, near in _earlier(stream.vectors, floor, progress):
        shared = Offer(asked, (), judge, score)
        for run in runs:
            if (equal := run.keys.get(stream.keys[asked])) is not None:
                run.served[asked], run.exact[asked] = equal, True
                continue
            found = _cached(run, near) if stream.comparable[asked] else ()
            _answer(run, replace(shared, near=found), truth)
            if run.served[asked] == MISS:
                run.keys[stream.keys[asked]] = asked
                run.cached[asked] = stream.comparable[asked]
    return runs


def _answer(run: Run, offer: Offer, truth: Truth) -> None:
    def same(candidate: Near) -> bool | None:
        return truth(offer.asked, candidate.place)

    chosen = run.policy.decide(offer) if offer.near else None
    if chosen is None:
        run.policy.missed(offer, same)
    else:
        run.served[offer.asked] = chosen.place
        run.policy.served(offer, chosen, same)


def _cached(run: Run, near: tuple[Ints, Floats]) -> list[Near]:
    places, similarities = near
    chosen = np.flatnonzero(run.cached[places])[: run.policy.neighbours]
    found = [Near(int(places[one]), float(similarities[one])) for one in chosen]
    return [one for one in found if one.similarity >= run.policy.floor]


def _earlier(vectors: Floats, floor: float, progress: Progress) -> Iterator[tuple[int, tuple[Ints, Floats]]]:
    """Yields each question with all earlier ones from `floor` up, nearest first."""
    count = len(vectors)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        similarities = vectors[start:end] @ vectors[:end].T
        for asked in range(start, end):
            row = similarities[asked - start, :asked]
            places = np.flatnonzero(row >= floor)
            places = places[np.argsort(-row[places], kind="stable")]
            yield asked, (places, row[places])
        progress(end, count)


def best_scores(stream: Stream, policy: Policy, judge: Judge, truth: Truth) -> tuple[Floats, Ints]:
    """Returns each question's score if every earlier question were cached, and whether the candidate is right.

    The score is minus infinity where there is no candidate. This is the curve that `p_chr_auc` needs: a cache that
    grows under a threshold would give another curve for each threshold.
    """
    scores, right = np.full(len(stream), -math.inf), np.full(len(stream), UNKNOWN)
    seen: set[str] = set()
    for asked, (places, similarities) in _earlier(stream.vectors, policy.floor, lambda done, total: None):
        is_repeated = stream.keys[asked] in seen
        seen.add(stream.keys[asked])
        if is_repeated or not stream.comparable[asked]:
            continue
        near = [
            Near(int(place), float(one)) for place, one in zip(places[: policy.neighbours], similarities, strict=False)
        ]
        found = policy.score(Offer(asked, near, judge)) if near else None
        if found is not None:
            known = truth(asked, found[0].place)
            scores[asked], right[asked] = found[1], UNKNOWN if known is None else int(known)
    return scores, right


class AnswersAgree:
    """A truth for a log: compares the answers of two questions as the service does. Unsure verdicts are None."""

    def __init__(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        embedder: Embedder,
        model: AnswerScores | None = None,
    ) -> None:
        self._questions = questions
        self._answers = answers
        self._comparator = Comparator(embedder, Telemetry(), model=model)
        self._known: dict[tuple[int, int], bool | None] = {}

    def __call__(self, asked: int, stored: int) -> bool | None:
        if (asked, stored) not in self._known:
            self._known[asked, stored] = self._compared(asked, stored)
        return self._known[asked, stored]

    def _compared(self, asked: int, stored: int) -> bool | None:
        one, other = (AnswerText(self._questions[asked], self._answers[at]) for at in (asked, stored))
        if not (one.text and other.text):
            return None
        verdict = asyncio.run(self._comparator.compare(one, other)).verdict
        return None if verdict is Verdict.UNSURE else verdict is Verdict.SAME
