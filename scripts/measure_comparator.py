"""Measures the comparator of answers on labeled pairs of answers.

    .venv/bin/python -m scripts.measure_comparator [--write | --fit | --confirm | --last | --blind [third] | -v]

Prints the tables of docs/measurements.md. --write updates them, and the counts in api/quality/comparator.py.
tests/quality/answer_pairs_unseen.jsonl looks like the answers of a RAG service, and was written before its author saw
the comparator: --blind measures only it, with 95 % intervals. Never read its pairs to improve the comparator. -v prints
the pairs of the half `tune` that are judged wrongly. Needs the extra `onnx`.

Weights are fitted and printed:
- --fit: those of the first score, on the half `tune` of tests/quality/answer_pairs.jsonl. Its half `held-out` was
  written afterwards, in other words, and is only measured.
- --confirm: those of the second score, on longer answers of training/answers.txt and the halves `groups` and `tune`.
- --last: those of the last score with its thresholds, on answer_pairs_blind.jsonl, which was blind before, and on pairs
  that the model was not trained on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from random import Random

import numpy as np

from api.embedders.answer_model import AnswerScorer
from api.embedders.minilm import MiniLM, model_files
from api.errors import EmbeddingUnavailable
from api.ports.answer_quality import Verdict
from api.ports.inference import CurrentIdentity
from api.ports.telemetry import Telemetry
from api.quality.answer_agreement import Agreement, Pairing
from api.quality.answer_facts import AnswerText, read_answer
from api.quality.answer_scores import SHORT, confirming_rows, features, voices
from api.quality.comparator import Comparator, Comparison, Thresholds, VerdictCounts, at_once, counted
from api.quality.measurement import wilson
from api.values import EmbedderIdentity, Embedding, Source
from training.answers import AnswerPair as WrittenPair
from training.answers import answer_sets
from training.comparing import HELD_OUT_FOLD, fold_of

ROOT = Path(__file__).parents[1]
PAIRS = ROOT / "tests/quality/answer_pairs.jsonl"
TEST_PAIRS = ROOT / "tests/quality/answer_pairs_test.jsonl"
BLIND_PAIRS = ROOT / "tests/quality/answer_pairs_blind.jsonl"
UNSEEN_PAIRS = ROOT / "tests/quality/answer_pairs_unseen.jsonl"
THIRD_PAIRS = ROOT / "tests/quality/answer_pairs_third.jsonl"
PAGE = ROOT / "docs/measurements.md"
CODE = ROOT / "api/quality/comparator.py"
BEGIN, END = "<!-- comparator: begin -->", "<!-- comparator: end -->"
BARE, ALONE, WHOLE = "text and facts", "with the embedder", "with the model"
HARDER, EARLIER = "the same, harder pairs", "the same, earlier blind pairs"
UNSEEN_ALONE, UNSEEN = "blind pairs, without the model", "the same, blind pairs"
"""The rows of the first table."""
CONSTANTS = {
    "MEASURED": ALONE,
    "MEASURED_WITH_MODEL": WHOLE,
    "BLIND": EARLIER,
    "UNSEEN": UNSEEN,
    "UNSEEN_ALONE": UNSEEN_ALONE,
}
"""The counts in the code, and their rows."""
RIDGE, CONFIRMING_RIDGE, LAST_RIDGE = 0.25, 1.0, 10.0
WEIGHT_OF_OTHERS = 0.5
"""Of a pair in the fit of the last score that does not look like a service's answers."""
SHARE_OF_ERRORS = {Verdict.SAME: 0.012, Verdict.DIFFERENT: 0.02}
"""The thresholds of the last score allow these shares of wrong verdicts in cross-validation: less than the aims, as the
texts and the facts alone decide some pairs wrongly."""
WRITTEN_EACH, LAST_EACH = 2, 5
"""Pairs of each truth from one question of training/answers.txt, for the second and the last score."""
CROSS = 5
"""The parts of a cross-validation."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers with their label. `half`: `tune`, `groups`, `held-out`, `test`, `blind`. `kind`: how they differ."""

    half: str
    kind: str
    truth: Verdict
    one: AnswerText
    other: AnswerText

    @property
    def family(self) -> str:
        """Pairs of one family speak of the same facts."""
        return WrittenPair(self.one.question, "", "", same=True).family


