"""Negation: both questions say not, or neither does."""

from __future__ import annotations

from typing import Final

from api.guards.reading import Reading

_NEGATIONS: Final = frozenset(
    "not no never without cannot cant dont doesnt wont isnt neither nor none nothing unable".split()
)
_POLITE: Final = frozenset("can't couldn't won't wouldn't don't".split())


def is_negated(reading: Reading) -> bool:
    """`Can't you tell me ...` and `whether or not` negate nothing."""
    return any(_negates(reading.words, index) for index in range(len(reading.words)))


def _negates(words: tuple[str, ...], index: int) -> bool:
    word, before, after = words[index], words[index - 1 : index], words[index + 1 : index + 2]
    if word in _POLITE and after == ("you",) and before != ("why",):
        return False
    if word == "not" and (before in {("or",), ("why",)} or after == ("only",)):
        return False
    return word in _NEGATIONS or word.endswith("n't")


def objection(one: Reading, other: Reading) -> str:
    """What differs; empty where nothing does."""
    mine, theirs = is_negated(one), is_negated(other)
    return (
        "" if mine == theirs else f"{'negated' if mine else 'not negated'} / {'negated' if theirs else 'not negated'}"
    )
