"""Pairs the statements of two answers that speak of the same, and measures how far the answers agree. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from api.guards.names import is_typo
from api.guards.vocabulary import stem
from api.quality.answer_conflicts import (
    ALIGNED,
    COVERED,
    LIKE_FRAME,
    MAX_REPLACED,
    Conflict,
    Vectors,
    code_conflicts,
    cosine,
    dice,
    displaced,
    further,
    item_conflicts,
    items_of,
    names_turned,
    replaced_words,
    slot,
    statement_conflicts,
)
from api.quality.answer_facts import AnswerFacts, Statement
from api.quality.units import Quantity

Matrix = NDArray[np.float32]

MAX_WHOLE: Final = 1000
"""Characters of an answer that are embedded as a whole."""
MAX_TEXTS: Final = 64
"""Texts that are embedded for one comparison."""


@dataclass(frozen=True, slots=True)
class StatementPair:
    """How two statements that speak of the same compare. Shares are from 0 to 1.

    - `likeness`: of the sentences. `overlap`: the share of common words.
    - `core`: the likeness of what they say beyond the question. `shared`: amounts and names of it that both state.
    - `replaced`: how much words that stand in place of each other differ; 0 if there are none.
    - `slot`: whether these stand behind the same word: with butter, with oil. `displaced`: whether a word stands in
      place of one of the question.
    - `added`: whether only one has further words; `surplus`: how many.
    - `turned`: whether names come in another order.
    """

    likeness: float
    overlap: float
    core: float
    replaced: float
    added: bool
    shared: int
    slot: bool
    displaced: bool
    surplus: int
    turned: bool
    conflicts: tuple[Conflict, ...]


SAME_LISTS: Final = StatementPair(1.0, 1.0, 1.0, 0.0, False, 1, False, False, 0, False, ())


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two answers compare.

    - `pairs`: the statements of both that are each other's nearest. `conflicts`: of the answers as a whole.
    - `likeness`: of the whole texts. `covered`: the share of one answer that the other says too, the smaller of both;
      `most_covered`: the larger.
    - `missing`: facts beyond the question that only one of two paired statements gives. `extra`: statements that
      only one answer makes. `unpaired`: statements that each makes alone.
    - `lead`: 1 if a yes or no fits the other answer, -1 if not, 0 without one.
    - `citations`: the share of common passages; None unless both cite.
    - `words`, `statements`: how many each answer has.
    """

    pairs: tuple[StatementPair, ...]
    conflicts: tuple[Conflict, ...]
    likeness: float
    covered: float
    most_covered: float
    missing: tuple[str, ...]
    extra: int
    unpaired: int
    lead: int
    citations: float | None
    embedded: bool
    words: tuple[int, int]
    statements: tuple[int, int]


