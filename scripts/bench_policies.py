"""Measures the cache policies on streams of questions whose intents are known: hits, and how many of them are wrong.

    python -m scripts.bench_policies DATA [--seeds 20] [--questions 10000] [--noise once] [--max-size 1000]

DATA is a folder with banking77_train.csv, banking77_test.csv and clinc150_data_full.json. A hit is wrong if the cached
question has another intent. Embedder, guards, evidence, answer groups, policies and learning are the product's.
`--noise`: answers are compared with the errors of the comparator. `once`: independent for each pair of answers;
`repeated`: they repeat from pair to pair as on the labeled pairs (see scripts/noisy_verdicts.py).
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray

from api.guards.agreement import Features, disagreement, read
from api.ports.answer_quality import Confusion, Label, PolicyName, PolicyOutcome, PooledLabel, Verdict, Versions
from api.quality.assessment import assess
from api.quality.calibration import Model
from api.quality.comparator import MEASURED_WITH_MODEL
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
from scripts.noisy_verdicts import NoisyVerdicts

T = TypeVar("T")

STORED: Final = 300
"""Nearest questions that are computed for each question. The cached ones among them are its neighbors."""
VERSIONS: Final = Versions("bench", "", "truth")
QUESTION_MS: Final = 1000


class Noise(StrEnum):
    """Whether the comparator errs."""

    NONE = "none"
    ONCE = "once"
    REPEATED = "repeated"


@dataclass(frozen=True)
class Questions:
    """Questions, their intents as numbers, and the nearest other questions of each with their cosines."""

    texts: Sequence[str]
    intents: NDArray[np.int64]
    nearest: NDArray[np.int32]
    cosines: NDArray[np.float32]


@dataclass(frozen=True)
class Stream:
    """How a stream runs. `shadow`: the share of hits that is labeled. `learn_every`: questions between two rounds.

    From `fault_at` on, `fault` of all cached answers are wrong for a reason that no evidence shows.
    """

    policy: PolicyName
    length: int = 10_000
    threshold: float = 0.92
    target: float = 0.02
    shadow: float = 0.01
    noise: Noise = Noise.NONE
    max_size: int = 100_000
    learn_every: int = 250
    scopes: int = 1
    fault_at: int = 10**9
    fault: float = 0.0

    @property
    def confusion(self) -> Confusion:
        """What is known about the comparator."""
        return Confusion() if self.noise is Noise.NONE else MEASURED_WITH_MODEL.confusion


@dataclass
class Result:
    """What a stream served. `levels`: (question, level) at each change; `hits_at_tightening`: hits after the fault."""

    questions: int = 0
    hits: int = 0
    wrong: int = 0
    late_hits: int = 0
    late_wrong: int = 0
    explored: int = 0
    hits_at_tightening: int | None = None
    levels: list[tuple[int, int]] = field(default_factory=list)


class GuardMemo:
    """Guards' verdicts on pairs of questions."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._features: dict[int, Features] = {}
        self._verdicts: dict[tuple[int, int], str] = {}

    def of(self, one: int, other: int) -> str:
        """Returns the first guard that objects."""
        found = self._verdicts.get((one, other))
        if found is None:
            objection = disagreement(self._read(one), self._read(other))
            found = self._verdicts[one, other] = objection.guard if objection is not None else ""
        return found

    def _read(self, one: int) -> Features:
        if one not in self._features:
            self._features[one] = read(self._texts[one])
        return self._features[one]


