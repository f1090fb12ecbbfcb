"""Lists where two statements that speak of the same contradict each other. Pure.

A conflict is certain where the statements are otherwise the same, and a doubt where they are only similar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from api.guards.names import compare_scope
from api.guards.negation import compare_opposites
from api.guards.order import compare_order
from api.guards.vocabulary import FUNCTION_WORDS, NUMBER_WORDS, stem
from api.languages.function_words import words_in
from api.quality.answer_facts import AnswerFacts, Statement, content_stems
from api.quality.answer_words import CONDITIONS, LIGHT, NEGATORS
from api.quality.units import Quantity

Vector = NDArray[np.float32]
Vectors = Mapping[str, Vector]
"""Unit vectors by text."""

ALIGNED: Final = 0.55
"""Likeness from which two statements speak of the same thing."""
SAME_FRAME: Final = 0.6
"""Share of common words from which a difference is a contradiction."""
LIKE_FRAME: Final = 0.34
"""Share of common words from which a difference is a doubt."""
COVERED: Final = (0.45, 0.75)
"""Likeness up to which the other answer does not say a statement, and from which it does."""
SAME_ITEM: Final = 0.6
"""Share of common words from which two items of a list are the same."""
ALIKE_ITEM: Final = 0.7
"""Cosine from which they are, where they have several words."""
LIKE_ITEM: Final = 0.5
"""Cosine from which they may be."""
MAX_REPLACED: Final = 4
_CLAUSE_END: Final = re.compile(r"[,;:()]|\b(?:and|but|while|whereas|or|then)\b", re.IGNORECASE)
_ENUMERATION: Final = re.compile(r",? \b(?:and|or|as well as|plus)\b |[,;] ?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A difference between two answers: its kind, and both sides such as `5 day / 10 day`."""

    kind: str
    detail: str
    certain: bool

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def statement_conflicts(
    one: Statement, other: Statement, overlap: float, like: float, *, alone: bool
) -> Iterator[Conflict]:
    """Yields what two similar statements say differently. `alone`: both answers consist of them."""
    certain = overlap >= SAME_FRAME
    if overlap < LIKE_FRAME and like < (COVERED[0] if alone else COVERED[1]):
        return
    poles = _opposites(one, other)
    turned_over = bool(compare_opposites(one.poles, other.poles))
    turned = _turned_around(one, other)
    if one.negated != other.negated:
        if not turned_over:
            yield Conflict("negation", "not / none" if one.negated else "none / not", certain or like >= 0.8)
    elif poles and not turned:
        yield Conflict("opposites", poles, certain or like >= 0.8)
    if scope := compare_scope(one.scope, other.scope):
        yield Conflict("scope", scope, certain)
    if certain and not poles and (turned or compare_order(one.order, other.order)):
        yield Conflict("word order", f"{one.text[:60]} / {other.text[:60]}", True)
    for axis in one.axes.keys() & other.axes.keys():
        if (turned and axis in ("trend", "speed")) or (
            axis == "trend" and "bound" in one.axes and "bound" in other.axes
        ):
            continue
        left, right = one.axes[axis], other.axes[axis]
        if left.isdisjoint(right):
            yield Conflict(axis, f"{'+'.join(sorted(left))} / {'+'.join(sorted(right))}", certain)
    mine, theirs = CONDITIONS.intersection(one.words), CONDITIONS.intersection(other.words)
    if mine != theirs:
        shown = f"{'+'.join(sorted(mine)) or 'none'} / {'+'.join(sorted(theirs)) or 'none'}"
        reverse = bool(mine and theirs and "unless" in mine ^ theirs)
        yield Conflict("terms" if reverse else "condition", shown, reverse)
    if swapped := _swapped_figures(one, other):
        yield Conflict("figures", swapped, certain)


def _opposites(one: Statement, other: Statement) -> str:
    """Returns the opposites that the statements name, but not where one of them names both."""
    if NEGATORS.isdisjoint(one.words) != NEGATORS.isdisjoint(other.words):
        return ""  # not dangerous, safe
    found = compare_opposites(one.poles, other.poles)
    left, _, right = found.partition(" / ")
    if {left, right} == {"more", "less"} and "bound" in one.axes and "bound" in other.axes:
        return ""  # 16 GB or more, no less than 16 GB
    return "" if set(left.split("+")) & set(right.split("+")) else found


def _turned_around(one: Statement, other: Statement) -> bool:
    """Returns whether the sides of `than` changed places: the bus is slower than the train."""
    if "than" not in one.words or "than" not in other.words:
        return False
    before, after = _sides(one)
    left, right = _sides(other)
    crossed = len((before & right) - left) + len((after & left) - right)
    return crossed > 1 or (crossed == 1 and not (before & left or after & right))


def _sides(statement: Statement) -> tuple[frozenset[str], frozenset[str]]:
    at = statement.words.index("than")
    return content_stems(statement.words[:at]), content_stems(statement.words[at:])


def code_conflicts(one: Statement, other: Statement, overlap: float) -> Iterator[Conflict]:
    if overlap >= LIKE_FRAME and one.content != other.content:
        mine = [token for token in one.content if token not in other.content] or one.content
        theirs = [token for token in other.content if token not in one.content] or other.content
        yield Conflict("code", f"{' '.join(mine)} / {' '.join(theirs)}", True)


