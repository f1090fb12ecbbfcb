"""Runs the guards: rules that decide whether the answer to one question also answers a similar one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from operator import call
from typing import Any, Final

from api.guards.answer_form import compare_form, read_form
from api.guards.foreign_languages import (
    compare_foreign_negation,
    compare_foreign_opposites,
    compare_foreign_order,
    compare_foreign_words,
    read_foreign_negation,
    read_foreign_opposites,
    read_foreign_order,
    read_foreign_words,
)
from api.guards.names import compare_names, compare_scope, read_names, read_scope
from api.guards.negation import compare_negation, compare_opposites, read_negation, read_opposites
from api.guards.order import compare_order, read_order
from api.guards.question_types import (
    compare_persons,
    compare_question_types,
    read_persons,
    read_question_types,
)
from api.guards.second_question import compare_questions, read_questions
from api.guards.symbols import compare_numbers, compare_symbols, read_numbers, read_symbols
from api.guards.words import read_words

GUARDS: Final[tuple[tuple[str, Callable[[Any], Any], Callable[[Any, Any], str]], ...]] = (
    ("numbers", read_numbers, compare_numbers),
    ("symbols", read_symbols, compare_symbols),
    ("negation", read_negation, compare_negation),
    ("opposites", read_opposites, compare_opposites),
    ("order", read_order, compare_order),
    ("names", read_names, compare_names),
    ("scope", read_scope, compare_scope),
    ("persons", read_persons, compare_persons),
    ("asks", read_question_types, compare_question_types),
    ("questions", read_questions, compare_questions),
    ("form", read_form, compare_form),
    ("foreign_negation", read_foreign_negation, compare_foreign_negation),
    ("foreign_opposites", read_foreign_opposites, compare_foreign_opposites),
    ("foreign_order", read_foreign_order, compare_foreign_order),
    ("foreign_words", read_foreign_words, compare_foreign_words),
)
"""The name, reader and comparison of each guard, in the order they run.

The reader extracts features from a question's words. The comparison returns an empty string if the features agree.
"""


_READERS: Final = tuple(reader for _, reader, _ in GUARDS)


@dataclass(frozen=True, slots=True)
class Features:
    """The features that each guard reads from a question, in the order of `GUARDS`. Made by `read`."""

    readings: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The first guard that keeps two questions apart."""

    guard: str
    """The name of one of `GUARDS`."""
    detail: str
    """The difference, such as `2020 / 2021`."""


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """The verdict of one guard on two questions. `detail` is empty if they agree."""

    guard: str
    agrees: bool
    detail: str


def read(text: str) -> Features:
    """Reads the features of a question once, for comparison with any number of candidates."""
    words = read_words(text)
    return Features(tuple(map(call, _READERS, repeat(words))))


def disagreement(question: str | Features, other: str | Features) -> Disagreement | None:
    """Returns the first guard that fails, or None if one answer serves both questions.

    Swapping the questions only swaps the sides of the detail.
    """
    one = read(question) if isinstance(question, str) else question
    two = read(other) if isinstance(other, str) else other
    for (guard, _, compare), left, right in zip(GUARDS, one.readings, two.readings, strict=True):
        if detail := compare(left, right):
            return Disagreement(guard, detail)
    return None


def verdicts(question: str, other: str) -> tuple[GuardVerdict, ...]:
    """Returns the verdicts of all guards, in the order they run."""
    readings = zip(GUARDS, read(question).readings, read(other).readings, strict=True)
    details = [(guard, compare(left, right)) for (guard, _, compare), left, right in readings]
    return tuple(GuardVerdict(guard, not detail, detail) for guard, detail in details)
