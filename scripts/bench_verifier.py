"""Measures a verifier on fow-cache and on streams of questions, and makes the pairs of a stream's first half.

    .venv/bin/python -m scripts.bench_verifier fow MODEL DATA
    .venv/bin/python -m scripts.bench_verifier stream MODEL DATA --name banking77
    .venv/bin/python -m scripts.bench_verifier pairs DATA OUT --name banking77
    .venv/bin/python -m scripts.bench_verifier prior MODEL DATA

DATA holds banking77_train.csv, banking77_test.csv and clinc150_data_full.json. MODEL is a verifier's folder.

A stream starts with an empty cache. The answer comes from the candidate with the highest logit, among the 5 nearest
cached questions above the cosine floor on which the guards agree. A miss is cached. A hit of another intent is wrong.
The same intent does not always mean the same answer, so the true error is higher than these labels show.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import typer

from api.embedders.minilm import MiniLM, model_files
from api.embedders.verifier import PRIOR
from api.guards.agreement import Features, disagreement, read
from api.ports.answer_quality import Evidence
from api.quality.calibration import read_prior
from api.quality.evidence import NearEntry, evidence_of
from api.quality.policies import CANDIDATES_FROM
from training.base import embed_with
from training.dataset import collect
from training.grammar import grammar_pairs
from training.model_folder import read_info
from training.pairs import Pair
from training.scoring import Scorer
from training.sources import Question, banking77, clinc150, split_intents

NEIGHBOURS: Final = 5
LENGTH: Final = 10_000
SEED: Final = 5
FLOOR: Final = 0.65
THRESHOLDS: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of the calibrated probability that the answer is right."""
COSINES: Final = (0.80, 0.85, 0.88, 0.92)
FOW_FLOORS: Final = (0.60, 0.70)
OTHER_PAIRS: Final = 2_000
BUDGETS: Final = (0.01, 0.03, 0.05)
TARGETS: Final = (0.01, 0.02, 0.03, 0.05)

Model = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the verifier.")]
Data = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the data sets.")]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Candidate(NamedTuple):
    """An earlier question that is near a later one."""

    place: int
    cosine: float


@dataclass
class Stream:
    """Questions in the order they are asked, with what does not depend on the policy."""

    name: str
    questions: Sequence[Question]
    trained_on: frozenset[str]
    """The intents that the base model has seen."""

    @cached_property
    def vectors(self) -> Any:
        return embed_with(MiniLM(model_files(None)))([one.text for one in self.questions])

    @cached_property
    def features(self) -> list[Features]:
        return [read(one.text) for one in self.questions]

    def candidates(self, cached: Any, place: int, floor: float) -> list[Candidate]:
        """Returns the nearest cached questions, nearest first."""
        cosines = self.vectors[cached] @ self.vectors[place]
        nearest = np.argsort(-cosines)[:NEIGHBOURS]
        return [Candidate(int(cached[i]), float(cosines[i])) for i in nearest if cosines[i] >= floor]

    def agrees(self, candidate: Candidate, place: int) -> bool:
        return disagreement(self.features[candidate.place], self.features[place]) is None


@dataclass
class Scores:
    """Probabilities of a verifier. Each pair of questions is scored once."""

    scorer: Scorer
    calibration: dict[str, float]
    known: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Path) -> Scores:
        return cls(Scorer(model), read_info(model)["calibration"])

    def of_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        logits = self.scorer.logits([Pair(first, second, True) for first, second in new])
        found = 0.5 * (1 + np.tanh((self.calibration["a"] * logits + self.calibration["b"]) / 2))
        self.known.update(zip(new, found.tolist(), strict=True))
        return [self.known[pair] for pair in pairs]


def load_stream(name: str, data: Path, length: int = LENGTH) -> Stream:
    """Returns a random sample of all of a data set's questions with an intent."""
    parts = ("train", "test") if name == "banking77" else ("train", "val", "test")
    reader = banking77 if name == "banking77" else clinc150
    questions = list(dict.fromkeys(question for part in parts for question in reader(data, part)))
    trained_on = split_intents(reader(data, "train")).train
    Random(SEED).shuffle(questions)
    return Stream(name, questions[:length], trained_on)


