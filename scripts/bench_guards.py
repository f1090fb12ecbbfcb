"""Measures how many wrong hits the guards of the semantic cache prevent, and their cost.

    .venv/bin/python -m scripts.bench_guards [DIR [--train] [-v]]

A stream of labeled questions starts with an empty cache and runs with and without guards. The answer comes from the
first of the 5 nearest cached questions that is above the threshold and passes the guards. A miss is cached. A hit with
another label is wrong. DIR holds banking77_test.csv and clinc150_data_full.json; --train needs banking77_train.csv and
uses the training part of the other. Without DIR the project's own labeled pairs are judged one by one. -v prints
examples. Needs the extra `onnx`.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from api.embedders.minilm import MiniLM, model_files
from api.guards.agreement import Features, disagreement, read

Labelled = list[tuple[str, str]]
"""Questions with labels."""
PAIRS = Path(__file__).parents[1] / "tests/unit/guard_pairs.tsv"
THRESHOLDS = (0.85, 0.90, 0.92, 0.95)
NEIGHBOURS = 5
SAMPLE = 3000


@dataclass(slots=True)
class Tally:
    """The counts of one run."""

    questions: int = 0
    hits: int = 0
    wrong: int = 0
    rejected: int = 0
    rejected_right: int = 0
    guards: Counter[str] = field(default_factory=Counter)
    guards_right: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)


def main() -> None:
    model = MiniLM(model_files(None))
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        part = "train" if "--train" in sys.argv else "test"
        for name, questions in (("banking77", banking77(folder, part)), ("clinc150", clinc150(folder, part))):
            stream(f"{name} {part}", model, questions)
    else:
        judge_pairs(model)
    time_guards()


def banking77(folder: Path, part: str) -> Labelled:
    with (folder / f"banking77_{part}.csv").open(encoding="utf-8", newline="") as file:
        return sampled([(row["text"], row["category"]) for row in csv.DictReader(file)])


def clinc150(folder: Path, part: str) -> Labelled:
    parts = json.loads((folder / "clinc150_data_full.json").read_text("utf-8"))
    return sampled([(text, label) for text, label in parts[part]])


def sampled(questions: Labelled) -> Labelled:
    """Returns a sample of the questions in random order, the same in every run."""
    random.Random(5).shuffle(questions)
    return questions[:SAMPLE]


def stream(name: str, model: MiniLM, questions: Labelled) -> None:
    """Prints a table with a row per threshold, with and without guards."""
    vectors = np.stack([np.frombuffer(vector, "<f4") for vector in model.encode([text for text, _ in questions])])
    features = [read(text) for text, _ in questions]
    print(f"\n{name}, {len(questions)} questions")
    print("threshold  guards   hit %  wrong %  rejected       correctly  by guard (right)")
    for threshold in THRESHOLDS:
        for guarded in (False, True):
            tally = simulate(questions, vectors, features, threshold, guarded)
            by_guard = ", ".join(f"{g} {n} ({tally.guards_right[g]})" for g, n in tally.guards.most_common())
            print(
                f"{threshold:9.2f}  {'yes' if guarded else 'no':>6}{100 * tally.hits / tally.questions:8.1f}"
                f"{100 * tally.wrong / max(tally.hits, 1):9.2f}{tally.rejected:10}{tally.rejected_right:16}  {by_guard}"
            )
            for kind, lines in tally.examples.items() if "-v" in sys.argv else ():
                print(f"  {kind}:", *lines[:40], sep="\n    ")


def simulate(
    questions: Labelled, vectors: np.ndarray, features: list[Features], threshold: float, guarded: bool
) -> Tally:
    tally = Tally(len(questions))
    cached: list[int] = []
    for place, (text, label) in enumerate(questions):
        for near in nearest(vectors, cached, place, threshold):
            right = questions[near][1] == label
            differs = disagreement(features[place], features[near]) if guarded else None
            if differs is None:
                tally.hits += 1
                tally.wrong += not right
                note(tally, "hit" if right else "wrong hit", f"{text} | {questions[near][0]}")
                break
            tally.rejected += 1
            tally.rejected_right += right
            tally.guards[differs.guard] += 1
            tally.guards_right[differs.guard] += right
            note(tally, f"rejected, {'right' if right else 'wrong'}", f"{differs} | {text} | {questions[near][0]}")
        else:
            cached.append(place)
    return tally


def note(tally: Tally, kind: str, line: str) -> None:
    tally.examples.setdefault(kind, []).append(line)


def nearest(vectors: np.ndarray, cached: list[int], place: int, threshold: float) -> list[int]:
    """Returns the nearest cached questions above the threshold, nearest first."""
    if not cached:
        return []
    similarities = vectors[cached] @ vectors[place]
    best = np.argsort(-similarities)[:NEIGHBOURS]
    return [cached[index] for index in best if similarities[index] >= threshold]


def own_pairs() -> Iterator[tuple[str, str, str]]:
    """Yields each labeled pair with `same` or the name of the guard that separates it."""
    for line in PAIRS.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            verdict, one, other = line.split("\t")
            yield verdict, one, other


def judge_pairs(model: MiniLM) -> None:
    """Judges each labeled pair alone: would the cache serve it?"""
    pairs = list(own_pairs())
    ones = model.encode([one for _, one, _ in pairs])
    others = model.encode([other for _, _, other in pairs])
    similar = [float(np.frombuffer(a, "<f4") @ np.frombuffer(b, "<f4")) for a, b in zip(ones, others, strict=True)]
    print(f"{len(pairs)} labeled pairs of the project")
    print("threshold  guards  right served  wrong served")
    for threshold in THRESHOLDS:
        for guarded in (False, True):
            served = Counter(
                verdict == "same"
                for (verdict, one, other), similarity in zip(pairs, similar, strict=True)
                if similarity >= threshold and not (guarded and disagreement(one, other))
            )
            print(f"{threshold:9.2f}  {'yes' if guarded else 'no':>6}{served[True]:14}{served[False]:14}")


def time_guards() -> None:
    """Prints the microseconds of CPU per pair, and per candidate of five when the question is read once."""
    pairs = [(one, other) for _, one, other in own_pairs()]
    rounds = 20
    started = time.process_time()
    for _ in range(rounds):
        for one, other in pairs:
            disagreement(one, other)
    both = (time.process_time() - started) / rounds / len(pairs) * 1e6
    started = time.process_time()
    for _ in range(rounds):
        for one, other in pairs:
            question = read(one)
            for _ in range(NEIGHBOURS):
                disagreement(question, other)
    once = (time.process_time() - started) / rounds / len(pairs) / NEIGHBOURS * 1e6
    print(f"\nguards: {both:.0f} µs per pair, {once:.0f} µs per candidate of {NEIGHBOURS} with the question read once")


if __name__ == "__main__":
    main()