class Simulation:
    """One stream through one cache."""

    def __init__(self, questions: Questions, stream: Stream, seed: int, guards: GuardMemo) -> None:
        self._questions = questions
        self._stream = stream
        self._random = np.random.default_rng(seed)
        self._guards = guards
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._is_cached = np.zeros((stream.scopes, len(questions.texts)), dtype=bool)
        self._group: dict[int, int] = {}
        self._labels: list[PooledLabel] = []
        self._changed: Counter[str] = Counter()
        self._published = Published()
        self._models: dict[str, Model] = {}
        self._hear = NoisyVerdicts(
            MEASURED_WITH_MODEL, list(map(int, questions.intents)), seed, repeated=stream.noise is Noise.REPEATED
        )
        self._settings = QualitySettings(stream.policy, stream.threshold, stream.target, VERSIONS, stream.confusion)
        self._places: dict[int, int] = {}
        """When each question is asked."""
        self.result = Result()

    def run(self) -> Result:
        """Asks all questions of the stream."""
        order = self._random.permutation(len(self._questions.texts))[: self._stream.length]
        self._places = {int(question): at for at, question in enumerate(order)}
        for at, question in enumerate(map(int, order)):
            self._ask(at, question, int(self._random.integers(self._stream.scopes)))
            if (at + 1) % self._stream.learn_every == 0:
                self._learn(at)
        self.result.questions = len(order)
        return self.result

    def _ask(self, at: int, question: int, scope: int) -> None:
        near, entries = self._near(question, scope)
        index = self._guard(question, near, entries)
        usable = {index} if index is not None else set[int]()
        decision = decide(near, usable, self._rules(str(scope)), float(self._random.random()))
        served = decision.outcome is PolicyOutcome.SERVED
        if served:
            assert decision.index is not None
            self._served(at, question, entries, near, decision.index, scope)
            return
        explored = decision.outcome is PolicyOutcome.EXPLORED
        self.result.explored += explored
        close = [entry for entry, one in zip(entries, near, strict=True) if one.similarity >= NEAR]
        groups = [str(self._group[entry]) for entry in close]
        found = self._compared(grouped(groups, is_stored=True), [*close, question], faulty=False)
        if index is not None and near[index].similarity >= NEAR:
            chance = decision.probability if explored else 1.0
            self._append(at, found.votes[near[index].group], near, index, scope, False, chance)
        self._store(question, close, found, scope)

    def _near(self, question: int, scope: int) -> tuple[list[NearEntry], list[int]]:
        nearest = self._questions.nearest[question]
        places = np.flatnonzero(self._is_cached[scope][nearest])[:NEIGHBOURS]
        entries = [int(nearest[place]) for place in places]
        cosines = [float(self._questions.cosines[question][place]) for place in places]
        return [NearEntry(near, str(self._group[one])) for near, one in zip(cosines, entries, strict=True)], entries

    def _guard(self, question: int, near: list[NearEntry], entries: Sequence[int]) -> int | None:
        for index, entry in enumerate(entries):
            if near[index].similarity < CANDIDATES_FROM:
                return None
            guard = self._guards.of(question, entry)
            near[index] = NearEntry(near[index].similarity, near[index].group, guard)
            if not guard:
                return index
        return None

    def _rules(self, scope: str) -> Rules:
        state = self._published.state
        threshold = state.threshold if state.epoch else self._stream.threshold
        model = self._models.get(scope, self._published.model)
        return Rules(self._stream.policy, threshold, state.level, model)

    def _served(
        self, at: int, question: int, entries: Sequence[int], near: list[NearEntry], index: int, scope: int
    ) -> None:
        entry = entries[index]
        faulty = at >= self._stream.fault_at and self._random.random() < self._stream.fault
        right = not faulty and self._are_same(question, entry)
        self._cached.move_to_end(entry)
        self.result.hits += 1
        self.result.wrong += not right
        if at >= self._stream.length // 2:
            self.result.late_hits += 1
            self.result.late_wrong += not right
        if self._random.random() < self._stream.shadow:
            alike = [
                other
                for other, one in zip(entries, near, strict=True)
                if other != entry and one.group == near[index].group and one.similarity >= NEAR
            ]
            comparing = polled([(FRESH, place) for place in range(1 + len(alike))])
            votes = self._compared(comparing, [entry, *alike, question], faulty=faulty)
            self._append(at, votes, near, index, scope, True, self._stream.shadow)

    def _append(
        self, at: int, votes: Votes, near: list[NearEntry], index: int, scope: int, served: bool, chance: float
    ) -> None:
        source: Any = "shadow" if served else "miss"
        label = Label(
            evidence_of(near, index), votes.first, source, served, "semantic", self._stream.policy, VERSIONS, chance,
            (at + 1) * QUESTION_MS, votes=votes.majority,
        )  # fmt: skip
        self._labels.append(PooledLabel(str(scope), str(scope), label))
        self._changed[str(scope)] += 1

    def _are_same(self, one: int, other: int) -> bool:
        return bool(self._questions.intents[one] == self._questions.intents[other])

    def _compared(self, comparing: Comparing[T], answers: Sequence[int], *, faulty: bool) -> T:
        """Compares the pairs that are asked for. `faulty`: the fresh answer, the last one, is unlike all others."""

        def verdict(one: int, other: int) -> Verdict:
            same = self._are_same(answers[one], answers[other]) and not (faulty and FRESH in (one, other))
            if self._stream.noise is Noise.NONE:
                return Verdict.SAME if same else Verdict.DIFFERENT
            return self._hear(answers[one], answers[other], same)

        return concluded(comparing, verdict)

    def _store(self, question: int, close: Sequence[int], found: Grouped, scope: int) -> None:
        """Stores an entry in its answer group, as the product does after a miss."""
        oldest = min([question, *map(int, found.joined)], key=self._places.__getitem__)
        self._group[question] = oldest
        for entry in close:
            if str(self._group[entry]) in found.joined:
                self._group[entry] = oldest
        self._cached[question] = None
        self._is_cached[scope][question] = True
        if len(self._cached) > self._stream.max_size:
            oldest, _ = self._cached.popitem(last=False)
            self._is_cached[:, oldest] = False

    def _learn(self, at: int) -> None:
        now_ms = (at + 1) * QUESTION_MS
        found = assess(self._labels[-20_000:], self._changed, self._published, self._settings, now_ms, {})
        self._changed.clear()
        for event in found.events:
            if event.change in ("tightened", "loosened"):
                self.result.levels.append((at, event.level))
        if found.published.state.level and at >= self._stream.fault_at and self.result.hits_at_tightening is None:
            self.result.hits_at_tightening = self.result.hits
        state = found.published.state
        self._published = replace(found.published, state=replace(state, epoch=at + 1))
        self._models.update((scope, one.model) for scope, one in found.scopes.items())