def play(stream: Stream, floor: float, threshold: float, scores: Scores | None) -> Counter[str]:
    """Plays the stream and counts questions, hits and wrong hits: all, of the second half, and of untrained intents.

    Without `scores` the nearest candidate that the guards let pass is served if its cosine reaches the threshold.
    """
    counts: Counter[str] = Counter()
    cached = np.empty(0, np.int64)
    for place, question in enumerate(stream.questions):
        near = [one for one in stream.candidates(cached, place, floor) if stream.agrees(one, place)]
        served = _chosen(stream, near, place, threshold, scores)
        groups = ["all"]
        if place >= len(stream.questions) // 2:
            groups += ["second half"]
            groups += ["second half, new to the base model"] if question.intent not in stream.trained_on else []
        for group in groups:
            counts[f"{group}: questions"] += 1
            if served is not None:
                counts[f"{group}: hits"] += 1
                counts[f"{group}: wrong"] += stream.questions[served].intent != question.intent
        if served is None:
            cached = np.append(cached, place)
    return counts


def _chosen(stream: Stream, near: list[Candidate], place: int, threshold: float, scores: Scores | None) -> int | None:
    if not near:
        return None
    if scores is None:
        return near[0].place if near[0].cosine >= threshold else None
    asked = stream.questions[place].text
    found = scores.of_pairs([(stream.questions[one.place].text, asked) for one in near])
    best = int(np.argmax(found))
    return near[best].place if found[best] >= threshold else None


def first_half_pairs(stream: Stream, floor: float = FLOOR) -> list[dict[str, object]]:
    """Returns the pairs that the first half's misses would label: each question with the near ones asked before it."""
    half = len(stream.questions) // 2
    rows: list[dict[str, object]] = []
    for place in range(1, half):
        for one in stream.candidates(np.arange(place), place, floor):
            earlier, later = stream.questions[one.place], stream.questions[place]
            rows.append({"a": earlier.text, "b": later.text, "same": earlier.intent == later.intent})
    return rows


@app.command()
def pairs(data: Data, out: Path, name: str = "banking77", length: int = LENGTH) -> None:
    """Write the pairs of a stream's first half, for `ragherd train-verifier --pairs`."""
    rows = first_half_pairs(load_stream(name, data, length))
    out.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    typer.echo(f"{out}: {len(rows):,} pairs, {sum(bool(row['same']) for row in rows):,} with one answer")


@app.command()
def stream(model: Model, data: Data, name: str = "banking77", length: int = LENGTH, cosine: bool = True) -> None:
    """Play a stream at several thresholds."""
    played = load_stream(name, data, length)
    typer.echo("| stream | policy | part | hits % | wrong % of hits |\n|---|---|---|---|---|")
    for threshold in COSINES if cosine else ():
        _print(name, f"cosine {threshold}", play(played, threshold, threshold, None))
    scores = Scores.of(model)
    for threshold in THRESHOLDS:
        _print(name, f"verifier {threshold}", play(played, FLOOR, threshold, scores))


@app.command()
def prior(model: Model, data: Data, length: int = 2_500) -> None:
    """Count what `verified` would serve with its prior alone, of questions whose intents are new to the base model.

    Each question meets the nearest earlier one that the guards let pass.
    """
    known = read_prior((model / PRIOR).read_bytes())
    typer.echo("| questions | target % | hits % | wrong of hits | % |\n|---|---|---|---|---|")
    for name in ("banking77", "clinc150"):
        played = load_stream(name, data)
        new = [one for one in played.questions if one.intent not in played.trained_on][:length]
        wrong, evidence = _first_allowed(Stream(name, new, played.trained_on), Scorer(model))
        for target in TARGETS:
            rules = known.model(target)
            assert rules is not None, "the prior has enough pairs"
            served = np.array([rules.risk(one) <= rules.level for one in evidence], dtype=bool)
            count, errors = int(served.sum()), int(wrong[served].sum())
            share = f"{100 * errors / count:.1f}" if count else "-"
            typer.echo(f"| {name} | {100 * target:g} | {100 * count / len(new):.1f} | {errors} of {count} | {share} |")


def _first_allowed(stream: Stream, scorer: Scorer) -> tuple[Any, list[Evidence]]:
    """Returns for each question that has a candidate whether it is wrong, and what the policy knows about it."""
    pairs, cosines = list[Pair](), list[float]()
    for place, question in enumerate(stream.questions):
        near = stream.candidates(np.arange(place), place, CANDIDATES_FROM)
        first = next((one for one in near if stream.agrees(one, place)), None)
        if first is not None:
            cached = stream.questions[first.place]
            pairs.append(Pair(cached.text, question.text, cached.intent == question.intent))
            cosines.append(first.cosine)
    logits = scorer.logits(pairs)
    alone = [NearEntry(cosine, "", verifier=float(logit)) for cosine, logit in zip(cosines, logits, strict=True)]
    return np.array([not pair.same for pair in pairs]), [evidence_of([one], 0) for one in alone]


