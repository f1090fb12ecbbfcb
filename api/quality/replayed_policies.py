"""The service's cache policies for a replay: `fixed`, `guarded`, and `verified` with all that it learns on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

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
from api.quality.assessment import assess
from api.quality.calibration import Prior
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
from api.quality.replay import Compare, Near, Offer

T = TypeVar("T")

Hear = Callable[[int, int, bool], Verdict]
"""The verdict of a comparator with errors on the answers to two questions, and whether they are the same in truth."""

SHADOW_RATE: Final = 0.01
"""The default of SEMANTIC_CACHE_SHADOW_RATE."""
LEARN_EVERY: Final = 250
"""Questions between two rounds of the keeper."""
QUESTION_MS: Final = 1000
"""Time between two questions."""
MOST_LABELS: Final = 20_000
SCOPE: Final = "replay"
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