def pairs_of(half: str) -> list[AnswerPair]:
    """Returns the pairs of one half."""
    file = {"test": TEST_PAIRS, "blind": BLIND_PAIRS, "unseen": UNSEEN_PAIRS, "third": THIRD_PAIRS}.get(half, PAIRS)
    rows = map(json.loads, file.read_text("utf-8").splitlines())
    return [_pair(row) for row in rows if row["half"] == half]


def _pair(row: dict[str, str]) -> AnswerPair:
    """`cited`: whether both answers rest on the same passages. `asked`: the question of `other`, if it is another."""
    own = _passages("a")
    others = _passages("b") if row.get("cited") == "other" else own
    answers = (
        AnswerText(row["question"], row["one"], own),
        AnswerText(row.get("asked", row["question"]), row["other"], others),
    )
    return AnswerPair(row["half"], row["kind"], Verdict(row["truth"]), *answers)


def _passages(document: str) -> tuple[Source, ...]:
    return tuple(Source(f"{document}{number}", "", 0, "", 1.0) for number in (1, 2))


class LocalEmbedder:
    """MiniLM without threads. Without a model it fails. It remembers what it embedded."""

    def __init__(self, model: MiniLM | None) -> None:
        self._model = model
        self._identity = EmbedderIdentity("all-MiniLM-L6-v2", 384, "local")
        self._known: dict[str, Embedding] = {}
        self.current = CurrentIdentity(self._identity)

    async def identity(self) -> EmbedderIdentity:
        """Known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """Returns one embedding per text. Raises `EmbeddingUnavailable` without a model."""
        if self._model is None:
            raise EmbeddingUnavailable("no model")
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        if unknown:
            self._known.update(zip(unknown, self._model.embed(unknown), strict=True))
        return [self._known[text] for text in texts]


async def compare_all(
    pairs: Sequence[AnswerPair], embedder: LocalEmbedder, model: AnswerScorer | None = None
) -> list[Comparison]:
    """Compares every pair, without a judge."""
    comparator = Comparator(embedder, Telemetry(), model=model)
    return [await comparator.compare(pair.one, pair.other) for pair in pairs]


def counts_of(pairs: Sequence[AnswerPair], verdicts: Sequence[Comparison]) -> VerdictCounts:
    """Counts verdicts by truth."""
    return counted((pair.truth, found.verdict) for pair, found in zip(pairs, verdicts, strict=True))


# -- the page ---------------------------------------------------------------------------------------------------------


def table(
    pairs: Sequence[AnswerPair],
    verdicts: Sequence[Comparison],
    counts: Mapping[str, VerdictCounts],
) -> str:
    """Returns the tables of docs/measurements.md. `counts`: by the name of the row."""
    lines = [
        "| stages | truth | pairs | same | different | unsure |",
        "|---|---|---|---|---|---|",
        *(row for name, one in counts.items() for row in rows_of(name, one)),
        "",
        *kind_rows(pairs, verdicts),
    ]
    return "\n".join(lines)


def kind_rows(pairs: Sequence[AnswerPair], verdicts: Sequence[Comparison]) -> Iterator[str]:
    """Yields the table of verdicts by kind."""
    yield "| kind | truth | pairs | same | different | unsure |"
    yield "|---|---|---|---|---|---|"
    groups: dict[tuple[str, Verdict], list[Verdict]] = defaultdict(list)
    for pair, found in zip(pairs, verdicts, strict=True):
        groups[pair.kind, pair.truth].append(found.verdict)
    for (kind, truth), found_verdicts in sorted(groups.items()):
        numbers = [found_verdicts.count(verdict) for verdict in Verdict]
        yield f"| {kind} | {truth} | {len(found_verdicts)} | {' | '.join(map(str, numbers))} |"


def rows_of(stages: str, counts: VerdictCounts) -> Iterator[str]:
    """Yields the rows of the first table: counts and shares by truth."""
    numbers = astuple(counts)
    for truth, total, own in (("same", counts.n_same, numbers[:3]), ("different", counts.n_different, numbers[3:])):
        shares = " | ".join(f"{number} ({100 * number / total:.1f} %)" for number in own)
        yield f"| {stages} | {truth} | {total} | {shares} |"


def interval_rows(counts: VerdictCounts) -> Iterator[str]:
    """Yields the table of shares by truth, with Wilson's 95 % intervals."""
    yield "| truth | pairs | same, % | different, % | unsure, % |"
    yield "|---|---|---|---|---|"
    numbers = astuple(counts)
    for truth, total, own in (("same", counts.n_same, numbers[:3]), ("different", counts.n_different, numbers[3:])):
        shares = (f"{100 * number / total:.1f} ({_percent(*wilson(number, total))})" for number in own)
        yield f"| {truth} | {total} | {' | '.join(shares)} |"


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def write(text: str, counts: Mapping[str, VerdictCounts]) -> None:
    """Puts the tables on the page and the counts into the code. `counts`: by the name of the row."""
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", "utf-8")
    code = CODE.read_text("utf-8")
    for name, row in CONSTANTS.items():
        found = counts[row]
        given = ", ".join(f"{one.name}={getattr(found, one.name)}" for one in fields(found))
        made = f"{name}: Final = VerdictCounts(\n    {given}\n)"
        code = re.sub(rf"^{name}: Final = VerdictCounts\([^)]*\)", made, code, flags=re.MULTILINE)
    CODE.write_text(code, "utf-8")


