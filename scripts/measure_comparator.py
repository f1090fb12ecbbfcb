"""Measures the comparator of answers on labeled pairs of answers.

    .venv/bin/python -m scripts.measure_comparator [--write | --fit | --confirm | --blind | -v]

Prints the tables of docs/measurements.md. --write updates them, and the counts in api/quality/comparator.py. --fit fits
the weights on the half `tune` of tests/quality/answer_pairs.jsonl and prints them; its half `held-out` was written
afterwards, in other words, and is only measured. --confirm fits those of the second score, on longer answers of
training/answers.txt and the halves `groups` and `tune`. -v prints the pairs of `tune` that are judged wrongly.

tests/quality/answer_pairs_test.jsonl is harder, and was written without knowledge of the rules: do not tune to it. Tune
to the half `groups` of the other file, which is as hard. tests/quality/answer_pairs_blind.jsonl looks like the answers
of a RAG service, and its authors never saw the comparator: --blind measures it, with 95 % intervals. Never read its
pairs to improve the comparator. Needs the extra `onnx`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from random import Random

import numpy as np

from api.embedders.minilm import MiniLM, model_files
from api.errors import EmbeddingUnavailable
from api.ports.answer_quality import Verdict
from api.ports.inference import CurrentIdentity
from api.ports.telemetry import Telemetry
from api.quality.answer_agreement import Agreement, Pairing
from api.quality.answer_facts import AnswerText, read_answer
from api.quality.comparator import (
    SHORT,
    Comparator,
    Comparison,
    VerdictCounts,
    at_once,
    confirming_rows,
    counted,
    features,
)
from api.quality.measurement import wilson
from api.values import EmbedderIdentity, Embedding, Source
from training.answers import answer_sets

ROOT = Path(__file__).parents[1]
PAIRS = ROOT / "tests/quality/answer_pairs.jsonl"
TEST_PAIRS = ROOT / "tests/quality/answer_pairs_test.jsonl"
BLIND_PAIRS = ROOT / "tests/quality/answer_pairs_blind.jsonl"
PAGE = ROOT / "docs/measurements.md"
CODE = ROOT / "api/quality/comparator.py"
BEGIN, END = "<!-- comparator: begin -->", "<!-- comparator: end -->"
RIDGE, CONFIRMING_RIDGE = 0.25, 1.0
WRITTEN_EACH = 2
"""Pairs of each truth from one question of training/answers.txt."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers with their label. `half`: `tune`, `groups`, `held-out`, `test`, `blind`. `kind`: how they differ."""

    half: str
    kind: str
    truth: Verdict
    one: AnswerText
    other: AnswerText


def pairs_of(half: str) -> list[AnswerPair]:
    """Returns the pairs of one half."""
    file = {"test": TEST_PAIRS, "blind": BLIND_PAIRS}.get(half, PAIRS)
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


async def compare_all(pairs: Sequence[AnswerPair], embedder: LocalEmbedder) -> list[Comparison]:
    """Compares every pair, without a judge."""
    comparator = Comparator(embedder, Telemetry())
    return [await comparator.compare(pair.one, pair.other) for pair in pairs]


def counts_of(pairs: Sequence[AnswerPair], verdicts: Sequence[Comparison]) -> VerdictCounts:
    """Counts verdicts by truth."""
    return counted((pair.truth, found.verdict) for pair, found in zip(pairs, verdicts, strict=True))


# -- the page ---------------------------------------------------------------------------------------------------------


def table(
    pairs: Sequence[AnswerPair],
    verdicts: Sequence[Comparison],
    bare: Sequence[Comparison],
    harder: VerdictCounts,
    blind: VerdictCounts,
) -> str:
    """Returns the tables of docs/measurements.md. `harder`, `blind`: the counts on these pairs."""
    lines = [
        "| stages | truth | pairs | same | different | unsure |",
        "|---|---|---|---|---|---|",
        *rows_of("text and facts", counts_of(pairs, bare)),
        *rows_of("with the embedder", counts_of(pairs, verdicts)),
        *rows_of("the same, harder pairs", harder),
        *rows_of("the same, blind pairs", blind),
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


def write(text: str, counts: VerdictCounts, blind: VerdictCounts) -> None:
    """Puts the tables on the page and the counts into the code."""
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", "utf-8")
    code = CODE.read_text("utf-8")
    for name, found in (("MEASURED", counts), ("BLIND", blind)):
        given = ", ".join(f"{one.name}={getattr(found, one.name)}" for one in fields(found))
        made = f"{name}: Final = VerdictCounts(\n    {given}\n)"
        code = re.sub(rf"{name}: Final = VerdictCounts\([^)]*\)", made, code)
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
    """Returns the pairs that the second score is fitted on. None is about a question of a blind pair."""
    random, written = Random(1), []
    for one in answer_sets():
        for same in (True, False):
            found = [pair for pair in one.pairs() if pair.same is same]
            written += random.sample(found, min(WRITTEN_EACH, len(found)))
    truth = {True: Verdict.SAME, False: Verdict.DIFFERENT}
    own = [
        AnswerPair("sets", "", truth[one.same], AnswerText(one.question, one.one), AnswerText(one.question, one.other))
        for one in written
    ]
    measured = {pair.one.question.lower() for pair in pairs_of("blind")}
    pairs = [*own, *pairs_of("groups"), *pairs_of("tune")[::3]]
    return [pair for pair in pairs if pair.one.question.lower() not in measured]


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


def _logistic(rows: np.ndarray, labels: np.ndarray, steps: int = 40, shrink: float = RIDGE) -> np.ndarray:
    """Fits a logistic regression with a ridge on all weights but the first, by Newton's method."""
    ridge = shrink * np.eye(rows.shape[1])
    ridge[0, 0] = 1e-3
    weights = np.zeros(rows.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        gradient = rows.T @ (labels - p) - ridge @ weights
        weights = weights + np.linalg.solve((rows * (p * (1 - p) + 1e-6)[:, None]).T @ rows + ridge, gradient)
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
    if "--blind" in arguments:
        pairs = pairs_of("blind")
        verdicts = asyncio.run(compare_all(pairs, embedder))
        print("\n".join([*interval_rows(counts_of(pairs, verdicts)), "", *kind_rows(pairs, verdicts)]))
        return
    if "-v" in arguments:
        pairs = pairs_of("tune")
        for pair, found in zip(pairs, asyncio.run(compare_all(pairs, embedder)), strict=True):
            if found.verdict not in (pair.truth, Verdict.UNSURE):
                print(f"{pair.kind}: {found.verdict}, {found.reasons}\n  {pair.one.text!r}\n  {pair.other.text!r}")
        return
    pairs = pairs_of("held-out")
    verdicts = asyncio.run(compare_all(pairs, embedder))
    test = pairs_of("test")
    harder = counts_of(test, asyncio.run(compare_all(test, embedder)))
    unseen = pairs_of("blind")
    blind = counts_of(unseen, asyncio.run(compare_all(unseen, embedder)))
    text = table(pairs, verdicts, asyncio.run(compare_all(pairs, LocalEmbedder(None))), harder, blind)
    print(text)
    if "--write" in arguments:
        write(text, counts_of(pairs, verdicts), blind)


if __name__ == "__main__":
    main(sys.argv[1:])
