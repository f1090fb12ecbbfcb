"""Replays questions under cache policies: each is asked in turn, and what misses is cached.

Pure: vectors, guards and truth are passed in. Questions are named by their place in the data.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np

from api.ports.answer_quality import (
    Confusion,
    Label,
    PolicyDecision,
    PolicyName,
    PolicyOutcome,
    PooledLabel,
    Verdict,
    Versions,
)
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry
from api.quality.answer_facts import AnswerText
from api.quality.assessment import assess
from api.quality.calibration import Prior
from api.quality.comparator import Comparator
from api.quality.evidence import (
    FRESH,
    NEAR,
    NEIGHBOURS,
    Comparing,
    Grouped,
    NearEntry,
    Votes,
    concluded,
    evidence_of,
    grouped,
    polled,
)
from api.quality.policies import CANDIDATES_FROM, Published, QualitySettings, Rules, decide

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Progress = Callable[[int, int], None]
"""Called with the questions done and their number."""

T = TypeVar("T")

MISS: Final = -1
RIGHT, WRONG, UNKNOWN = 1, 0, -1
BLOCK: Final = 256
"""Questions compared with all earlier ones in one matrix product."""
SHADOW_RATE: Final = 0.01
"""The default of SEMANTIC_CACHE_SHADOW_RATE."""
LEARN_EVERY: Final = 250
"""Questions between two rounds of the keeper."""
QUESTION_MS: Final = 1000
"""Time between two questions."""
MOST_LABELS: Final = 20_000
SCOPE: Final = "replay"


class Near(NamedTuple):
    """A cached question near the asked one."""

    place: int
    similarity: float


Judge = Callable[[int, Near], str]
Score = Callable[[int, int], float]
"""The verifier's logit for an asked and a cached question."""
Compare = Callable[[Near], bool | None]
"""Whether a candidate's answer is right for the asked question. None if nobody knows."""
Hear = Callable[[int, int, bool], Verdict]
"""The verdict of a comparator with errors on the answers to two questions, and whether they are the same in truth."""


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

    def __init__(self, questions: Sequence[str], answers: Sequence[str], embedder: Embedder) -> None:
        self._questions = questions
        self._answers = answers
        self._comparator = Comparator(embedder, Telemetry())
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


# -- Policies ----------------------------------------------------------------------------------------------------------

GUARDED_NEIGHBORS: Final = 5
"""Entries that a look-up finds under the policies `fixed` and `guarded`."""


class Fixed:
    """Serves the nearest question from the threshold up, without guards."""

    name: str = PolicyName.FIXED
    verifier = False
    neighbours = GUARDED_NEIGHBORS

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.floor = threshold
        self._rules = Rules(PolicyName(self.name), threshold)

    def decide(self, offer: Offer) -> Near | None:
        entries = [NearEntry(near.similarity, "", self._guard(offer, near)) for near in self._judged(offer)]
        decision = decide(entries, range(len(entries)), self._rules)
        return None if decision.index is None else offer.near[decision.index]

    def score(self, offer: Offer) -> tuple[Near, float] | None:
        for near in offer.near:
            if not self._guard(offer, near):
                return near, near.similarity
        return None

    def _judged(self, offer: Offer) -> Iterator[Near]:
        """Yields the candidates up to the one that decides, because guards are slow."""
        for near in offer.near:
            yield near
            if near.similarity < self.threshold or not self._guard(offer, near):
                return

    def _guard(self, offer: Offer, near: Near) -> str:
        return ""

    def missed(self, offer: Offer, same: Compare) -> None:
        """Learns nothing."""

    def served(self, offer: Offer, chosen: Near, same: Compare) -> None:
        """Learns nothing."""


class Guarded(Fixed):
    """Serves the nearest question from the threshold up that all guards accept."""

    name: str = PolicyName.GUARDED

    def _guard(self, offer: Offer, near: Near) -> str:
        return offer.objection(near)