# -- data --------------------------------------------------------------------------------------------------------------


def banking77(folder: Path) -> list[tuple[str, str]]:
    """Returns the questions and intents of banking77."""
    rows: list[tuple[str, str]] = []
    for part in ("train", "test"):
        with (folder / f"banking77_{part}.csv").open(encoding="utf-8", newline="") as lines:
            rows += [(row[0], row[1]) for row in list(csv.reader(lines))[1:]]
    return rows


def clinc150(folder: Path) -> list[tuple[str, str]]:
    """Returns the questions and intents of clinc150. A question out of scope has an intent that no other has."""
    said = json.loads((folder / "clinc150_data_full.json").read_text("utf-8"))
    known = [(text, intent) for part in ("train", "val", "test") for text, intent in said[part]]
    return known + [(text, f"unknown {number}") for number, (text, _) in enumerate(said["oos_test"])]


def prepared(pairs: Sequence[tuple[str, str]]) -> Questions:
    """Embeds the questions and finds the nearest ones of each; keeps the result in the folder for temporary files."""
    from api.embedders.minilm import MiniLM, model_files

    model = MiniLM(model_files(None))
    texts = [text for text, _ in pairs]
    _, intents = np.unique([intent for _, intent in pairs], return_inverse=True)
    made_of = sha256(f"{model.digest} {pairs}".encode()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"bench-policies-{made_of}.npz"
    if not kept.exists():
        vectors = np.frombuffer(b"".join(model.encode(texts)), "<f4").reshape(len(texts), -1)
        nearest, cosines = _neighbors(vectors)
        np.savez(kept, nearest=nearest, cosines=cosines)
    with np.load(kept) as found:
        return Questions(texts, intents, found["nearest"], found["cosines"])


def _neighbors(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    most = min(STORED, len(vectors) - 1)
    nearest, cosines = [], []
    for start in range(0, len(vectors), 500):
        similar = vectors[start : start + 500] @ vectors.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -2
        order = np.argsort(-similar, axis=1)[:, :most]
        nearest.append(order.astype(np.int32))
        cosines.append(np.take_along_axis(similar, order, 1))
    return np.concatenate(nearest), np.concatenate(cosines)


# -- command -----------------------------------------------------------------------------------------------------------


def runs(questions: Questions, stream: Stream, seeds: Sequence[int]) -> list[Result]:
    """Runs a stream with each seed."""
    guards = GuardMemo(questions.texts)
    return [Simulation(questions, stream, seed, guards).run() for seed in seeds]


def line(name: str, stream: Stream, results: Sequence[Result]) -> str:
    """Returns a row of the table."""
    hits, wrong = sum(one.hits for one in results), sum(one.wrong for one in results)
    late, late_wrong = sum(one.late_hits for one in results), sum(one.late_wrong for one in results)
    asked = sum(one.questions for one in results)
    over = sum(one.wrong > stream.target * one.hits for one in results)
    return (
        f"| {name} | {stream.policy} | {hits / asked:.1%} | {wrong / max(hits, 1):.2%} | {over} of {len(results)} | "
        f"{2 * late / asked:.1%} | {late_wrong / max(late, 1):.2%} | {sum(r.explored for r in results) / asked:.1%} |"
    )


def main(
    data: Path,
    seeds: int = 20,
    questions: int = 10_000,
    shadow: float = 0.01,
    target: float = 0.02,
    noise: Noise = Noise.NONE,
    max_size: int = 100_000,
    scopes: int = 1,
    policy: Annotated[list[PolicyName] | None, typer.Option()] = None,
) -> None:
    """Prints the table."""
    print("| data | policy | hits | wrong of hits | over target | hits, 2nd half | wrong, 2nd half | explored |")
    print("|---|---|---|---|---|---|---|---|")
    for name, read_data in (("banking77", banking77), ("clinc150", clinc150)):
        found = prepared(read_data(data))
        for one in policy or [PolicyName.GUARDED, PolicyName.VERIFIED]:
            stream = Stream(one, questions, 0.92, target, shadow, noise, max_size, scopes=scopes)
            parts = [list(range(seeds))[start::2] for start in range(2)]
            with ProcessPoolExecutor(2) as pool:
                results = [result for part in pool.map(runs, [found] * 2, [stream] * 2, parts) for result in part]
            print(line(name, stream, results), flush=True)


if __name__ == "__main__":
    typer.run(main)
