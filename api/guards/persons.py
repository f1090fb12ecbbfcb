"""Guard `persons`: can I cancel is not can you cancel, nor my address your address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from api.guards.clauses import KINDS, clauses
from api.guards.vocabulary import stem
from api.guards.words import Words
from api.languages.function_words import words_in

ANYBODY: Final = words_in("should must may")
"""With these `you` is mostly anybody: should you rinse rice?"""
BEING: Final = words_in("is are was were")
"""Before `my` and `your` where these are what is asked: what is your name; not: does it lower your score."""
FIRST: Final = words_in("me us")
PRONOUNS: Final = words_in("i we you my our your")
NONE: Final[frozenset[str]] = frozenset()
NO_SUBJECTS: Final[frozenset[tuple[str, str]]] = frozenset()


@dataclass(frozen=True, slots=True)
class Persons:
    """Who is to do it, and whose things are meant."""

    subjects: frozenset[tuple[str, str]] = NO_SUBJECTS
    """I or you, with the kind of auxiliary: of the questions that yes or no answers."""
    towards: str = ""
    """`I to you` or `you to me`, where a question word asks."""
    mine: frozenset[str] = NONE
    yours: frozenset[str] = NONE
    """Stems after `my` and `your`."""


NOBODY: Final = Persons()


def read(question: Words) -> Persons:
    """Polite forms (can you tell me) and `you` for anybody (how do you boil an egg) name nobody."""
    words = question.words
    if not question.english or PRONOUNS.isdisjoint(words):
        return NOBODY
    subjects: set[tuple[str, str]] = set()
    towards = ""
    anybody = False
    for clause in clauses(question):
        if clause.asked:
            towards = towards or _towards(clause.person, clause.rest)
            anybody |= clause.person == "you"
        elif clause.person and not clause.request and not _anybody(clause.auxiliary, clause.mode):
            subjects.add((clause.person, KINDS[clause.auxiliary]))
    yours = NONE if anybody else _owned(words, ("your",))
    return Persons(frozenset(subjects), towards, _owned(words, ("my", "our")), yours)


def compare(one: Persons, other: Persons) -> str:
    """Who differs, else an empty text."""
    if one is other:
        return ""
    if len(one.subjects) == len(other.subjects) == 1:
        (mine, auxiliary), (theirs, another) = min(one.subjects), min(other.subjects)
        if mine != theirs and auxiliary == another:
            return f"{mine} / {theirs}"
    if one.towards and other.towards and one.towards != other.towards:
        return f"{one.towards} / {other.towards}"
    return _whose("my", one, "your", other) or _whose("your", one, "my", other)


def _whose(my: str, one: Persons, your: str, other: Persons) -> str:
    """my name / your name, where neither speaks of both."""
    left = one.mine - one.yours if my == "my" else one.yours - one.mine
    right = other.yours - other.mine if your == "your" else other.mine - other.yours
    shared = left & right
    return f"{my} {min(shared)} / {your} {min(shared)}" if shared else ""


def _owned(words: tuple[str, ...], owners: tuple[str, ...]) -> frozenset[str]:
    if not any(owner in words for owner in owners):
        return NONE
    return frozenset(
        stem(after)
        for before, owner, after in zip(words, words[1:], words[2:], strict=False)
        if owner in owners and before in BEING
    )


def _towards(person: str, rest: tuple[str, ...]) -> str:
    """How can I help you, how can you help me."""
    if person == "I" and "you" in rest:
        return "I to you"
    return "you to me" if person == "you" and not FIRST.isdisjoint(rest) else ""


def _anybody(auxiliary: str, mode: str) -> bool:
    return auxiliary in ANYBODY or mode == "must"
