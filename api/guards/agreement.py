"""Whether the answer to one question may be given to another that lies near it: the guards, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from api.guards import asks, names, negation, numbers, opposites, order, persons, scope, symbols
from api.guards.foreign import content as foreign_words
from api.guards.foreign import negation as foreign_negation
from api.guards.foreign import opposites as foreign_opposites
from api.guards.foreign import order as foreign_order
from api.guards.words import read_words

GUARDS: Final[tuple[tuple[str, Callable[[Any], Any], Callable[[Any, Any], str]], ...]] = (
    ("numbers", numbers.read, numbers.compare),
    ("symbols", symbols.read, symbols.compare),
    ("negation", negation.read, negation.compare),
    ("opposites", opposites.read, opposites.compare),
    ("order", order.read, order.compare),
    ("names", names.read, names.compare),
    ("scope", scope.read, scope.compare),
    ("persons", persons.read, persons.compare),
    ("asks", asks.read, asks.compare),
    ("foreign_negation", foreign_negation.read, foreign_negation.compare),
    ("foreign_opposites", foreign_opposites.read, foreign_opposites.compare),
    ("foreign_order", foreign_order.read, foreign_order.compare),
    ("foreign_words", foreign_words.read, foreign_words.compare),
)
"""Name, what it reads from the words, and how two readings compare (an empty text: they agree)."""


@dataclass(frozen=True, slots=True)
class Features:
    """What each guard reads from a question, in the order of `GUARDS`. Made by `read`."""

    readings: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The first guard that keeps two questions apart."""

    guard: str
    """The name of one of `GUARDS`."""
    detail: str
    """What differs, as `2020 / 2021`."""


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What one guard says of two questions; `detail` is empty where they agree."""

    guard: str
    agrees: bool
    detail: str


def read(text: str) -> Features:
    """The features of a question, read once for all its candidates."""
    words = read_words(text)
    return Features(tuple(reader(words) for _, reader, _ in GUARDS))


def disagreement(question: str | Features, other: str | Features) -> Disagreement | None:
    """The first guard that fails, or None where one answer serves both. Symmetric but for the detail's sides."""
    for guard, detail in _details(question, other):
        if detail:
            return Disagreement(guard, detail)
    return None


def verdicts(question: str | Features, other: str | Features) -> tuple[GuardVerdict, ...]:
    """What every guard says, in the order they are asked."""
    return tuple(GuardVerdict(guard, not detail, detail) for guard, detail in _details(question, other))


def _details(question: str | Features, other: str | Features) -> Iterator[tuple[str, str]]:
    one = read(question) if isinstance(question, str) else question
    two = read(other) if isinstance(other, str) else other
    for (guard, _, compare), left, right in zip(GUARDS, one.readings, two.readings, strict=True):
        yield guard, compare(left, right)
