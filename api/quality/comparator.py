"""Decides whether two answers say the same. The cache's error is estimated from its verdicts.

The stages, cheapest first; each later one is asked only while the verdict is unsure:
- equal texts, refusals, yes against no;
- facts: figures, names, negations, conditions and the order of steps, statement by statement, with the embedder;
- a small model that reads both answers, where its packages are installed;
- a judge model, if SEMANTIC_CACHE_JUDGE_MODEL is set.

Long texts are read in a thread. If the embedder or the judge fails, the verdict is only unsure. If the small model
fails, the facts decide alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import orjson

from api.errors import ComparingUnavailable, EmbeddingUnavailable
from api.ports.answer_quality import Confusion, Verdict
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry
from api.quality.answer_agreement import Agreement, Pairing
from api.quality.answer_conflicts import Vector, Vectors
from api.quality.answer_facts import AnswerFacts, AnswerText, read_answer, same_text
from api.quality.answer_scores import CONFIRMING, LAST, SHORT, WEIGHTS, first_score, is_open, last_score, second_score
from api.values import NO_TENANT, EmbedderIdentity

T = TypeVar("T")

RULES: Final = "answers-3"
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

    same: float
    different: float


FIRST: Final = Thresholds(same=0.88, different=0.45)
CONFIRMED: Final = Thresholds(same=0.33, different=0.17)
"""Of the second score. Without the model a verdict on longer answers needs both."""
DECISIVE: Final = Thresholds(same=0.82, different=0.14)
"""Of the last score, which needs the model."""
CLEAR: Final = frozenset(("figures", "order", "steps", "code", "terms"))
"""Conflicts that need no vectors to be certain."""


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


def decide(agreement: Agreement, logit: float | None = None) -> Comparison:
    """Returns the verdict on how two answers compare. `logit`: the model's, if it was asked.

    Without vectors only a clear contradiction is certain.
    """
    conflicts = [*agreement.conflicts, *(conflict for pair in agreement.pairs for conflict in pair.conflicts)]
    reasons = (*map(str, conflicts), *(f"only one: {fact}" for fact in agreement.missing[:3]))
    if not agreement.embedded:
        contradicts = any(conflict.certain and conflict.kind in CLEAR for conflict in conflicts)
        verdict = Verdict.DIFFERENT if contradicts else Verdict.UNSURE
        return Comparison(verdict, reasons, first_score(agreement))
    if logit is None:
        verdict, score, stage = _of_facts(agreement), first_score(agreement), "facts"
    else:
        score, stage = last_score(agreement, logit), "model"
        verdict = _between(score, DECISIVE)
        if verdict is Verdict.SAME and _of_facts(agreement) is Verdict.DIFFERENT:
            verdict = Verdict.UNSURE
    reason = {Verdict.SAME: ("the same statements",), Verdict.DIFFERENT: ("other statements",)}.get(verdict, ())
    return Comparison(verdict, (*reasons, *reason), score, stage)


def _of_facts(agreement: Agreement) -> Verdict:
    """Returns the verdict without the model: that of the first score. On longer answers the second one must agree."""
    verdict = _between(first_score(agreement), FIRST)
    if verdict is Verdict.SAME and is_open(agreement):
        return Verdict.UNSURE
    if max(agreement.words) > SHORT and _between(second_score(agreement), CONFIRMED) is not verdict:
        return Verdict.UNSURE
    return verdict


def _between(score: float, limits: Thresholds) -> Verdict:
    if score >= limits.same:
        return Verdict.SAME
    return Verdict.DIFFERENT if score <= limits.different else Verdict.UNSURE


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
"""Measured on the part `held-out` of tests/quality/answer_pairs.jsonl by scripts/measure_comparator.py: without the
model and without a judge."""
MEASURED_WITH_MODEL: Final = VerdictCounts(
    same_same=110, same_different=2, same_unsure=46, different_same=7, different_different=102, different_unsure=50
)
BLIND: Final = VerdictCounts(
    same_same=134, same_different=13, same_unsure=153, different_same=5, different_different=207, different_unsure=88
)
"""With the model, of tests/quality/answer_pairs_blind.jsonl, on which the last score is fitted."""
UNSEEN: Final = VerdictCounts(
    same_same=84, same_different=13, same_unsure=110, different_same=10, different_different=97, different_unsure=100
)
"""With the model, of tests/quality/answer_pairs_unseen.jsonl, which look like a service's answers and were blind."""
UNSEEN_ALONE: Final = VerdictCounts(
    same_same=44, same_different=24, same_unsure=139, different_same=19, different_different=110, different_unsure=78
)
"""The same without the model."""
CONFUSION: Final = MEASURED.confusion
"""What decisions assume without the model: the errors on short answers. They are fewer than on long ones, so the fleet
is careful."""


class Judge(Protocol):
    """A language model that compares two answers. `version`: its name and a digest of what it is asked."""

    @property
    def version(self) -> str: ...

    async def verdict(self, one: AnswerText, other: AnswerText, tenant: str) -> Verdict:
        """Returns the judge's verdict; unsure after any failure. Raises nothing."""


class AnswerScores(Protocol):
    """A cross-encoder that reads a question and two answers. `version`: a digest of the model."""

    @property
    def version(self) -> str: ...

    async def score(self, question: str, one: str, other: str) -> float | None:
        """Returns a logit: above 0 the answers probably say the same. None if they are too long.

        Raises `ComparingUnavailable`.
        """
        ...


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

    `name`: its stages. `version`: a digest of its rules, its thresholds, its model and its judge. Labels of another
    version are not mixed with its own.
    """

    def __init__(
        self,
        embedder: Embedder,
        telemetry: Telemetry,
        judge: Judge | None = None,
        model: AnswerScores | None = None,
    ) -> None:
        self._embedder = embedder
        self._telemetry = telemetry
        self._judge = judge
        self._model = model
        self._remembered: dict[tuple[str, str], Vector] = {}
        self.name = "facts" if judge is None else f"facts+judge {judge.version}"
        self.version = _digest(self.name, "" if model is None else model.version)

    @property
    def assumed(self) -> Confusion:
        """The errors that decisions assume: those on short answers. They are fewer, so the fleet is careful."""
        return (MEASURED if self._model is None else MEASURED_WITH_MODEL).confusion

    @property
    def shown(self) -> Confusion:
        """The errors that the figures which are shown are corrected for: those on answers like a service's."""
        return (UNSEEN_ALONE if self._model is None else UNSEEN).confusion

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
            logit = await self._logit(one, other) if vectors is not None else None
            comparison = await _run(long, lambda: decide(pairing.agreement(vectors), logit))
        cut = pairing.one.cut or pairing.other.cut
        if cut and comparison.verdict is Verdict.SAME:
            return Comparison(Verdict.UNSURE, (*comparison.reasons, "too long to read whole"), comparison.score)
        return comparison

    async def _logit(self, one: AnswerText, other: AnswerText) -> float | None:
        """Returns the model's score; None without one, for long answers, and after any failure."""
        if self._model is None:
            return None
        with suppress(ComparingUnavailable):
            return await self._model.score(one.question, one.text, other.text)
        return None

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


def _digest(name: str, model: str) -> str:
    limits = [SHORT, *map(astuple, (FIRST, CONFIRMED, DECISIVE))]
    weights = [sorted(one.items()) for one in (WEIGHTS, CONFIRMING, LAST)]
    counts = [astuple(one) for one in (MEASURED, MEASURED_WITH_MODEL, UNSEEN, UNSEEN_ALONE)]
    return hashlib.sha256(orjson.dumps([RULES, name, model, limits, weights, counts])).hexdigest()[:10]