def _print(name: str, policy: str, counts: Counter[str]) -> None:
    for part in ("all", "second half", "second half, new to the base model"):
        asked, hits, wrong = (counts[f"{part}: {what}"] for what in ("questions", "hits", "wrong"))
        share = f"{100 * wrong / hits:.1f}" if hits else "-"
        typer.echo(f"| {name} | {policy} | {part} | {100 * hits / max(asked, 1):.1f} | {share} |")


@app.command()
def fow(model: Model, data: Data) -> None:
    """Measure on fow-cache's 600 pairs. Other data chooses the thresholds: untrained intents and fresh grammar."""
    found = Evaluated.of(_fow_pairs(), model)
    held_out = collect(data, embed_with(MiniLM(model_files(None))), share=0.01).calibration
    others = Evaluated.of(Random(SEED).sample(held_out, OTHER_PAIRS) + grammar_pairs(OTHER_PAIRS, seed=99), model)
    typer.echo("| floor | thresholds chosen on | budget | should-hit % | traps % |\n|---|---|---|---|---|")
    for floor in FOW_FLOORS:
        for budget in BUDGETS:
            threshold = others.threshold(floor, budget)
            typer.echo(f"| {floor} | other data: {threshold:.2f} | {budget:.0%} | {found.served(floor, threshold)} |")
        for budget in BUDGETS:
            typer.echo(f"| {floor} | the other half of fow-cache | {budget:.0%} | {found.halves(floor, budget)} |")
    for cosine in (0.85, 0.92):
        typer.echo(f"| {cosine} | - | guards only | {found.served(cosine, -np.inf)} |")


@dataclass
class Evaluated:
    """Labeled pairs with all that a policy looks at."""

    same: Any
    cosines: Any
    agree: Any
    logits: Any

    @classmethod
    def of(cls, pairs: Sequence[Pair], model: Path) -> Evaluated:
        embed = embed_with(MiniLM(model_files(None)))
        first, second = (embed([getattr(pair, side) for pair in pairs]) for side in ("first", "second"))
        agree = np.array([disagreement(read(pair.first), read(pair.second)) is None for pair in pairs])
        same = np.array([pair.same for pair in pairs])
        return cls(same, (first * second).sum(1), agree, Scorer(model).logits(pairs))

    def _scores(self, floor: float) -> Any:
        return np.where(self.agree & (self.cosines >= floor), self.logits, -np.inf)

    def threshold(self, floor: float, budget: float, part: Any = slice(None)) -> float:
        """Returns the lowest logit at which at most `budget` of the pairs with different answers are served."""
        scores, same = self._scores(floor)[part], self.same[part]
        wrong = np.sort(scores[~same])[::-1]
        allowed = int(budget * len(wrong))
        return float(np.nextafter(wrong[allowed], np.inf)) if np.isfinite(wrong[allowed]) else float(scores[same].min())

    def served(self, floor: float, threshold: float) -> str:
        """Returns the shares of right and of wrong pairs that are served, in percent."""
        hits = (self._scores(floor) >= threshold) & np.isfinite(self._scores(floor))
        return f"{100 * hits[self.same].mean():.1f} | {100 * hits[~self.same].mean():.1f}"

    def halves(self, floor: float, budget: float, splits: int = 40) -> str:
        """Returns the mean shares over random halves, of which one chooses the threshold for the other."""
        found = []
        for seed in range(splits):
            chosen = np.random.default_rng(seed).permutation(len(self.same)) < len(self.same) // 2
            scores = self._scores(floor)[~chosen]
            hits = (scores >= self.threshold(floor, budget, chosen)) & np.isfinite(scores)
            found.append([hits[self.same[~chosen]].mean(), hits[~self.same[~chosen]].mean()])
        right, wrong = np.mean(found, axis=0)
        return f"{100 * right:.1f} | {100 * wrong:.1f}"


def _fow_pairs() -> list[Pair]:
    from fow_cache.data import load_questions

    return [Pair(row["a"], row["b"], bool(row["same_answer"]), row["category"]) for row in load_questions()]


if __name__ == "__main__":
    app()