class Verified:
    """The policy `verified` and how it learns: answer groups, labels of misses and shadow calls, the keeper's rounds.

    Labels say what is true; with `hear` they say what a comparator with errors would have said.
    """

    name: str = PolicyName.VERIFIED
    neighbours = NEIGHBOURS
    floor = CANDIDATES_FROM

    def __init__(
        self,
        target: float,
        threshold: float,
        seed: int,
        *,
        verifier: bool = False,
        hear: Hear | None = None,
        confusion: Confusion = Confusion(),  # noqa: B008 - frozen
        prior: Prior | None = None,
    ) -> None:
        """`threshold`: the cosine until enough is learned. `verifier`: use its logits, too. `prior`: its prior.

        `confusion`: what is known about the comparator's errors.
        """
        self.threshold = target
        self.verifier = verifier
        self._hear = hear
        self._confusion = confusion
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._prior = prior if verifier else None
        versions = Versions("replay", "replay" if verifier else "", "truth")
        if self._prior is not None:
            versions = replace(versions, embedder=self._prior.embedder, verifier=self._prior.verifier)
        self._settings = QualitySettings(PolicyName.VERIFIED, threshold, target, versions, confusion, self._prior)
        self._published = Published()
        self._model = self._prior.model(target) if self._prior is not None else None
        self._labels: list[PooledLabel] = []
        self._new: Counter[str] = Counter()
        self._groups: dict[int, int] = {}
        self._time = 0
        self._found: tuple[list[NearEntry], int | None, PolicyDecision] | None = None

    def decide(self, offer: Offer) -> Near | None:
        entries, index = self._entries(offer)
        usable = {index} if index is not None else set[int]()
        decision = decide(entries, usable, self._rules(), float(self._random.random()))
        self._found = entries, index, decision
        return (
            offer.near[decision.index]
            if decision.outcome is PolicyOutcome.SERVED and decision.index is not None
            else None
        )

    def score(self, offer: Offer) -> tuple[Near, float] | None:
        """Returns None: no threshold could follow a curve."""

    def missed(self, offer: Offer, same: Compare) -> None:
        entries, index, decision = self._found or ([], None, None)
        close = [near for near in offer.near if near.similarity >= NEAR]
        groups = [self._group(near) for near in close]
        found = self._compared(grouped(groups, is_stored=True), offer.asked, close, same)
        if index is not None and decision is not None and entries[index].similarity >= NEAR:
            explored = decision.outcome is PolicyOutcome.EXPLORED
            chance = decision.probability if explored else 1.0
            self._label(found.votes[entries[index].group], entries, index, served=False, chance=chance)
        self._join(offer.asked, close, found)
        self._tick()

    def served(self, offer: Offer, chosen: Near, same: Compare) -> None:
        entries, index, _ = self._found or ([], None, None)
        if index is not None and self._random.random() < SHADOW_RATE:
            group = self._group(chosen)
            alike = [
                one for one in offer.near if one.similarity >= NEAR and one != chosen and self._group(one) == group
            ]
            comparing = polled([(FRESH, place) for place in range(1 + len(alike))])
            votes = self._compared(comparing, offer.asked, [chosen, *alike], same)
            self._label(votes, entries, index, served=True, chance=SHADOW_RATE)
        self._tick()

    @property
    def knows(self) -> bool:
        """Whether it serves before it has labels."""
        return self._prior is not None

    def fresh(self) -> Verified:
        """Returns the same policy before it has learned anything."""
        target, threshold = self._settings.target, self._settings.threshold
        return Verified(
            target,
            threshold,
            self._seed,
            verifier=self.verifier,
            hear=self._hear,
            confusion=self._confusion,
            prior=self._prior,
        )

    def study(self, offer: Offer, same: bool) -> None:
        """Learns from a pair of questions that nobody is served from."""
        entries, index = self._entries(offer)
        if index is not None and entries[index].similarity >= NEAR:
            verdict = Verdict.SAME if same else Verdict.DIFFERENT
            self._label(Votes(verdict, 1 if same else -1), entries, index, served=False, chance=1.0)

    def _entries(self, offer: Offer) -> tuple[list[NearEntry], int | None]:
        """Returns the entries, and the index of the nearest that no guard rejects. Later ones are not judged."""
        groups = [self._group(near) for near in offer.near]
        entries = [NearEntry(near.similarity, group) for near, group in zip(offer.near, groups, strict=True)]
        for index, near in enumerate(offer.near):
            guard = offer.objection(near)
            logit = offer.logit(near) if self.verifier and not guard else None
            entries[index] = NearEntry(near.similarity, groups[index], guard, logit)
            if not guard:
                return entries, index
        return entries, None

    def _rules(self) -> Rules:
        state = self._published.state
        threshold = state.threshold if state.epoch else self._settings.threshold
        return Rules(PolicyName.VERIFIED, threshold, state.level, self._model, scored=self.verifier)

    def _label(self, votes: Votes, entries: Sequence[NearEntry], index: int, *, served: bool, chance: float) -> None:
        label = Label(
            evidence_of(entries, index),
            votes.first,
            "shadow" if served else "miss",
            served,
            "semantic",
            PolicyName.VERIFIED,
            self._settings.versions,
            chance,
            (self._time + 1) * QUESTION_MS,
            votes=votes.majority,
        )
        self._labels.append(PooledLabel(SCOPE, SCOPE, label))
        self._new[SCOPE] += 1

    def _compared(self, comparing: Comparing[T], asked: int, close: Sequence[Near], same: Compare) -> T:
        """Compares the pairs that are asked for. Two cached answers are the same if both are that of the question."""
        places = [*(near.place for near in close), asked]
        truths = [*map(same, close), True]

        def verdict(one: int, other: int) -> Verdict:
            same = truths[one], truths[other]
            if None in same:
                return Verdict.UNSURE
            if self._hear is not None:
                return self._hear(places[one], places[other], all(same))
            return Verdict.SAME if all(same) else Verdict.DIFFERENT

        return concluded(comparing, verdict)

    def _group(self, near: Near) -> str:
        return str(self._groups.get(near.place, near.place))

    def _join(self, asked: int, close: Sequence[Near], found: Grouped) -> None:
        """Adds the new entry to a group, as the service does."""
        oldest = min([asked, *map(int, found.joined)])
        self._groups[asked] = oldest
        for near in close:
            if self._group(near) in found.joined:
                self._groups[near.place] = oldest

    def _tick(self) -> None:
        self._found = None
        self._time += 1
        if self._time % LEARN_EVERY == 0:
            self.learn()

    def learn(self) -> None:
        """Runs a round of the keeper."""
        labels, now = self._labels[-MOST_LABELS:], self._time * QUESTION_MS
        found = assess(labels, self._new, self._published, self._settings, now, {})
        self._new.clear()
        state = replace(found.published.state, epoch=self._time)
        self._published = replace(found.published, state=state)
        own = found.scopes.get(SCOPE)
        self._model = own.model if own is not None else found.published.model
