"""Guards `asks` and `persons`: the type of a question, and who its pronouns refer to.

`asks` distinguishes whether, who, whom, when, where, why, how much and how long. It ignores other ways to ask.
`persons` rejects "can I cancel" for "can you cancel", and "my address" for "your address". Both look at how the clauses
of a question open: `can I`, `who must`, `do you have to`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from api.guards.vocabulary import ASKING_VERBS, ASKING_WORDS, AUXILIARIES, REQUESTS, SUBJECT_PRONOUNS, stem
from api.guards.words import Words
from api.languages.function_words import words_in

PERSON_BY_PRONOUN: Final = {"i": "I", "we": "I", "you": "you"}
CLAUSE_OPENERS: Final = words_in("and so but please hi hello hey also ok then well now just anyway if")
HAVE_FORMS: Final = words_in("have")
NEED_FORMS: Final = words_in("need needs")
PRONOUNS: Final = frozenset((word,) for word in words_in("i we you he she it they there not"))
ADVERBS: Final = words_in("please kindly just also maybe possibly even actually not quickly")
PERMISSION_MODALS: Final = words_in("can could may might")
OBLIGATION_MODALS: Final = words_in("must")
PERMISSION_ADJECTIVES: Final = words_in("allowed permitted able")
OBLIGATION_ADJECTIVES: Final = words_in("required obliged obligated forced")


AUXILIARY_GROUPS: Final = {
    word: kind
    for kind, words in (
        ("can", "can could may might"),
        ("will", "will would shall should must"),
        ("do", "do does did"),
        ("be", "is are am was were"),
        ("have", "has have had"),
    )
    for word in words.split()
}
"""The group of each auxiliary. Auxiliaries of one group are interchangeable."""


class Clause(NamedTuple):
    """A clause that opens with an auxiliary verb.

    `who`: the clause asks who. `person`: `I` or `you` if that is the subject, else empty. `modality`: `may`, `must` or
    empty. `request`: the auxiliary only makes a request polite.
    """

    auxiliary: str
    who: bool
    asked: bool
    """True if a question word precedes the auxiliary."""
    person: str
    modality: str
    request: bool
    rest: tuple[str, ...]
    """The first few words after the subject."""


def clauses(question: Words) -> Iterator[Clause]:
    """Yields each clause that opens with an auxiliary, with or without a question word before it."""
    words, starts = question.words, question.clause_starts
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if word in NEED_FORMS:
            if before == "who" and index - 1 in starts:
                yield _clause(words, index, who=True, asked=True)
        elif word in AUXILIARIES:
            if index in starts or before in CLAUSE_OPENERS:
                if word not in HAVE_FORMS or words[index + 1 : index + 2] in PRONOUNS:
                    yield _clause(words, index, who=False, asked=False)
            elif any(words[start] in ASKING_WORDS for start in range(max(index - 3, 0), index) if start in starts):
                yield _clause(words, index, who=before == "who", asked=True)


def _clause(words: Sequence[str], index: int, who: bool, asked: bool) -> Clause:
    auxiliary = words[index]
    subject = words[index + 1] if index + 1 < len(words) else ""
    if subject == "not" and index + 2 < len(words):
        index += 1
        subject = words[index + 1]
    person = PERSON_BY_PRONOUN.get(subject, "")
    rest = tuple(word for word in words[index + (1 if who else 2) : index + 8] if word not in ADVERBS)
    request = (
        person == "you"
        and auxiliary in ("can", "could", "will", "would", "do", "are")
        and not REQUESTS.isdisjoint(words[index + 2 : index + 5])
    )
    return Clause(auxiliary, who, asked, person, _modality(auxiliary, rest), request, rest)


def _modality(auxiliary: str, rest: Sequence[str]) -> str:
    """Returns `may` for permission (can I, am I allowed) and `must` for obligation (must I, do I have to)."""
    if auxiliary in PERMISSION_MODALS:
        return "may"
    first, second = (*rest[:2], "", "")[:2]
    if auxiliary in OBLIGATION_MODALS:
        return "must"
    if auxiliary in ("do", "does", "did", "will", "would") and (first == "need" or (first, second) == ("have", "to")):
        return "must"
    if auxiliary in ("has", "have", "need", "needs") and first == "to":
        return "must"
    if auxiliary in ("am", "is", "are"):
        head = rest[:3]
        return (
            "may"
            if not PERMISSION_ADJECTIVES.isdisjoint(head)
            else "must"
            if not OBLIGATION_ADJECTIVES.isdisjoint(head)
            else ""
        )
    return ""


QUESTION_WORD_TYPES: Final = {"who": "who", "whom": "who", "why": "why"}
CONJUNCTION_TYPES: Final = {"when": "when", "where": "where"}
"""Also conjunctions (when I log in, it fails): question words only before a verb or after a verb of asking."""
HOW_TYPES: Final = {
    "much": "how much", "many": "how much", "long": "how long", "often": "how often", "far": "how far",
    "old": "how old", "tall": "how tall", "come": "why",
}  # fmt: skip
VERBS: Final = words_in(
    """
    is are was were do does did can could will would should shall has have had must may might to
    """
)
DURATION_WORDS: Final = words_in("time longer minutes hours days weeks months years")
DO_AUXILIARIES: Final = words_in("do does did")
END_TIME_WORDS: Final = words_in("until till before will take takes")
QUESTION_WORDS: Final = words_in("who whom whose when where why how what which whether if")
IMPLIED_QUESTION_WORDS: Final = words_in(
    """
    location located place anywhere somewhere spot near nearby nearest closest around time date day hours reason cause
    anyone anybody someone somebody person
    """
)
"""Imply where, when, why or who without the question word: is there anywhere to park?"""
MODALITIES: Final = words_in("may must")
NEVER_YES_OR_NO: Final = words_in("who whom when where why")
"""Types that a yes-or-no answer never satisfies. "Is there a fee?" and "How much is the fee?" can share an answer."""
OPENERS: Final = words_in("and so but please hi hello hey also ok then well now just")


def read_question_types(question: Words) -> frozenset[str]:
    """Returns the types of the question and its modality; empty for any other question."""
    if not question.english:
        return frozenset()
    words = question.words
    types: set[str] = set()
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        after = words[index + 1] if index + 1 < len(words) else ""
        opens = index in question.clause_starts or before in OPENERS
        if word == "how" and after in HOW_TYPES:
            types.update(_how_types(words, index + 1))
        elif word in QUESTION_WORD_TYPES and (opens or before in ASKING_VERBS):
            types.add("whom" if _is_object(words, index) else QUESTION_WORD_TYPES[word])
        elif word in CONJUNCTION_TYPES and ((opens and after in VERBS) or before in ASKING_VERBS):
            types.add(CONJUNCTION_TYPES[word])
    opening_clauses = tuple(clauses(question))
    if not types and _yes_or_no(words, opening_clauses):
        types.add("whether")
    modalities = {
        clause.modality
        for clause in opening_clauses
        if clause.modality and not clause.request and (clause.who or not clause.asked)
    }
    if len(modalities) == 1:
        types |= modalities
    return frozenset(types)


def _yes_or_no(words: Sequence[str], opening_clauses: Sequence[Clause]) -> bool:
    """Returns whether the question expects yes or no (is the pool closed), unlike "can you tell me the reason"."""
    return (
        any(not clause.asked and not clause.request for clause in opening_clauses)
        and QUESTION_WORDS.isdisjoint(words)
        and IMPLIED_QUESTION_WORDS.isdisjoint(words)
    )


def _is_object(words: Sequence[str], index: int) -> bool:
    """Returns whether `who` is the object (who did he see) rather than the subject (who saw him)."""
    if words[index] == "why":
        return False
    return (
        words[index] == "whom"
        or not DO_AUXILIARIES.isdisjoint(words[index + 1 : index + 2])
        or not (SUBJECT_PRONOUNS.isdisjoint(words[index + 2 : index + 3]))
    )


def _how_types(words: Sequence[str], index: int) -> Iterator[str]:
    """Yields the types of a `how` question: "how long until" also means when, "how many days" how long."""
    kind = HOW_TYPES[words[index]]
    yield kind
    if kind == "how much" and index + 1 < len(words) and words[index + 1] in DURATION_WORDS:
        kind = "how long"
        yield kind
    if kind == "how long" and not END_TIME_WORDS.isdisjoint(words[index + 1 :]):
        yield "when"


def compare_question_types(one: frozenset[str], other: frozenset[str]) -> str:
    """Returns how the types differ if both questions have one, else an empty string."""
    if one == other or not one or not other:
        return ""
    if one & MODALITIES and other & MODALITIES and not one & other & MODALITIES:
        return f"{min(one & MODALITIES)} / {min(other & MODALITIES)}"
    left, right = one - MODALITIES, other - MODALITIES
    if not left or not right or left & right:
        return ""
    if "whether" in left | right and ("how long" in left | right or (left | right).isdisjoint(NEVER_YES_OR_NO)):
        return ""
    return f"{'+'.join(sorted(left))} / {'+'.join(sorted(right))}"


GENERIC_YOU_MODALS: Final = words_in("should must may")
"""After these, `you` usually means anyone: should you rinse rice?"""
COPULAS: Final = words_in("is are was were")
"""A possessive counts only after one of these: what is your name, unlike "does it lower your score"."""
FIRST_PERSON_OBJECTS: Final = words_in("me us")
PERSON_WORDS: Final = words_in("i we you my our your")
NO_PERSONS: Final[frozenset[str]] = frozenset()
NO_SUBJECTS: Final[frozenset[tuple[str, str]]] = frozenset()


@dataclass(frozen=True, slots=True)
class PersonReferences:
    """The persons who act in a question, and those whose things it asks about."""

    subjects: frozenset[tuple[str, str]] = NO_SUBJECTS
    """`I` or `you` with the group of the auxiliary, for yes-or-no questions."""
    direction: str = ""
    """`I to you` or `you to me`, for questions with a question word."""
    mine: frozenset[str] = NO_PERSONS
    yours: frozenset[str] = NO_PERSONS
    """The stems after `my` or `our` (`mine`), and after `your` (`yours`)."""


NO_REFERENCES: Final = PersonReferences()


def read_persons(question: Words) -> PersonReferences:
    """Returns the people a question refers to. Ignores polite forms (can you tell me) and generic `you` (how do you
    boil an egg).
    """
    words = question.words
    if not question.english or PERSON_WORDS.isdisjoint(words):
        return NO_REFERENCES
    subjects: set[tuple[str, str]] = set()
    direction = ""
    generic_you = False
    for clause in clauses(question):
        if clause.asked:
            direction = direction or _direction(clause.person, clause.rest)
            generic_you |= clause.person == "you"
        elif clause.person and not clause.request and not _is_generic_you(clause.auxiliary, clause.modality):
            subjects.add((clause.person, AUXILIARY_GROUPS[clause.auxiliary]))
    yours = NO_PERSONS if generic_you else _owned(words, ("your",))
    return PersonReferences(frozenset(subjects), direction, _owned(words, ("my", "our")), yours)


def compare_persons(one: PersonReferences, other: PersonReferences) -> str:
    """Returns the persons that differ, else an empty string."""
    if one is other:
        return ""
    if len(one.subjects) == len(other.subjects) == 1:
        (mine, auxiliary), (theirs, another) = min(one.subjects), min(other.subjects)
        if mine != theirs and auxiliary == another:
            return f"{mine} / {theirs}"
    if one.direction and other.direction and one.direction != other.direction:
        return f"{one.direction} / {other.direction}"
    return _whose("my", one, "your", other) or _whose("your", one, "my", other)


def _whose(my: str, one: PersonReferences, your: str, other: PersonReferences) -> str:
    """Compares possessives (my name / your name). Ignores a stem that one question uses with both."""
    left = one.mine - one.yours if my == "my" else one.yours - one.mine
    right = other.yours - other.mine if your == "your" else other.mine - other.yours
    shared = left & right
    return f"{my} {min(shared)} / {your} {min(shared)}" if shared else ""


def _owned(words: tuple[str, ...], owners: tuple[str, ...]) -> frozenset[str]:
    if not any(owner in words for owner in owners):
        return NO_PERSONS
    return frozenset(
        stem(after)
        for before, owner, after in zip(words, words[1:], words[2:], strict=False)
        if owner in owners and before in COPULAS
    )


def _direction(person: str, rest: tuple[str, ...]) -> str:
    """Returns the direction of an action: how can I help you, how can you help me."""
    if person == "I" and "you" in rest:
        return "I to you"
    return "you to me" if person == "you" and not FIRST_PERSON_OBJECTS.isdisjoint(rest) else ""


def _is_generic_you(auxiliary: str, modality: str) -> bool:
    return auxiliary in GENERIC_YOU_MODALS or modality == "must"