class Pairing:
    """The statements of two answers side by side."""

    def __init__(self, one: AnswerFacts, other: AnswerFacts) -> None:
        self.one = one
        self.other = other
        self.overlaps = _overlaps(one.statements, other.statements)
        self._items = items_of(one), items_of(other)

    @property
    def is_english(self) -> bool:
        """Returns whether all statements are English. The embedder that was measured reads no other language well."""
        return all(statement.english for statement in (*self.one.statements, *self.other.statements))

    def texts(self) -> list[str]:
        """Returns the texts whose vectors `agreement` uses: the answers, their statements, and replaced words.

        Statements that both answers contain need none.
        """
        found = dict.fromkeys([_whole(self.one), _whole(self.other)])
        for answer, overlaps in ((self.one, self.overlaps), (self.other, self.overlaps.T)):
            own = overlaps.max(axis=1, initial=0) < 1
            found.update(dict.fromkeys(one.text for one, alone in zip(answer.statements, own, strict=True) if alone))
        for row, column in self._similar():
            one, other = self._at(row, column)
            found.update(dict.fromkeys(filter(None, [*replaced_words(one, other), _core(one), _core(other)])))
        if all(self._items):
            found.update(dict.fromkeys(item for items in self._items for item in items))
        return list(found)[:MAX_TEXTS]

    def _similar(self) -> Iterator[tuple[int, int]]:
        """Yields statements that may speak of the same, before their vectors are known."""
        if self.overlaps.size == 1:
            yield 0, 0
        else:
            for row, column in np.argwhere((self.overlaps >= LIKE_FRAME) & (self.overlaps < 1)):
                yield int(row), int(column)

    def agreement(self, vectors: Vectors | None) -> Agreement:
        """Compares the facts. Without vectors, statements are alike by their words only."""
        likeness, whole = self.overlaps, dice(_stems(self.one), _stems(self.other))
        if vectors is not None:
            cosines = _stack(self.one, vectors) @ _stack(self.other, vectors).T
            likeness = np.maximum(np.where(self._code(), 0, cosines), self.overlaps)
            whole = float(vectors[_whole(self.one)] @ vectors[_whole(self.other)])
        mine, theirs = _covered(self.one, likeness), _covered(self.other, likeness.T)
        conflicts = tuple(_unique(self._conflicts(likeness, vectors)))
        partners = list(self._partners(likeness))
        pairs = tuple(self._pair(row, column, likeness, vectors) for row, column in partners)
        if all(self._items) and not any(conflict.kind == "items" for conflict in conflicts):
            pairs, mine, theirs = (SAME_LISTS,), 1.0, 1.0
        return Agreement(
            pairs=pairs,
            conflicts=conflicts,
            likeness=whole,
            covered=min(mine, theirs),
            most_covered=max(mine, theirs),
            missing=tuple(self._missing({row for row, _ in partners}, {column for _, column in partners})),
            extra=self._extra(likeness),
            unpaired=self._unpaired(likeness, partners),
            lead=_lead(self.one, self.other),
            citations=_common(self.one.cited, self.other.cited),
            embedded=vectors is not None,
            words=(_words(self.one), _words(self.other)),
            statements=(len(self.one.statements), len(self.other.statements)),
        )

    def _at(self, row: int, column: int) -> tuple[Statement, Statement]:
        return self.one.statements[row], self.other.statements[column]

    def _code(self) -> NDArray[np.bool_]:
        """Returns where a line of code meets anything: vectors tell nothing about code."""
        code = [[one.kind == "code" for one in answer.statements] for answer in (self.one, self.other)]
        return np.asarray(np.logical_or.outer(code[0], code[1]))

    def _partners(self, likeness: Matrix) -> Iterator[tuple[int, int]]:
        """Yields the statements that are each other's nearest, by row. The only statements of both are partners."""
        if not likeness.size:
            return
        nearest, back = likeness.argmax(axis=1), likeness.argmax(axis=0)
        for row, column in enumerate(nearest):
            least = LIKE_FRAME if self.one.statements[row].kind == "code" else ALIGNED
            if back[column] == row and (likeness[row, column] >= least or likeness.size == 1):
                yield row, int(column)

    def _pair(self, row: int, column: int, likeness: Matrix, vectors: Vectors | None) -> StatementPair:
        one, other = self._at(row, column)
        overlap, like = float(self.overlaps[row, column]), float(likeness[row, column])
        if "code" in (one.kind, other.kind):
            return StatementPair(
                like, overlap, like, 0.0, False, 0, False, False, 0, False, tuple(code_conflicts(one, other, overlap))
            )
        mine, theirs = further(one, other), further(other, one)
        replaced = 0.0
        if mine and theirs and max(len(mine), len(theirs)) <= MAX_REPLACED:
            replaced = 1 - max(0.0, cosine(" ".join(mine), " ".join(theirs), vectors)) if vectors else 0.5
        core = dice(frozenset(map(stem, one.core)), frozenset(map(stem, other.core)))
        if vectors:
            core = max(core, cosine(_core(one), _core(other), vectors))
        return StatementPair(
            likeness=like,
            overlap=overlap,
            core=core if one.core or other.core else 1.0,
            replaced=replaced,
            added=bool(mine) != bool(theirs),
            shared=_shared(one, other, self.one),
            slot=slot(one, other, mine, theirs),
            displaced=displaced(one, other, mine) or displaced(other, one, theirs),
            surplus=0 if mine and theirs else len(mine) + len(theirs),
            turned=names_turned(one, other),
            conflicts=tuple(_unique(statement_conflicts(one, other, overlap, like, alone=likeness.size == 1))),
        )

    # -- conflicts ----------------------------------------------------------------------------------------------------

    def _conflicts(self, likeness: Matrix, vectors: Vectors | None) -> Iterator[Conflict]:
        yield from self._figures(likeness)
        yield from self._names(likeness)
        yield from self._steps(likeness)
        if all(self._items):
            yield from item_conflicts(*self._items, vectors)

    def _figures(self, likeness: Matrix) -> Iterator[Conflict]:
        """Yields amounts that only one answer gives, where the other gives another amount of the same kind."""
        mine = [(*found, _is_given(found[1], self.one)) for found in _unmatched(self.one, self.other)]
        theirs = [(*found, _is_given(found[1], self.other)) for found in _unmatched(self.other, self.one)]
        alone = len(self.one.statements) == len(self.other.statements) == 1
        for row, left, asked in mine:
            for column, right, also_asked in theirs:
                if (left.weak and right.weak) or (asked and also_asked):
                    continue
                like = float(likeness[row, column])
                near = alone or like >= ALIGNED
                if left.kind == right.kind and not (left.weak or right.weak):
                    yield Conflict("figures", f"{left.shown} / {right.shown}", near)
                elif near and (left.kind == right.kind or "number" in (left.kind, right.kind)):
                    yield Conflict("figures", f"{left.shown} / {right.shown}", False)
                elif near and left.kind.split()[0] == right.kind.split()[0]:
                    yield Conflict("figures", f"{left.shown} / {right.shown}", True)

    def _names(self, likeness: Matrix) -> Iterator[Conflict]:
        mine, theirs = _unknown_names(self.one, self.other), _unknown_names(self.other, self.one)
        asked = self.one.asked & self.other.asked
        alone = len(self.one.statements) == len(self.other.statements) == 1
        initials = _initials(self.one), _initials(self.other)
        for row, left in mine:
            for column, right in theirs:
                like = float(likeness[row, column])
                given = (stem(left) in asked) + (stem(right) in asked)
                if given > 1 or (given and self.overlaps[row, column] < LIKE_FRAME):
                    continue
                if (like < ALIGNED and not alone) or _is_same_name(left, right, *initials):
                    continue
                certain = not (left.startswith("?") or right.startswith("?") or given)
                yield Conflict("names", f"{left.strip('?`')} / {right.strip('?`')}", certain)

    def _steps(self, likeness: Matrix) -> Iterator[Conflict]:
        """Yields steps that come in another order, and a step that only one answer has."""
        if not (self.one.ordered or self.other.ordered):
            return
        pairs = [(row, column) for row, column in self._partners(likeness) if likeness[row, column] >= COVERED[1]]
        for (row, column), (later, behind) in pairwise(pairs):
            if later > row and behind < column:
                shown = f"{self.one.statements[row].text[:40]} / {self.one.statements[later].text[:40]}"
                yield Conflict("order", shown, True)
                return
        sizes = len(self.one.statements), len(self.other.statements)
        if self.one.ordered and self.other.ordered and sizes[0] != sizes[1] and len(pairs) >= min(sizes) > 1:
            yield Conflict("steps", f"{sizes[0]} / {sizes[1]}", True)

    def _missing(self, rows: set[int], columns: set[int]) -> Iterator[str]:
        """Yields amounts and names that only one answer states, in statements that have a partner."""
        for answer, other, paired in ((self.one, self.other, rows), (self.other, self.one, columns)):
            for at, quantity in _unmatched(answer, other):
                small = quantity.kind == "number" and quantity.value <= 2
                if at in paired and not quantity.weak and not small and not _is_given(quantity, other):
                    yield quantity.shown
            for at, name in _unknown_names(answer, other):
                if at in paired and not name.startswith("?") and stem(name) not in other.asked:
                    yield name

    def _unpaired(self, likeness: Matrix, partners: list[tuple[int, int]]) -> int:
        """Returns how many statements of each answer have no partner and are not said elsewhere, the smaller number."""
        alone = []
        for paired, found in (({row for row, _ in partners}, likeness), ({at for _, at in partners}, likeness.T)):
            best = found.max(axis=1, initial=0)
            alone.append(sum(at not in paired and float(best[at]) < COVERED[1] for at in range(len(best))))
        return min(alone)

    def _extra(self, likeness: Matrix) -> int:
        """Returns how many statements only one answer makes."""
        return sum(int((found.max(axis=1, initial=0) < ALIGNED).sum()) for found in (likeness, likeness.T))


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


