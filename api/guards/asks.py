"""Guard `asks`: whether, who, whom, when, where, why, how much, how long. All other ways to ask are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from api.guards.clauses import Clause, clauses
from api.guards.words import Words
from api.languages.function_words import words_in

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


def read(question: Words) -> frozenset[str]:
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


def compare(one: frozenset[str], other: frozenset[str]) -> str:
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