def item_conflicts(mine: tuple[str, ...], theirs: tuple[str, ...], vectors: Vectors | None) -> Iterator[Conflict]:
    """Yields items that only one list has, if most of the shorter list is in the other."""
    left, right = _unlisted(mine, theirs, vectors), _unlisted(theirs, mine, vectors)
    common = min(len(mine) - len(left), len(theirs) - len(right))
    if common >= 2 or common * 2 >= min(len(mine), len(theirs)):
        alike = bool(left and right and vectors and cosine(left[0], right[0], vectors) >= LIKE_ITEM)
        if left or right:
            shown = f"{', '.join(left) or 'none'} / {', '.join(right) or 'none'}"
            yield Conflict("items", shown, common >= 2 and not alike)


def _unlisted(items: tuple[str, ...], others: tuple[str, ...], vectors: Vectors | None) -> list[str]:
    known = [content_stems(other.lower().split()) for other in others]
    return [
        item for item in items if not any(_same_item(item, *pair, vectors) for pair in zip(others, known, strict=True))
    ]


def _same_item(item: str, other: str, stems: frozenset[str], vectors: Vectors | None) -> bool:
    mine = content_stems(item.lower().split())
    if mine and stems and len(mine & stems) / min(len(mine), len(stems)) >= SAME_ITEM:
        return True
    wordy = len(mine) > 1 and len(stems) > 1
    return wordy and vectors is not None and cosine(item, other, vectors) >= ALIKE_ITEM


def items_of(answer: AnswerFacts) -> tuple[str, ...]:
    """Returns the items of a list, or of a sentence that enumerates three or more."""
    items = tuple(statement.text.rstrip(".") for statement in answer.statements if statement.kind == "item")
    if len(items) > 1:
        return items
    if len(answer.statements) != 1 or answer.ordered:
        return ()
    parts = [part.strip(" .") for part in _ENUMERATION.split(answer.statements[0].text)]
    return tuple(filter(None, parts)) if len(parts) > 2 and all(len(part.split()) <= 7 for part in parts) else ()


def _swapped_figures(one: Statement, other: Statement) -> str:
    """Returns two amounts that changed places: 10 days for Basic and 20 for Pro."""
    mine, theirs = _clauses(one), _clauses(other)
    if len(mine) < 2 or len(theirs) < 2:
        return ""
    for (left, words), (right, other_words) in pairwise(mine):
        there = [next((said for amount, said in theirs if amount.matches(wanted)), None) for wanted in (left, right)]
        if left.matches(right) or there[0] is None or there[1] is None:
            continue
        own, foreign = words - other_words, other_words - words
        straight = len(own & there[0]) + len(foreign & there[1])
        crossed = len(own & there[1]) + len(foreign & there[0])
        if crossed > straight:
            return f"{left.shown}, {right.shown} / {right.shown}, {left.shown}"
    return ""


_SLOTS: Final = FUNCTION_WORDS | words_in("only between behind under near through without during within among")


def slot(one: Statement, other: Statement, mine: list[str], theirs: list[str]) -> bool:
    """Returns whether words in place of each other stand behind the same word: made with butter, made with oil."""
    return bool(_before(one, mine) & _before(other, theirs))


def displaced(one: Statement, other: Statement, mine: list[str]) -> bool:
    """Returns whether a word of `one` stands in place of a word of the question that `other` repeats."""
    if not mine:
        return False
    known = set(one.words)
    repeated = [word for word in other.words if word not in known and word not in other.core and word not in LIGHT]
    return bool(_before(one, mine) & _before(other, [word for word in repeated if word not in FUNCTION_WORDS]))


def _before(statement: Statement, wanted: list[str]) -> set[str]:
    known = set(wanted)
    return {
        before
        for before, word in pairwise(("", *statement.words))
        if word in known and (before in _SLOTS or before in NUMBER_WORDS or not before)
    }


def names_turned(one: Statement, other: Statement) -> bool:
    """Returns whether names that both have come in another order: Ann before Bob. Figures of clauses may explain it."""
    common = {name for name in one.names & other.names if name.isalpha()}
    if len(common) < 2 or (len(_clauses(one)) > 1 and len(_clauses(other)) > 1):
        return False
    orders = [[name for name in dict.fromkeys(said.words) if name in common] for said in (one, other)]
    return orders[0] != orders[1]


def _clauses(statement: Statement) -> list[tuple[Quantity, frozenset[str]]]:
    """Returns each amount that stands alone in its clause, and the words of that clause."""
    if len(statement.quantities) < 2:
        return []
    ends = [0, *(found.start() for found in _CLAUSE_END.finditer(statement.text)), len(statement.text)]
    clauses: list[tuple[Quantity, frozenset[str]]] = []
    for start, end in pairwise(ends):
        inside = [one for one in statement.quantities if start <= one.start < end and one.kind != "period"]
        if len(inside) == 1:
            words = re.findall(r"[^\W\d_]+", statement.text[start:end].lower())
            clauses.append((inside[0], frozenset(map(stem, words))))
    return clauses


def further(one: Statement, other: Statement) -> list[str]:
    """Returns the words beyond the question that only `one` has."""
    return [word for word in one.core if stem(word) not in other.stems]


def replaced_words(one: Statement, other: Statement) -> tuple[str, str]:
    """Returns the words that stand in place of each other in two similar statements; empty if they are too many."""
    left, right = further(one, other), further(other, one)
    if not (left and right) or max(len(left), len(right)) > MAX_REPLACED:
        return "", ""
    return " ".join(left), " ".join(right)


def dice(one: frozenset[str], other: frozenset[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 0.0


def cosine(one: str, other: str, vectors: Vectors) -> float:
    return float(vectors[one] @ vectors[other]) if one in vectors and other in vectors else 0.0
