"""Compares the facts of two answers: pairs the statements that speak of the same, and lists where they contradict.

Pure. A conflict is certain where two statements are otherwise the same, and a doubt where they are only similar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from api.guards.names import compare_scope, is_typo
from api.guards.negation import compare_opposites
from api.guards.order import compare_order
from api.guards.vocabulary import stem
from api.quality.answer_facts import CONDITIONS, AnswerFacts, Statement
from api.quality.quantities import Quantity

Matrix = NDArray[np.float32]
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
REPLACED: Final = (0.45, 0.62)
"""Cosine up to which words that stand in place of each other mean something else, and from which they mean the same."""
MAX_REPLACED: Final = 3
MAX_WHOLE: Final = 1000
"""Characters of an answer that are embedded as a whole."""
MAX_TEXTS: Final = 64
"""Texts that are embedded for one comparison."""
_CLAUSE_END: Final = re.compile(r"[,;:()]|\b(?:and|but|while|whereas|or|then)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A difference between two answers: its kind, and both sides such as `5 day / 10 day`."""

    kind: str
    detail: str
    certain: bool

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two answers compare. Shares are from 0 to 1.

    `covered`: the share of the statements of one answer that the other says too, the smaller of both. `likeness`: of
    the texts as a whole. `missing`: facts that only one of them states. `citations`: the share of common passages; None
    unless both cite.
    """

    conflicts: tuple[Conflict, ...]
    covered: float
    most_covered: float
    likeness: float
    missing: tuple[str, ...]
    citations: float | None
    embedded: bool


class Pairing:
    """The statements of two answers side by side."""

    def __init__(self, one: AnswerFacts, other: AnswerFacts) -> None:
        self.one = one
        self.other = other
        self.overlaps = _overlaps(one.statements, other.statements)

    def texts(self) -> list[str]:
        """Returns the texts whose vectors `agreement` uses: the answers, their statements, and replaced words.

        Statements that both answers contain need none.
        """
        found = dict.fromkeys([_whole(self.one), _whole(self.other)])
        for answer, overlaps in ((self.one, self.overlaps), (self.other, self.overlaps.T)):
            own = overlaps.max(axis=1, initial=0) < 1
            found.update(dict.fromkeys(one.text for one, alone in zip(answer.statements, own, strict=True) if alone))
        for row, column in self._similar():
            found.update(dict.fromkeys(filter(None, _replaced(*self._at(row, column)))))
        return list(found)[:MAX_TEXTS]

    def agreement(self, vectors: Vectors | None) -> Agreement:
        """Compares the facts. Without vectors, statements are alike by their words only."""
        likeness, whole = self.overlaps, _dice(_stems(self.one), _stems(self.other))
        if vectors is not None:
            cosines = _stack(self.one, vectors) @ _stack(self.other, vectors).T
            likeness = np.maximum(np.where(self._code(), 0, cosines), self.overlaps)
            whole = float(vectors[_whole(self.one)] @ vectors[_whole(self.other)])
        conflicts = list(_unique(self._conflicts(likeness, vectors)))
        mine, theirs = _covered(self.one, likeness), _covered(self.other, likeness.T)
        return Agreement(
            conflicts=tuple(conflicts),
            covered=min(mine, theirs),
            most_covered=max(mine, theirs),
            likeness=whole,
            missing=tuple(self._missing()),
            citations=_common(self.one.cited, self.other.cited),
            embedded=vectors is not None,
        )

    def _at(self, row: int, column: int) -> tuple[Statement, Statement]:
        return self.one.statements[row], self.other.statements[column]

    def _code(self) -> NDArray[np.bool_]:
        """Returns where a line of code meets anything: vectors tell nothing about code."""
        code = [[one.kind == "code" for one in answer.statements] for answer in (self.one, self.other)]
        return np.asarray(np.logical_or.outer(code[0], code[1]))

    def _similar(self) -> Iterator[tuple[int, int]]:
        for row, column in np.argwhere((self.overlaps >= LIKE_FRAME) & (self.overlaps < 1)):
            yield int(row), int(column)

    # -- conflicts ----------------------------------------------------------------------------------------------------

    def _conflicts(self, likeness: Matrix, vectors: Vectors | None) -> Iterator[Conflict]:
        yield from self._figures(likeness)
        yield from self._names(likeness)
        yield from self._sequence(likeness)
        for row, column in _partners(likeness):
            one, other = self._at(row, column)
            overlap, like = float(self.overlaps[row, column]), float(likeness[row, column])
            if one.kind == "code" or other.kind == "code":
                yield from _code_conflicts(one, other, overlap)
            else:
                yield from _statement_conflicts(one, other, overlap, like)
                yield from _replacements(one, other, overlap, vectors)

    def _figures(self, likeness: Matrix) -> Iterator[Conflict]:
        """Yields amounts that only one answer gives, where the other gives another amount of the same kind."""
        mine, theirs = _unmatched(self.one, self.other), _unmatched(self.other, self.one)
        for row, left in mine:
            for column, right in theirs:
                if (left.kind == right.kind or "number" in (left.kind, right.kind)) and not (left.weak and right.weak):
                    like = float(likeness[row, column])
                    certain = left.kind == right.kind and like >= ALIGNED and not (left.weak or right.weak)
                    if like >= ALIGNED or left.kind == right.kind:
                        yield Conflict("figures", f"{left.shown} / {right.shown}", certain)

    def _names(self, likeness: Matrix) -> Iterator[Conflict]:
        mine, theirs = _unknown_names(self.one, self.other), _unknown_names(self.other, self.one)
        for row, left in mine:
            for column, right in theirs:
                like = float(likeness[row, column])
                if like < ALIGNED or _is_same_name(left, right, self.one, self.other):
                    continue
                strong = not (left.startswith("?") or right.startswith("?"))
                certain = strong and float(self.overlaps[row, column]) >= LIKE_FRAME
                yield Conflict("names", f"{left.strip('?`')} / {right.strip('?`')}", certain)

    def _sequence(self, likeness: Matrix) -> Iterator[Conflict]:
        """Yields steps that come in another order."""
        if not (self.one.ordered and self.other.ordered):
            return
        pairs = [(row, column) for row, column in _partners(likeness) if likeness[row, column] >= COVERED[1]]
        for (row, column), (later, behind) in pairwise(pairs):
            if later > row and behind < column:
                yield Conflict(
                    "order", f"{self.one.statements[row].text[:40]} / {self.one.statements[later].text[:40]}", True
                )
                return

    def _missing(self) -> Iterator[str]:
        """Yields amounts and names that only one answer states."""
        for answer, other in ((self.one, self.other), (self.other, self.one)):
            for _, quantity in _unmatched(answer, other):
                if not quantity.weak:
                    yield quantity.shown
            for _, name in _unknown_names(answer, other):
                if not name.startswith("?"):
                    yield name


def _statement_conflicts(one: Statement, other: Statement, overlap: float, like: float) -> Iterator[Conflict]:
    """Yields what two similar statements say differently."""
    certain = overlap >= SAME_FRAME
    if overlap < LIKE_FRAME and like < COVERED[1]:
        return
    poles = compare_opposites(one.poles, other.poles)
    if (one.negations - other.negations) % 2:
        if not poles:
            yield Conflict("negation", f"{one.negations} / {other.negations}", certain)
    elif poles:
        yield Conflict("opposites", poles, certain)
    if scope := compare_scope(one.scope, other.scope):
        yield Conflict("scope", scope, certain)
    if overlap >= SAME_FRAME and (order := compare_order(one.order, other.order)):
        yield Conflict("word order", order, True)
    for axis in one.axes.keys() & other.axes.keys():
        left, right = one.axes[axis], other.axes[axis]
        if left.isdisjoint(right):
            yield Conflict(axis, f"{'+'.join(sorted(left))} / {'+'.join(sorted(right))}", certain)
    left, right = CONDITIONS.intersection(one.words), CONDITIONS.intersection(other.words)
    if left != right and certain:
        shown = f"{'+'.join(sorted(left)) or 'none'} / {'+'.join(sorted(right)) or 'none'}"
        yield Conflict("condition", shown, bool(left and right and "unless" in left ^ right))
    if swapped := _swapped_figures(one, other):
        yield Conflict("figures", swapped, certain)


def _replacements(one: Statement, other: Statement, overlap: float, vectors: Vectors | None) -> Iterator[Conflict]:
    """Yields words in place of each other that do not mean the same: the red button, the green button."""
    if overlap < SAME_FRAME:
        return
    mine, theirs = _replaced(one, other)
    if not (mine and theirs):
        return
    if vectors is None or mine not in vectors or theirs not in vectors:
        yield Conflict("words", f"{mine} / {theirs}", False)
        return
    cosine = float(vectors[mine] @ vectors[theirs])
    if cosine < REPLACED[1]:
        yield Conflict("words", f"{mine} / {theirs}", cosine < REPLACED[0])


def _code_conflicts(one: Statement, other: Statement, overlap: float) -> Iterator[Conflict]:
    mine, theirs = one.names - other.names, other.names - one.names
    if (mine or theirs) and overlap >= LIKE_FRAME:
        shown = f"{' '.join(sorted(mine)) or 'none'} / {' '.join(sorted(theirs)) or 'none'}"
        yield Conflict("code", shown.replace("`", ""), True)


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


def _clauses(statement: Statement) -> list[tuple[Quantity, frozenset[str]]]:
    """Returns each amount that stands alone in its clause, and the words of that clause."""
    if len(statement.quantities) < 2:
        return []
    ends = [0, *(found.start() for found in _CLAUSE_END.finditer(statement.text)), len(statement.text)]
    clauses: list[tuple[Quantity, frozenset[str]]] = []
    for start, end in pairwise(ends):
        inside = [one for one in statement.quantities if start <= one.start < end]
        if len(inside) == 1:
            words = re.findall(r"[^\W\d_]+", statement.text[start:end].lower())
            clauses.append((inside[0], frozenset(map(stem, words))))
    return clauses


def _replaced(one: Statement, other: Statement) -> tuple[str, str]:
    """Returns the words that stand in place of each other in two similar statements; empty if they are too many."""
    mine, theirs = one.stems - other.stems, other.stems - one.stems
    if not (mine and theirs) or max(len(mine), len(theirs)) > MAX_REPLACED:
        return "", ""
    left = " ".join(word for word in one.words if stem(word) in mine)
    return left, " ".join(word for word in other.words if stem(word) in theirs)


# -- facts of whole answers -------------------------------------------------------------------------------------------


def _unmatched(answer: AnswerFacts, other: AnswerFacts) -> list[tuple[int, Quantity]]:
    """Returns the amounts that the other answer does not give, with the index of their statement."""
    theirs = [quantity for statement in other.statements for quantity in statement.quantities]
    return [
        (row, quantity)
        for row, statement in enumerate(answer.statements)
        for quantity in statement.quantities
        if not any(quantity.matches(known) for known in theirs)
    ]


def _unknown_names(answer: AnswerFacts, other: AnswerFacts) -> list[tuple[int, str]]:
    """Returns the names that are not in the other answer or its question."""
    theirs = {name.lstrip("?") for statement in other.statements for name in statement.names}
    return [
        (row, name)
        for row, statement in enumerate(answer.statements)
        for name in sorted(statement.names)
        if name.lstrip("?") not in theirs and stem(name.strip("?`").lower()) not in other.words
    ]


def _is_same_name(left: str, right: str, one: AnswerFacts, other: AnswerFacts) -> bool:
    """Returns whether one name is a typo of the other, or its initials."""
    left, right = left.strip("?`"), right.strip("?`")
    if is_typo((left,), (right,)):
        return True
    return any(
        short
        in "".join(word[0] for word in re.findall(r"\w+", " ".join(said.text for said in facts.statements).lower()))
        for short, facts in ((left, other), (right, one))
        if 2 <= len(short) <= 5 and short.isalpha()
    )


def _covered(answer: AnswerFacts, likeness: Matrix) -> float:
    """Returns the share of an answer's statements that the other answer says too. Longer statements count for more."""
    if not likeness.size:
        return 0.0
    low, high = COVERED
    weights = np.array([2 + len(statement.content) for statement in answer.statements], np.float32)
    said = np.clip((likeness.max(axis=1) - low) / (high - low), 0, 1)
    return float((weights * said).sum() / weights.sum())


