"""Decides whether two answers say the same. The cache's error is estimated from its verdicts.

The stages, cheapest first; each later one is asked only while the verdict is unsure:
- equal texts, refusals, yes against no;
- facts: figures, names, negations, conditions and the order of steps, statement by statement, with the embedder;
- a judge model, if SEMANTIC_CACHE_JUDGE_MODEL is set.

Long texts are read in a thread. If the embedder or the judge fails, the verdict is only unsure.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import orjson

from api.errors import EmbeddingUnavailable
from api.ports.answer_quality import Confusion, Verdict
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry
from api.quality.answer_agreement import Agreement, Pairing, StatementPair
from api.quality.answer_conflicts import Vector, Vectors
from api.quality.answer_facts import AXES, AnswerFacts, AnswerText, read_answer, same_text
from api.values import NO_TENANT, EmbedderIdentity

T = TypeVar("T")

RULES: Final = "answers-2"
"""Changes with the rules, like `MEASURED`. Labels of other rules are not mixed."""
LONG: Final = 300
"""Characters of both answers above which they are read in a thread. Shorter ones take about 2 ms."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on two answers. `score`: from 0, certainly different, to 1, certainly the same.

    `stage`: what decided: `text`, `facts` or `judge`.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    score: float
    stage: str = "facts"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores from which two answers are the same, and up to which they are different."""

    same: float = 0.88
    different: float = 0.45


THRESHOLDS: Final = Thresholds()
WEIGHTS: Final[dict[str, float]] = {
    "bias": -1.90,
    "likeness": 5.43,
    "core": 2.39,
    "overlap": -3.40,
    "replaced": -0.62,
    "replaced like": -0.18,
    "slot": -2.31,
    "displaced": -0.76,
    "surplus": -0.53,
    "turned": -2.94,
    "added": 0.78,
    "shared": -0.76,
    "shared any": 2.17,
    "lead": 1.02,
    "missing": -1.56,
    "missing any": -0.31,
    "uncovered": -0.36,
    "citations": 0.67,
    "fact": -4.75,
    "fact?": -2.27,
    "negation": -1.07,
    "negation?": -0.01,
    "opposites": -4.25,
    "opposites?": -1.82,
    "condition": 0.00,
    "condition?": -1.45,
    "axis": -1.01,
    "axis?": -3.63,
}
"""Of the features in the logit of the score, fitted on the half `tune` of tests/quality/answer_pairs.jsonl."""
SHORT: Final = 10
"""Words of the longer answer up to which this score decides alone."""
CONFIRMING: Final[dict[str, float]] = {
    "bias": -2.63,
    "likeness": -2.06,
    "core": 1.25,
    "overlap": -2.49,
    "replaced": 0.41,
    "replaced like": 0.24,
    "slot": -0.33,
    "displaced": -0.31,
    "surplus": 0.58,
    "turned": -0.22,
    "added": 0.53,
    "shared": -0.03,
    "shared any": 0.64,
    "lead": 0.30,
    "missing": -0.26,
    "missing any": -0.56,
    "uncovered": 0.13,
    "citations": 0.09,
    "fact": -2.01,
    "fact?": -0.42,
    "negation": -0.43,
    "negation?": -0.15,
    "opposites": -0.71,
    "opposites?": -0.57,
    "condition": 0.00,
    "condition?": 0.00,
    "axis": -0.27,
    "axis?": -0.70,
    "whole likeness": 1.96,
    "covered": 1.41,
    "most covered": 0.38,
    "extra": -0.17,
    "unpaired": 0.31,
    "length": 0.63,
    "ratio of lengths": -0.62,
    "other number of statements": 0.61,
    "no pair": -1.60,
}
"""Of the features in the logit of a second score, for longer answers: those that say the same often do so in quite
other words. Fitted by scripts/measure_comparator.py."""
CONFIRMED: Final = Thresholds(same=0.33, different=0.17)
"""A verdict on longer answers needs both scores."""
CLEAR: Final = frozenset(("figures", "order", "steps", "code", "terms"))
"""Conflicts that need no vectors to be certain."""
EQUAL_FRAME: Final = 0.7
"""Share of common words from which every difference is one of fact."""
FEATURES_OF_CONFLICTS: Final = tuple(
    f"{kind}{doubt}" for kind in ("fact", "negation", "opposites", "condition", "axis") for doubt in ("", "?")
)


def features(pair: StatementPair, agreement: Agreement) -> dict[str, float]:
    """Returns what the score of two statements is made of."""
    found = dict.fromkeys(FEATURES_OF_CONFLICTS, 0.0)
    for conflict in (*pair.conflicts, *agreement.conflicts):
        name = "axis" if conflict.kind in AXES else conflict.kind if conflict.kind in found else "fact"
        if conflict.certain and pair.overlap >= EQUAL_FRAME:
            name = "fact"
        found[name if conflict.certain else f"{name}?"] += 1
    return {
        "bias": 1.0,
        "likeness": pair.likeness,
        "core": pair.core,
        "overlap": pair.overlap,
        "replaced": pair.replaced,
        "replaced like": pair.replaced * (1 - pair.likeness),
        "slot": pair.replaced if pair.slot else 0.0,
        "displaced": float(pair.displaced),
        "surplus": min(pair.surplus, 4) / 4,
        "turned": float(pair.turned),
        "added": float(pair.added),
        "shared": min(pair.shared, 2),
        "shared any": float(pair.shared > 0),
        "lead": agreement.lead,
        "missing": min(len(agreement.missing), 3),
        "missing any": float(bool(agreement.missing)),
        "uncovered": 1 - agreement.covered,
        "citations": 0.0 if agreement.citations is None else agreement.citations - 0.5,
        **found,
    }


def features_of_answers(agreement: Agreement) -> dict[str, float]:
    """Returns what only the second score is made of: how the answers compare as a whole."""
    short, long = sorted(agreement.words)
    return {
        "whole likeness": agreement.likeness,
        "covered": agreement.covered,
        "most covered": agreement.most_covered,
        "extra": min(agreement.extra, 4),
        "unpaired": min(agreement.unpaired, 3),
        "length": math.log(1 + long),
        "ratio of lengths": math.log((1 + long) / (1 + short)),
        "other number of statements": float(agreement.statements[0] != agreement.statements[1]),
        "no pair": float(not agreement.pairs),
    }


def confirming_rows(agreement: Agreement) -> list[dict[str, float]]:
    """Returns the features of the second score, one row for each pair of statements; at least one."""
    of_answers = features_of_answers(agreement)
    rows = [features(pair, agreement) | of_answers for pair in agreement.pairs]
    return rows or [{"bias": 1.0} | of_answers]


def is_confirmed(verdict: Verdict, agreement: Agreement) -> bool:
    """Returns whether a second score agrees. It is asked about longer answers."""
    if max(agreement.words) <= SHORT:
        return True
    score = _least(CONFIRMING, confirming_rows(agreement))
    return score >= CONFIRMED.same if verdict is Verdict.SAME else score <= CONFIRMED.different


def _least(weights: Mapping[str, float], rows: Iterable[Mapping[str, float]]) -> float:
    """Returns the lowest probability of the rows."""
    totals = [sum(weights.get(name, 0.0) * value for name, value in row.items()) for row in rows]
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, min(totals, default=-3.0)))))


def at_once(one: AnswerFacts, other: AnswerFacts) -> Comparison | None:
    """Returns a verdict that needs no vectors, else None."""
    if not one.statements or not other.statements:
        both = not one.statements and not other.statements
        return _same("neither says anything") if both else _different("one says nothing")
    if one.plain == other.plain:
        return _same("equal texts")
    if one.refusal or other.refusal:
        both = one.refusal and other.refusal
        return _same("neither knows", 0.95) if both else _different("only one knows")
    if one.affirms is not None and other.affirms is not None and one.affirms != other.affirms:
        return _different("yes / no")
    return None


def decide(agreement: Agreement, thresholds: Thresholds = THRESHOLDS) -> Comparison:
    """Returns the verdict on how two answers compare: as the statements that agree least.

    A second score confirms verdicts on longer answers. Without vectors only a clear contradiction is certain.
    """
    score = _least(WEIGHTS, [features(pair, agreement) for pair in agreement.pairs])
    conflicts = [*agreement.conflicts, *(conflict for pair in agreement.pairs for conflict in pair.conflicts)]
    reasons = (*map(str, conflicts), *(f"only one: {fact}" for fact in agreement.missing[:3]))
    if not agreement.embedded:
        contradicts = any(conflict.certain and conflict.kind in CLEAR for conflict in conflicts)
        return Comparison(Verdict.DIFFERENT if contradicts else Verdict.UNSURE, reasons, score)
    verdict, reason = Verdict.UNSURE, ""
    if score >= thresholds.same and not _is_open(agreement):
        verdict, reason = Verdict.SAME, "the same statements"
    elif score <= thresholds.different:
        verdict, reason = Verdict.DIFFERENT, "other statements"
    if verdict is Verdict.UNSURE or not is_confirmed(verdict, agreement):
        return Comparison(Verdict.UNSURE, reasons, score)
    return Comparison(verdict, (*reasons, reason), score)


def _is_open(agreement: Agreement) -> bool:
    """Returns whether something speaks against the same answer: a doubt, a fact that is missing, or too little in
    common.
    """
    pairs = agreement.pairs
    thin = all(pair.likeness < 0.5 and not pair.shared for pair in pairs)
    doubts = any(pair.conflicts or pair.displaced or pair.turned for pair in pairs)
    partial = agreement.unpaired > 0 or (agreement.extra > 1 and agreement.covered < 0.6)
    return bool(thin or doubts or partial or agreement.conflicts or agreement.missing)


def _same(reason: str, score: float = 1.0) -> Comparison:
    return Comparison(Verdict.SAME, (reason,), score, "text")


def _different(reason: str) -> Comparison:
    return Comparison(Verdict.DIFFERENT, (reason,), 0.02, "text")


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Verdicts on labeled pairs of answers: how many by truth and verdict."""

    same_same: int = 0
    same_different: int = 0
    same_unsure: int = 0
    different_same: int = 0
    different_different: int = 0
    different_unsure: int = 0

    @property
    def n_same(self) -> int:
        """Pairs that say the same in truth."""
        return self.same_same + self.same_different + self.same_unsure

    @property
    def n_different(self) -> int:
        """Pairs that say something else in truth."""
        return self.different_same + self.different_different + self.different_unsure

    @property
    def p_unsure_given_same(self) -> float:
        """Probability of no verdict on equal answers."""
        return self.same_unsure / max(1, self.n_same)

    @property
    def p_unsure_given_different(self) -> float:
        """Probability of no verdict on different answers."""
        return self.different_unsure / max(1, self.n_different)

    @property
    def confusion(self) -> Confusion:
        """The errors among pairs with a verdict, and how often different answers get none."""
        return Confusion(
            different=self.different_same + self.different_different,
            called_same=self.different_same,
            same=self.same_same + self.same_different,
            called_different=self.same_different,
            unsure_different=self.different_unsure,
        )