# -- fitting ----------------------------------------------------------------------------------------------------------


def fit(pairs: Sequence[AnswerPair], embedder: LocalEmbedder, rounds: int = 4) -> dict[str, float]:
    """Fits the weights: of equal answers the statements that agree least count, of different ones those that stand
    alone, since in longer ones most statements are the same.
    """
    samples = [(rows, same) for rows, same in map(_sample, pairs, [embedder] * len(pairs)) if rows]
    names = list(samples[0][0][0])
    weights = np.zeros(len(names))
    for turn in range(rounds):
        chosen = [
            (min(([row[name] for name in names] for row in rows), key=lambda row: float(np.dot(row, weights))), same)
            for rows, same in samples
            if len(rows) == 1 or (same and turn)
        ]
        weights = _logistic(np.array([row for row, _ in chosen]), np.array([float(same) for _, same in chosen]))
    return dict(zip(names, map(float, weights), strict=True))


def _sample(pair: AnswerPair, embedder: LocalEmbedder) -> tuple[list[dict[str, float]], bool]:
    agreement = agreement_of(pair, embedder)
    rows = [] if agreement is None else [features(one, agreement) for one in agreement.pairs]
    return rows, pair.truth is Verdict.SAME


def fit_confirming(pairs: Sequence[AnswerPair], embedder: LocalEmbedder, rounds: int = 6) -> dict[str, float]:
    """Fits the weights of the second score on the longer answers: the statements that agree least count."""
    agreements = [(agreement_of(pair, embedder), pair.truth is Verdict.SAME) for pair in pairs]
    samples = [(confirming_rows(one), same) for one, same in agreements if one is not None and max(one.words) > SHORT]
    most: dict[str, float] = {}
    for rows, _ in samples:
        most = rows[0] if len(rows[0]) > len(most) else most
    names = list(most)
    matrices = [np.array([[row.get(name, 0.0) for name in names] for row in rows]) for rows, _ in samples]
    labels, weights = np.array([float(same) for _, same in samples]), np.zeros(len(names))
    for turn in range(rounds):
        chosen = [rows[np.argmin(rows @ weights)] if turn else rows.mean(axis=0) for rows in matrices]
        weights = _logistic(np.array(chosen), labels, shrink=CONFIRMING_RIDGE)
    return dict(zip(names, map(float, weights), strict=True))