def _partners(likeness: Matrix) -> Iterator[tuple[int, int]]:
    """Yields the statements that are each other's nearest, by row."""
    if not likeness.size:
        return
    nearest, back = likeness.argmax(axis=1), likeness.argmax(axis=0)
    for row, column in enumerate(nearest):
        if back[column] == row and likeness[row, column] >= ALIGNED:
            yield row, int(column)


def _overlaps(one: tuple[Statement, ...], other: tuple[Statement, ...]) -> Matrix:
    """Returns the share of common words, by statement of one answer and of the other. Code is not like prose."""
    found = np.zeros((len(one), len(other)), np.float32)
    theirs = [statement.stems for statement in other]
    for row, statement in enumerate(one):
        mine = statement.stems
        for column, stems in enumerate(theirs):
            if (statement.kind == "code") == (other[column].kind == "code"):
                found[row, column] = _dice(mine, stems)
    return found


def _dice(one: frozenset[str], other: frozenset[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 0.0


def _stems(answer: AnswerFacts) -> frozenset[str]:
    return frozenset(word for statement in answer.statements for word in statement.content)


def _whole(answer: AnswerFacts) -> str:
    return " ".join(statement.text for statement in answer.statements)[:MAX_WHOLE]


def _stack(answer: AnswerFacts, vectors: Vectors) -> Matrix:
    unknown = np.zeros_like(vectors[_whole(answer)])
    return np.stack([vectors.get(statement.text, unknown) for statement in answer.statements])


def _common(one: frozenset[tuple[str, int]], other: frozenset[tuple[str, int]]) -> float | None:
    return len(one & other) / len(one | other) if one and other else None


def _unique(conflicts: Iterable[Conflict]) -> Iterator[Conflict]:
    """Yields each kind of conflict once, a certain one if there is one."""
    best: dict[str, Conflict] = {}
    for conflict in conflicts:
        if conflict.kind not in best or (conflict.certain and not best[conflict.kind].certain):
            best[conflict.kind] = conflict
    yield from best.values()
