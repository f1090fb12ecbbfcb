"""The measures of an evaluation: retrieval, citations, groundedness, intervals, and the difference of two runs. Pure.

An expectation is a document or a passage that answers a question. `found` below has, for each source in order, the
numbers of the expectations that it meets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np

from api.guards.vocabulary import stem
from api.knowledge.quotes import sentences
from api.quality.answer_conflicts import SAME_FRAME, dice, statement_conflicts
from api.quality.answer_facts import AnswerText, Statement, read_answer
from api.quality.answer_words import LIGHT
from api.quality.measurement import wilson
from api.quality.units import Quantity
from api.query.citations import cited

RESAMPLES: Final = 2000
LEAST_CHANGED: Final = 6
"""Questions that must have changed before a difference is certain: with 5, chance gives one sign in 1 of 16 cases."""
COVERED: Final = 0.7
"""Share of a statement's content words from which a passage supports it."""
LEAST_SQUASHED: Final = 4
"""Characters of a name from which it is searched for across spaces and hyphens."""

Found = Sequence[Collection[int]]


# -- Retrieval ---------------------------------------------------------------------------------------------------------


def recall(found: Found, expected: int) -> float:
    """Returns the share of the expectations that some source meets."""
    return len(set().union(*found)) / expected


def reciprocal_rank(found: Found) -> float:
    """Returns 1 / rank of the first source that meets an expectation, or 0."""
    return next((1 / rank for rank, met in enumerate(found, start=1) if met), 0.0)


def ndcg(found: Found, expected: int) -> float:
    """Returns the discounted gain of the expectations at the rank where each is met first, 1 at best.

    A second passage of the same document gains nothing. At best each of the first sources meets one; if one source
    meets several, the value is at most 1.
    """
    first: dict[int, int] = {}
    for rank, met in enumerate(found, start=1):
        for one in met:
            first.setdefault(one, rank)
    best = sum(_discount(rank) for rank in range(1, expected + 1))
    return min(1.0, sum(map(_discount, first.values())) / best)


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


# -- Citations ---------------------------------------------------------------------------------------------------------


def citation_precision(found: Found, numbers: Collection[int]) -> float | None:
    """Returns the share of the cited sources that meet an expectation; None if the answer cites nothing."""
    return sum(bool(found[number - 1]) for number in numbers) / len(numbers) if numbers else None


def citation_recall(found: Found, numbers: Collection[int], expected: int) -> float:
    """Returns the share of the expectations that a cited source meets."""
    return recall([found[number - 1] for number in numbers], expected)


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer, and the numbers of the sources that it cites."""

    text: str
    cites: tuple[int, ...]


def claims(answer: str, sources: int) -> list[Claim]:
    """Splits an answer into its sentences.

    A sentence without a citation has those of the next sentence in its paragraph that has some.
    """
    found: list[Claim] = []
    for paragraph in re.split(r"\n[ \t]*\n", answer):
        numbers: tuple[int, ...] = ()
        own: list[Claim] = []
        for sentence in reversed(sentences(paragraph)):
            numbers = tuple(sorted(cited(sentence, sources))) or numbers
            own.append(Claim(sentence, numbers))
        found += reversed(own)
    return found


# -- Support -----------------------------------------------------------------------------------------------------------

Support = Literal["supported", "unsupported", "unclear"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a text says what a statement says. `reason`: what it lacks, or what it says instead."""

    support: Support
    reason: str = ""


def judged(claim: str, text: str, question: str = "") -> Judgement:
    """Returns whether a text says what a claim says, by the facts that the answer comparator reads.

    - Each amount of the claim is in the text or in the question.
    - No sentence of the text with mostly the same words contradicts it.
    - Each name, and at least `COVERED` of its content words, are in the text. Otherwise it is unclear, because it may
      be a paraphrase.
    """
    statements = read_answer(AnswerText(question, claim)).statements
    if not statements:
        return Judgement("supported", "says nothing")
    passage = _read(text, question)
    found = [_statement_judged(one, passage) for one in statements]
    order = {"unsupported": 0, "unclear": 1, "supported": 2}
    return min(found, key=lambda one: order[one.support])


def says_something(claim: str) -> bool:
    """Returns whether a sentence states anything: a greeting does not."""
    return bool(read_answer(AnswerText("", claim)).statements)


@dataclass(frozen=True, slots=True)
class _Passage:
    statements: tuple[Statement, ...]
    stems: frozenset[str]
    text: str
    squashed: str
    """The text without anything but letters and digits."""
    quantities: tuple[Quantity, ...]


_LETTERS: Final = re.compile(r"\w+")


@lru_cache(maxsize=64)
def _read(text: str, question: str) -> _Passage:
    facts = read_answer(AnswerText(question, text))
    quantities = (*facts.given, *(quantity for one in facts.statements for quantity in one.quantities))
    known = f"{text}\n{question}".casefold()
    stems = frozenset(map(stem, _LETTERS.findall(known))) | facts.asked
    return _Passage(facts.statements, stems, known, re.sub(r"[\W_]+", "", known), quantities)


