"""How a question opens its clauses: `can I`, `who must`, `do you have to`. Read for the guards `asks` and `persons`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from api.guards.words import Words
from api.languages.function_words import words_in

AUXILIARIES: Final = words_in(
    "is are am was were do does did can could will would shall should may might must has have had"
)
PERSONS: Final = {"i": "I", "we": "I", "you": "you"}
OPENERS: Final = words_in("and so but please hi hello hey also ok then well now just anyway if")
ASKING: Final = words_in("who how what when where why which")
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
            if place in starts or before in OPENERS:
                if word not in HAVING or words[place + 1 : place + 2] in PRONOUNS:
                    yield _clause(words, place, who=False, asked=False)
            elif any(words[start] in ASKING for start in range(max(place - 3, 0), place) if start in starts):
                yield _clause(words, place, who=before == "who", asked=True)


def _clause(words: Sequence[str], place: int, who: bool, asked: bool) -> Clause:
    auxiliary = words[place]
    subject = words[place + 1] if place + 1 < len(words) else ""
    if subject == "not" and place + 2 < len(words):
        place += 1
        subject = words[place + 1]
    person = PERSONS.get(subject, "")
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