def counted(pairs: Iterable[tuple[Verdict, Verdict]]) -> VerdictCounts:
    """Counts pairs of truth (same or different) and verdict."""
    return VerdictCounts(**Counter(f"{truth}_{verdict}" for truth, verdict in pairs))


MEASURED: Final = VerdictCounts(
    same_same=110, same_different=4, same_unsure=44, different_same=6, different_different=128, different_unsure=25
)
"""Measured on the part `held-out` of tests/quality/answer_pairs.jsonl by scripts/measure_comparator.py; no judge."""
CONFUSION: Final = MEASURED.confusion
"""What decisions assume: the errors on short answers. They are fewer than on long ones, so the fleet is careful."""
BLIND: Final = VerdictCounts(
    same_same=64, same_different=49, same_unsure=187, different_same=9, different_different=210, different_unsure=81
)
"""The same of tests/quality/answer_pairs_blind.jsonl, which look like a service's answers. The figures that are shown
are corrected for these errors."""


class Judge(Protocol):
    """A language model that compares two answers. `version`: its name and a digest of what it is asked."""

    @property
    def version(self) -> str: ...

    async def verdict(self, one: AnswerText, other: AnswerText, tenant: str) -> Verdict:
        """Returns the judge's verdict; unsure after any failure. Raises nothing."""


