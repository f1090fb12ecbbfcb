"""Guard `asks`: who, whom, when, where, why, how much, how long. All other ways to ask are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from api.guards.tables import words_in
from api.guards.words import Words

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
    return frozenset(kinds)


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
    """The kinds, where both name some and have none in common; else an empty text."""
    if one and other and not one & other:
        return f"{'+'.join(sorted(one))} / {'+'.join(sorted(other))}"
    return ""