def _statement_judged(claim: Statement, passage: _Passage) -> Judgement:
    alike = [one for one in passage.statements if dice(claim.stems, one.stems) >= SAME_FRAME]
    conflicts = [_conflict(claim, one) for one in alike]
    if alike and all(conflicts):
        return Judgement("unsupported", conflicts[0])
    if missing := _missing_amount(claim, passage):
        return Judgement("unsupported", f"not there: {missing}")
    if missing := _missing_name(claim, passage):
        return Judgement("unclear", f"not there: {missing}")
    if claim.kind == "code":
        return Judgement("supported")
    amounts = {word for quantity in claim.quantities for word in quantity.shown.split()}  # compared above, by value
    content = [word for word in claim.content if word not in LIGHT and word not in amounts]
    absent = [word for word in dict.fromkeys(content) if word not in passage.stems]
    if content and 1 - len(absent) / len(set(content)) < COVERED:
        return Judgement("unclear", f"words that are not there: {', '.join(absent[:6])}")
    return Judgement("supported")


def _conflict(claim: Statement, other: Statement) -> str:
    """Returns a certain contradiction of two statements with mostly the same words, or ''."""
    if "code" in (claim.kind, other.kind):
        return ""
    overlap = dice(claim.stems, other.stems)
    found = statement_conflicts(claim, other, overlap, overlap, alone=True)
    return next((str(one) for one in found if one.certain), "")


def _missing_amount(claim: Statement, passage: _Passage) -> str:
    """Returns an amount that the passage does not have, or ''. One and two are often words only."""
    for quantity in claim.quantities:
        small = quantity.weak or (quantity.kind == "number" and quantity.value <= 2)
        if not small and not any(quantity.matches(known) for known in passage.quantities):
            return quantity.shown
    return ""


def _missing_name(claim: Statement, passage: _Passage) -> str:
    """Returns a name or a code that the passage does not have, or ''. Names come without hyphens and spaces."""
    for name in sorted(claim.names):
        plain = name.strip("`").casefold()
        known = plain in passage.text or stem(plain) in passage.stems
        if not known and not name.startswith("?") and not (len(plain) >= LEAST_SQUASHED and plain in passage.squashed):
            return plain
    return ""


_NOT_FOUND: Final = re.compile(r"\b(?:did|could|can) ?not find (?:anything|any|an answer|the answer)\b", re.IGNORECASE)


def is_refusal(question: str, answer: str) -> bool:
    """Returns whether an answer says that the documents do not have one."""
    return bool(_NOT_FOUND.search(answer[:300])) or read_answer(AnswerText(question, answer)).refusal


# -- Intervals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a measure over `n` questions, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float], seed: int) -> Mean | None:
    """Returns the mean of values from 0 to 1, with a bootstrap interval; None without values.

    If all values are equal, a bootstrap would be certain however few there are: the interval is then Wilson's.
    """
    if not values:
        return None
    value = math.fsum(values) / len(values)
    if min(values) == max(values):
        low, high = wilson(math.fsum(values), len(values))
        return Mean(value, low, high, len(values))
    return Mean(value, *_bootstrap(values, seed), len(values))


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher a measure is in the second run, over the `n` questions that both have, with a 95 % interval.

    `changed`: questions with another value. `certain`: the interval excludes 0, and enough questions changed.
    """

    value: float
    low: float
    high: float
    n: int
    changed: int

    @property
    def certain(self) -> bool:
        return self.changed >= LEAST_CHANGED and (self.low > 0 or self.high < 0)


def difference(first: Mapping[str, float], second: Mapping[str, float], seed: int) -> Difference | None:
    """Compares the values of the questions that both runs have; None if there are none."""
    changes = [second[question] - first[question] for question in first if question in second]
    if not changes:
        return None
    value, changed = math.fsum(changes) / len(changes), sum(change != 0 for change in changes)
    if changed == 0:
        most = wilson(0, len(changes))[1]  # the share of questions that may change unseen
        return Difference(0.0, -most, most, len(changes), 0)
    return Difference(value, *_bootstrap(changes, seed), len(changes), changed)


def _bootstrap(values: Iterable[float], seed: int) -> tuple[float, float]:
    """Returns the percentile interval of the mean."""
    known = np.asarray(list(values), np.float64)
    random = np.random.default_rng(seed)
    means = np.array([known[random.integers(0, len(known), len(known))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def as_fields(found: Mean | Difference | None) -> dict[str, Any] | None:
    """Returns the JSON of a mean or a difference."""
    if found is None:
        return None
    fields = {"value": found.value, "low": found.low, "high": found.high}
    rounded: dict[str, Any] = {name: round(value, 4) for name, value in fields.items()}
    more = {"n": found.n} if isinstance(found, Mean) else {"n": found.n, "changed": found.changed}
    return {**rounded, **more, **({"certain": found.certain} if isinstance(found, Difference) else {})}