def longer_pairs() -> list[AnswerPair]:
    """Returns the pairs that the second score is fitted on. None is about a question of answer_pairs_blind.jsonl."""
    random, written = Random(1), []
    for one in answer_sets():
        for same in (True, False):
            found = [pair for pair in one.pairs() if pair.same is same]
            written += random.sample(found, min(WRITTEN_EACH, len(found)))
    measured = {pair.one.question.lower() for pair in pairs_of("blind")}
    pairs = [*map(_of_set, written), *pairs_of("groups"), *pairs_of("tune")[::3]]
    return [pair for pair in pairs if pair.one.question.lower() not in measured]


def fit_last(embedder: LocalEmbedder, model: AnswerScorer) -> tuple[dict[str, float], Thresholds]:
    """Fits the weights of the last score, and its thresholds on the pairs that look like a service's answers."""
    held_out = [pair for pair in written_pairs() if fold_of(pair.family) == HELD_OUT_FOLD]
    pairs = [*pairs_of("blind"), *held_out]
    rows, labels, ours, folds = [], [], [], []
    for pair in pairs:
        agreement = agreement_of(pair, embedder)
        logit = asyncio.run(model.score(pair.one.question, pair.one.text, pair.other.text))
        if agreement is not None and logit is not None:
            rows.append(voices(agreement, logit))
            labels.append(float(pair.truth is Verdict.SAME))
            ours.append(pair.half == "blind")
            folds.append(int.from_bytes(hashlib.sha256(pair.family.encode()).digest()[4:]) % CROSS)
    names = list(rows[0])
    matrix, same = np.array([[row[name] for name in names] for row in rows]), np.array(labels)
    scale = np.where(matrix.std(axis=0) > 0, matrix.std(axis=0), 1.0)
    shares = np.where(ours, 1.0, WEIGHT_OF_OTHERS)

    def fitted(chosen: np.ndarray) -> np.ndarray:
        return _logistic(matrix[chosen] / scale, same[chosen], shrink=LAST_RIDGE, shares=shares[chosen]) / scale

    held = np.zeros(len(rows))
    for fold in range(CROSS):
        own = np.array(folds) == fold
        held[own] = 1 / (1 + np.exp(-matrix[own] @ fitted(~own)))
    weights = dict(zip(names, map(float, fitted(np.ones(len(rows), bool))), strict=True))
    return weights, _limits(held[np.array(ours)], same[np.array(ours)] > 0)


def _limits(scores: np.ndarray, same: np.ndarray) -> Thresholds:
    """Returns thresholds that these scores pass wrongly as often as `SHARE_OF_ERRORS` allows."""
    apart, equal = np.sort(scores[~same])[::-1], np.sort(scores[same])
    above = apart[int(SHARE_OF_ERRORS[Verdict.SAME] * len(apart))]
    below = equal[int(SHARE_OF_ERRORS[Verdict.DIFFERENT] * len(equal))]
    print(f"cross-validated: {(equal > above).mean():.3f} of the same, {(apart < below).mean():.3f} of the others")
    return Thresholds(float(above), float(below))


def written_pairs() -> list[AnswerPair]:
    """Returns the pairs of training/answers.txt, a few of each question, and the halves that train the model."""
    random, written = Random(0), []
    for one in answer_sets():
        for same in (True, False):
            found = [pair for pair in one.pairs() if pair.same is same]
            written += random.sample(found, min(LAST_EACH, len(found)))
    return [*map(_of_set, written), *pairs_of("groups"), *pairs_of("tune"), *pairs_of("test")]


def _of_set(one: WrittenPair) -> AnswerPair:
    truth = Verdict.SAME if one.same else Verdict.DIFFERENT
    return AnswerPair("sets", "", truth, AnswerText(one.question, one.one), AnswerText(one.question, one.other))


