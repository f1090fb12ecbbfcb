"""Guard `asks`: whether, who, whom, when, where, why, how much, how long. All other ways to ask are alike.

Guard `persons`: "can I cancel" is not "can you cancel", nor is "my address" "your address".

Both read how a question opens its clauses: `can I`, `who must`, `do you have to`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from api.guards.vocabulary import stem
from api.guards.words import Words
from api.languages.function_words import words_in

AUXILIARIES: Final = words_in(
    "is are am was were do does did can could will would shall should may might must has have had"
)
SPEAKERS: Final = {"i": "I", "we": "I", "you": "you"}
CLAUSE_OPENERS: Final = words_in("and so but please hi hello hey also ok then well now just anyway if")
ASKING_WORDS: Final = words_in("who how what when where why which")
HAVING: Final = words_in("have")
NEEDS: Final = words_in("need needs")
PRONOUNS: Final = frozenset((word,) for word in words_in("i we you he she it they there not"))
REQUESTS: Final = words_in(
    """
    tell explain show describe give help let provide list name define write find locate advise suggest recommend guide
    walk clarify teach answer check look confirm say please kindly assist know remind inform share
    """
)
"""Requests to the one who answers: can you tell me."""
ADVERBS: Final = words_in("please kindly just also maybe possibly even actually not quickly")
ALLOWING: Final = words_in("can could may might")
OBLIGING: Final = words_in("must")
ALLOWED: Final = words_in("allowed permitted able")
OBLIGED: Final = words_in("required obliged obligated forced")


KINDS: Final = {
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
"""Auxiliaries that one may stand for another of."""


class Clause(NamedTuple):
    """`who`: whether `who` asks; `person`: I or you, where that is the subject; `mode`: may or must, where it is said.

    `request`: the auxiliary only asks politely.
    """

    auxiliary: str
    who: bool
    asked: bool
    """After a question word."""
    person: str
    mode: str
    request: bool
    rest: tuple[str, ...]
    """A few words after the subject."""


def clauses(question: Words) -> Iterator[Clause]:
    """The clauses that open with an auxiliary, or with `who` and one, or with another question word and one."""
    words, starts = question.words, question.clause_starts
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word in NEEDS:
            if before == "who" and place - 1 in starts:
                yield _clause(words, place, who=True, asked=True)
        elif word in AUXILIARIES:
            if place in starts or before in CLAUSE_OPENERS:
                if word not in HAVING or words[place + 1 : place + 2] in PRONOUNS:
                    yield _clause(words, place, who=False, asked=False)
            elif any(words[start] in ASKING_WORDS for start in range(max(place - 3, 0), place) if start in starts):
                yield _clause(words, place, who=before == "who", asked=True)


def _clause(words: Sequence[str], place: int, who: bool, asked: bool) -> Clause:
    auxiliary = words[place]
    subject = words[place + 1] if place + 1 < len(words) else ""
    if subject == "not" and place + 2 < len(words):
        place += 1
        subject = words[place + 1]
    person = SPEAKERS.get(subject, "")
    rest = tuple(word for word in words[place + (1 if who else 2) : place + 8] if word not in ADVERBS)
    request = (
        person == "you"
        and auxiliary in ("can", "could", "will", "would", "do", "are")
        and not REQUESTS.isdisjoint(words[place + 2 : place + 5])
    )
    return Clause(auxiliary, who, asked, person, _mode(auxiliary, rest), request, rest)


def _mode(auxiliary: str, rest: Sequence[str]) -> str:
    """can I, am I allowed: may; must I, do I have to, am I required: must."""
    if auxiliary in ALLOWING:
        return "may"
    first, second = (*rest[:2], "", "")[:2]
    if auxiliary in OBLIGING:
        return "must"
    if auxiliary in ("do", "does", "did", "will", "would") and (first == "need" or (first, second) == ("have", "to")):
        return "must"
    if auxiliary in ("has", "have", "need", "needs") and first == "to":
        return "must"
    if auxiliary in ("am", "is", "are"):
        head = rest[:3]
        return "may" if not ALLOWED.isdisjoint(head) else "must" if not OBLIGED.isdisjoint(head) else ""
    return ""


PLAIN: Final = {"who": "who", "whom": "who", "why": "why"}
WITH_VERB: Final = {"when": "when", "where": "where"}
"""Also join clauses (when I log in, it fails): they ask only before a verb or after a word of asking."""
MEASURES: Final = {
    "much": "how much", "many": "how much", "long": "how long", "often": "how often", "far": "how far",
    "old": "how old", "tall": "how tall", "come": "why",
}  # fmt: skip
VERBS: Final = words_in(
    """
    is are was were do does did can could will would should shall has have had must may might to
    """
)
LASTING: Final = words_in("time longer minutes hours days weeks months years")
OF_OBJECT: Final = words_in("do does did")
PERSONS: Final = words_in("i we you they he she")
UNTIL: Final = words_in("until till before will take takes")
ASKING: Final = words_in("know me wondering ask explain tell understand out see about")
QUESTION_WORDS: Final = words_in("who whom whose when where why how what which whether if")
INDIRECT: Final = words_in(
    """
    location located place anywhere somewhere spot near nearby nearest closest around time date day hours reason cause
    anyone anybody someone somebody person
    """
)
"""Ask where, when, why or who without saying so: is there anywhere to park?"""
MODES: Final = words_in("may must")
BESIDE_WHETHER: Final = words_in("who whom when where why")
"""What yes or no does not answer. (Is there a fee / how much is the fee: one answer mostly serves both.)"""
OPENERS: Final = words_in("and so but please hi hello hey also ok then well now just")


def read_asks(question: Words) -> frozenset[str]:
    """The kinds asked for; empty for any other way to ask."""
    if not question.english:
        return frozenset()
    words = question.words
    kinds: set[str] = set()
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        opens = place in question.clause_starts or before in OPENERS
        if word == "how" and after in MEASURES:
            kinds.update(_measured(words, place + 1))
        elif word in PLAIN and (opens or before in ASKING):
            kinds.add("whom" if _object(words, place) else PLAIN[word])
        elif word in WITH_VERB and ((opens and after in VERBS) or before in ASKING):
            kinds.add(WITH_VERB[word])
    opened = tuple(clauses(question))
    if not kinds and _yes_or_no(words, opened):
        kinds.add("whether")
    modes = {
        clause.mode for clause in opened if clause.mode and not clause.request and (clause.who or not clause.asked)
    }
    if len(modes) == 1:
        kinds |= modes
    return frozenset(kinds)


def _yes_or_no(words: Sequence[str], opened: Sequence[Clause]) -> bool:
    """Is the pool closed? Not: can you tell me the reason."""
    return (
        any(not clause.asked and not clause.request for clause in opened)
        and QUESTION_WORDS.isdisjoint(words)
        and INDIRECT.isdisjoint(words)
    )


def _object(words: Sequence[str], place: int) -> bool:
    """Whom did he see, as against who saw him."""
    if words[place] == "why":
        return False
    return (
        words[place] == "whom"
        or not OF_OBJECT.isdisjoint(words[place + 1 : place + 2])
        or not (PERSONS.isdisjoint(words[place + 2 : place + 3]))
    )


def _measured(words: Sequence[str], place: int) -> Iterator[str]:
    """How long until is when, how many days is how long, how many gallons is how much."""
    kind = MEASURES[words[place]]
    yield kind
    if kind == "how much" and place + 1 < len(words) and words[place + 1] in LASTING:
        kind = "how long"
        yield kind
    if kind == "how long" and not UNTIL.isdisjoint(words[place + 1 :]):
        yield "when"


def compare_asks(one: frozenset[str], other: frozenset[str]) -> str:
    """What differs where both ask for something of the kind, else an empty text."""
    if one == other or not one or not other:
        return ""
    if one & MODES and other & MODES and not one & other & MODES:
        return f"{min(one & MODES)} / {min(other & MODES)}"
    left, right = one - MODES, other - MODES
    if not left or not right or left & right:
        return ""
    if "whether" in left | right and ("how long" in left | right or (left | right).isdisjoint(BESIDE_WHETHER)):
        return ""
    return f"{'+'.join(sorted(left))} / {'+'.join(sorted(right))}"


ANYBODY: Final = words_in("should must may")
"""With these `you` is mostly anybody: should you rinse rice?"""
BEING: Final = words_in("is are was were")
"""Before `my` and `your` where these are what is asked: what is your name; not: does it lower your score."""
FIRST: Final = words_in("me us")
SPOKEN_OF: Final = words_in("i we you my our your")
NO_PERSONS: Final[frozenset[str]] = frozenset()
NO_SUBJECTS: Final[frozenset[tuple[str, str]]] = frozenset()


@dataclass(frozen=True, slots=True)
class Persons:
    """Who is to do it, and whose things are meant."""

    subjects: frozenset[tuple[str, str]] = NO_SUBJECTS
    """I or you, with the kind of auxiliary: of the questions that yes or no answers."""
    towards: str = ""
    """`I to you` or `you to me`, where a question word asks."""
    mine: frozenset[str] = NO_PERSONS
    yours: frozenset[str] = NO_PERSONS
    """Stems after `my` and `your`."""


NOBODY: Final = Persons()


def read_persons(question: Words) -> Persons:
    """Polite forms (can you tell me) and `you` for anybody (how do you boil an egg) name nobody."""
    words = question.words
    if not question.english or SPOKEN_OF.isdisjoint(words):
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
    yours = NO_PERSONS if anybody else _owned(words, ("your",))
    return Persons(frozenset(subjects), towards, _owned(words, ("my", "our")), yours)


def compare_persons(one: Persons, other: Persons) -> str:
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
        return NO_PERSONS
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
