"""Decides whether two answers say the same. Its verdicts are the labels that the cache's error is estimated from.

The stages, cheapest first; each later one is asked only while the verdict is unsure:
- equal texts, refusals, yes against no;
- facts: figures, names, negations, conditions and the order of steps, statement by statement, with the embedder;
- the cross-encoder, where there is one;
- a judge model (SEMANTIC_CACHE_JUDGE_MODEL), where one is set.

Long texts are read in a thread. A fault of the embedder, the cross-encoder or the judge only leaves the verdict unsure.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import orjson

from api.errors import EmbeddingUnavailable
from api.ports.inference import Embedder
from api.ports.quality import Verdict
from api.ports.telemetry import Telemetry
from api.quality.answer_conflicts import Agreement, Pairing, Vector, Vectors
from api.quality.answer_facts import AnswerFacts, AnswerText, read_answer, same_text
from api.values import NO_TENANT, EmbedderIdentity

T = TypeVar("T")

RULES: Final = "answers-1"
"""Changes with every change of a rule. Labels of other rules are not mixed."""
LONG: Final = 1_500
"""Characters of both answers from which they are read in a thread."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on two answers. `score`: from 0, certainly different, to 1, certainly the same.

    `stage`: what decided: `text`, `facts`, `verifier` or `judge`.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    score: float
    stage: str = "facts"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`same`, `different`: scores from which, and up to which, the verdict is certain.

    The weights make the score from the agreement of two answers.
    """

    same: float = 0.75
    different: float = 0.2
    doubt: float = 0.2
    missing: float = 0.12


THRESHOLDS: Final = Thresholds()


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
    """Returns the verdict on how two answers compare."""
    certain = [conflict for conflict in agreement.conflicts if conflict.certain]
    if certain:
        return Comparison(Verdict.DIFFERENT, tuple(map(str, certain)), 0.05)
    score = 0.5 * agreement.covered + 0.5 * agreement.likeness
    score -= thresholds.doubt * len(agreement.conflicts) + thresholds.missing * len(agreement.missing)
    score = min(1.0, max(0.0, score))
    reasons = (*map(str, agreement.conflicts), *(f"only one: {fact}" for fact in agreement.missing[:3]))
    if not agreement.embedded:
        return Comparison(Verdict.UNSURE, reasons, score)
    if score >= thresholds.same:
        return Comparison(Verdict.SAME, (*reasons, "the same statements"), score)
    if score <= thresholds.different:
        return Comparison(Verdict.DIFFERENT, (*reasons, "other statements"), score)
    return Comparison(Verdict.UNSURE, reasons, score)


def _same(reason: str, score: float = 1.0) -> Comparison:
    return Comparison(Verdict.SAME, (reason,), score, "text")


def _different(reason: str) -> Comparison:
    return Comparison(Verdict.DIFFERENT, (reason,), 0.02, "text")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Verdicts on labelled pairs of answers: how many by truth and verdict."""

    same_same: int = 0
    same_different: int = 0
    same_unsure: int = 0
    different_same: int = 0
    different_different: int = 0
    different_unsure: int = 0

    @property
    def n(self) -> int:
        """All pairs."""
        return sum(astuple(self))

    @property
    def n_same(self) -> int:
        """Pairs that say the same in truth."""
        return self.same_same + self.same_different + self.same_unsure

    @property
    def n_different(self) -> int:
        """Pairs that say something else in truth."""
        return self.different_same + self.different_different + self.different_unsure

    @property
    def p_same_given_same(self) -> float:
        """Probability of the verdict `same` if that is the truth."""
        return self.same_same / max(1, self.n_same)

    @property
    def p_different_given_same(self) -> float:
        """Probability that equal answers are called different."""
        return self.same_different / max(1, self.n_same)

    @property
    def p_unsure_given_same(self) -> float:
        """Probability of no verdict on equal answers."""
        return self.same_unsure / max(1, self.n_same)

    @property
    def p_same_given_different(self) -> float:
        """Probability that different answers are called the same."""
        return self.different_same / max(1, self.n_different)

    @property
    def p_different_given_different(self) -> float:
        """Probability of the verdict `different` if that is the truth."""
        return self.different_different / max(1, self.n_different)

    @property
    def p_unsure_given_different(self) -> float:
        """Probability of no verdict on different answers."""
        return self.different_unsure / max(1, self.n_different)


def confusion(pairs: Iterable[tuple[Verdict, Verdict]]) -> Confusion:
    """Counts pairs of truth (same or different) and verdict."""
    counts = Counter(f"{truth}_{verdict}" for truth, verdict in pairs)
    return Confusion(**counts)


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
            first = await _run(long, lambda: decide(pairing.agreement(None)))
            if first.verdict is Verdict.DIFFERENT:
                comparison = first
            else:
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
    return hashlib.sha256(orjson.dumps([RULES, name, astuple(THRESHOLDS)])).hexdigest()[:10]