def agreement_of(pair: AnswerPair, embedder: LocalEmbedder) -> Agreement | None:
    """Returns how the facts compare; None if the texts alone decide."""
    pairing = Pairing(read_answer(pair.one), read_answer(pair.other))
    if at_once(pairing.one, pairing.other) is not None:
        return None
    texts = pairing.texts()
    embedded = asyncio.run(embedder.embed(texts, tenant=""))
    return pairing.agreement(
        {text: np.frombuffer(one.vector, np.float32) for text, one in zip(texts, embedded, strict=True)}
    )


def _logistic(
    rows: np.ndarray, labels: np.ndarray, steps: int = 40, shrink: float = RIDGE, shares: np.ndarray | float = 1.0
) -> np.ndarray:
    """Fits a logistic regression with a ridge on all weights but the first, by Newton's method. `shares`: the weight of
    each row.
    """
    ridge = shrink * np.eye(rows.shape[1])
    ridge[0, 0] = 1e-3
    weights = np.zeros(rows.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        gradient = rows.T @ (shares * (labels - p)) - ridge @ weights
        bent = shares * (p * (1 - p) + 1e-6)
        weights = weights + np.linalg.solve((rows * bent[:, None]).T @ rows + ridge, gradient)
    return weights


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    embedder = LocalEmbedder(MiniLM(model_files(None)))
    if "--fit" in arguments:
        for name, weight in fit(pairs_of("tune"), embedder).items():
            print(f'    "{name}": {weight:.2f},')
        return
    if "--confirm" in arguments:
        for name, weight in fit_confirming(longer_pairs(), embedder).items():
            print(f'    "{name}": {weight:.2f},')
        return
    model = AnswerScorer()
    if "--last" in arguments:
        weights, limits = fit_last(embedder, model)
        for name, weight in weights.items():
            print(f'    "{name}": {weight:.2f},')
        print(limits)
        return
    if "--blind" in arguments:
        pairs = pairs_of("third" if "third" in arguments else "unseen")
        verdicts = asyncio.run(compare_all(pairs, embedder, model))
        print("\n".join([*interval_rows(counts_of(pairs, verdicts)), "", *kind_rows(pairs, verdicts)]))
        return
    if "-v" in arguments:
        pairs = pairs_of("tune")
        for pair, found in zip(pairs, asyncio.run(compare_all(pairs, embedder, model)), strict=True):
            if found.verdict not in (pair.truth, Verdict.UNSURE):
                print(f"{pair.kind}: {found.verdict}, {found.reasons}\n  {pair.one.text!r}\n  {pair.other.text!r}")
        return
    pairs, harder, unseen = pairs_of("held-out"), harder_pairs(), pairs_of("unseen")
    verdicts = asyncio.run(compare_all(pairs, embedder, model))
    counts = {
        BARE: measured(pairs, LocalEmbedder(None)),
        ALONE: measured(pairs, embedder),
        WHOLE: counts_of(pairs, verdicts),
        HARDER: measured(harder, embedder, model),
        EARLIER: measured(pairs_of("blind"), embedder, model),
        UNSEEN_ALONE: measured(unseen, embedder),
        UNSEEN: measured(unseen, embedder, model),
    }
    text = table(pairs, verdicts, counts)
    print(text)
    if "--write" in arguments:
        write(text, counts)


def measured(pairs: Sequence[AnswerPair], embedder: LocalEmbedder, model: AnswerScorer | None = None) -> VerdictCounts:
    """Compares pairs and counts the verdicts."""
    return counts_of(pairs, asyncio.run(compare_all(pairs, embedder, model)))


def harder_pairs() -> list[AnswerPair]:
    """Returns the harder pairs that the model was not trained on."""
    return [pair for pair in pairs_of("test") if fold_of(pair.family) == HELD_OUT_FOLD]


if __name__ == "__main__":
    main(sys.argv[1:])