def _is_given(quantity: Quantity, answer: AnswerFacts) -> bool:
    return any(quantity.matches(known) for known in answer.given)


def _shared(one: Statement, other: Statement, answer: AnswerFacts) -> int:
    """Returns how many amounts and names both state that the question does not."""
    amounts = sum(
        any(left.matches(right) for right in other.quantities)
        and not any(left.matches(known) for known in answer.given)
        for left in one.quantities
        if not left.weak and left.kind != "period"
    )
    mine = {name.lstrip("?") for name in one.names}
    names = {name for name in mine & {name.lstrip("?") for name in other.names} if name in one.names | other.names}
    return amounts + sum(stem(name.strip("`").lower()) not in answer.asked for name in names)


def _unknown_names(answer: AnswerFacts, other: AnswerFacts) -> list[tuple[int, str]]:
    """Returns the names that are not in the other answer."""
    theirs = {name.lstrip("?") for statement in other.statements for name in statement.names}
    return [
        (row, name)
        for row, statement in enumerate(answer.statements)
        for name in sorted(statement.names)
        if statement.kind != "code"
        and name.lstrip("?") not in theirs
        and stem(name.strip("?`").lower()) not in other.words
    ]


def _initials(answer: AnswerFacts) -> str:
    """Returns the first letters of all words."""
    return "".join(re.findall(r"\b\w", " ".join(said.text for said in answer.statements).lower()))