_MEASURED: Final = ("minilm-l6", "all-minilm")
_NOT_MEASURED: Final = ("l12", "33m")
MAX_REMEMBERED: Final = 512
"""Vectors that are kept: one answer is often compared with several."""


def is_measured(identity: EmbedderIdentity) -> bool:
    """Returns whether the thresholds were measured with this embedder. Cosines of others say something else."""
    name = identity.name.lower()
    return any(known in name for known in _MEASURED) and not any(other in name for other in _NOT_MEASURED)


class Comparator:
    """Compares answers in the background. `tenant` owns both answers.

    `name`: its stages. `version`: a digest of its rules, its thresholds and its judge. Labels of another version are
    not mixed with its own.
    """

    def __init__(self, embedder: Embedder, telemetry: Telemetry, judge: Judge | None = None) -> None:
        self._embedder = embedder
        self._telemetry = telemetry
        self._judge = judge
        self._remembered: dict[tuple[str, str], Vector] = {}
        self.name = "facts" if judge is None else f"facts+judge {judge.version}"
        self.version = _digest(self.name)

    async def compare(self, one: AnswerText, other: AnswerText, *, tenant: str = NO_TENANT) -> Comparison:
        """Returns whether both answers say the same. Raises nothing of the models that it asks."""
        comparison = await self._compared(one, other, tenant)
        if comparison.verdict is Verdict.UNSURE and self._judge is not None:
            verdict = await self._judge.verdict(one, other, tenant)
            if verdict is not Verdict.UNSURE:
                score = 0.9 if verdict is Verdict.SAME else 0.1
                comparison = Comparison(verdict, (*comparison.reasons, "the judge's verdict"), score, "judge")
        self._telemetry.compared(comparison.stage, comparison.verdict)
        return comparison

    async def _compared(self, one: AnswerText, other: AnswerText, tenant: str) -> Comparison:
        if same_text(one, other):
            return _same("equal texts")
        long = len(one.text) + len(other.text) > LONG
        pairing = await _run(long, lambda: Pairing(read_answer(one), read_answer(other)))
        comparison = at_once(pairing.one, pairing.other)
        if comparison is None:
            comparison = await _run(long, lambda: decide(pairing.agreement(None)))
        if comparison.verdict is Verdict.UNSURE and pairing.is_english:
            vectors = await self._vectors(pairing.texts(), tenant)
            comparison = await _run(long, lambda: decide(pairing.agreement(vectors)))
        cut = pairing.one.cut or pairing.other.cut
        if cut and comparison.verdict is Verdict.SAME:
            return Comparison(Verdict.UNSURE, (*comparison.reasons, "too long to read whole"), comparison.score)
        return comparison

    async def _vectors(self, texts: Sequence[str], tenant: str) -> Vectors | None:
        """Returns the vectors of texts; None if the embedder fails, cannot read them, or was not measured."""
        try:
            identity = await self._embedder.identity()
            if not is_measured(identity):
                return None
            keys = {text: (identity.fingerprint, text) for text in texts}
            unknown = [text for text, key in keys.items() if key not in self._remembered]
            embedded = await self._embedder.embed(unknown, tenant=tenant) if unknown else []
        except EmbeddingUnavailable:
            return None
        if any(one.unread for one in embedded):
            return None
        found = {text: self._remembered[key] for text, key in keys.items() if key in self._remembered}
        for text, embedding in zip(unknown, embedded, strict=True):
            found[text] = self._remembered[keys[text]] = np.frombuffer(embedding.vector, np.float32)
        while len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return found


async def _run(in_thread: bool, work: Callable[[], T]) -> T:
    """Runs work that may take more than a few milliseconds in a thread."""
    return await asyncio.to_thread(work) if in_thread else work()


def _digest(name: str) -> str:
    second = [SHORT, astuple(CONFIRMED), sorted(CONFIRMING.items())]
    facts = [RULES, name, astuple(THRESHOLDS), sorted(WEIGHTS.items()), second, astuple(MEASURED), astuple(BLIND)]
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:10]