def _is_same_name(left: str, right: str, mine: str, theirs: str) -> bool:
    """Returns whether one name is a typo of the other, or its initials. `mine`, `theirs`: those of the answers."""
    left, right = left.strip("?`"), right.strip("?`")
    if is_typo((left,), (right,)):
        return True
    sides = ((left, theirs), (right, mine))
    return any(short in initials for short, initials in sides if 2 <= len(short) <= 5 and short.isalpha())


def _covered(answer: AnswerFacts, likeness: Matrix) -> float:
    """Returns the share of an answer's statements that the other answer says too. Longer statements count for more."""
    if not likeness.size:
        return 0.0
    low, high = COVERED
    weights = np.array([2 + len(statement.content) for statement in answer.statements], np.float32)
    said = np.clip((likeness.max(axis=1) - low) / (high - low), 0, 1)
    return float((weights * said).sum() / weights.sum())


def _overlaps(one: tuple[Statement, ...], other: tuple[Statement, ...]) -> Matrix:
    """Returns the share of common words, by statement of one answer and of the other. Code is not like prose."""
    found = np.zeros((len(one), len(other)), np.float32)
    theirs = [statement.stems for statement in other]
    for row, statement in enumerate(one):
        mine = statement.stems
        for column, stems in enumerate(theirs):
            if (statement.kind == "code") == (other[column].kind == "code"):
                found[row, column] = dice(mine, stems)
    return found


def _stems(answer: AnswerFacts) -> frozenset[str]:
    return frozenset(word for statement in answer.statements for word in statement.content)


def _words(answer: AnswerFacts) -> int:
    return sum(len(statement.words) for statement in answer.statements)


def _core(statement: Statement) -> str:
    return " ".join(statement.core)


def _whole(answer: AnswerFacts) -> str:
    return " ".join(statement.text for statement in answer.statements)[:MAX_WHOLE]


def _stack(answer: AnswerFacts, vectors: Vectors) -> Matrix:
    unknown = np.zeros_like(vectors[_whole(answer)])
    return np.stack([vectors.get(statement.text, unknown) for statement in answer.statements])


def _lead(one: AnswerFacts, other: AnswerFacts) -> int:
    """Returns whether the yes or no of one answer fits the first statement of the other."""
    for answer, plain in ((one, other), (other, one)):
        if answer.affirms is not None and plain.affirms is None:
            return 1 if answer.affirms != plain.statements[0].negated else -1
    return int(one.affirms is not None and one.affirms == other.affirms)


def _common(one: frozenset[tuple[str, int]], other: frozenset[tuple[str, int]]) -> float | None:
    return len(one & other) / len(one | other) if one and other else None


def _unique(conflicts: Iterable[Conflict]) -> Iterator[Conflict]:
    """Yields each kind of conflict once, a certain one if there is one."""
    best: dict[str, Conflict] = {}
    for conflict in conflicts:
        if conflict.kind not in best or (conflict.certain and not best[conflict.kind].certain):
            best[conflict.kind] = conflict
    yield from best.values()
