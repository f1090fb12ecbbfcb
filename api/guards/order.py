"""Order: the same words, with the roles exchanged, ask for something else (dollars to euros, euros to dollars)."""

from __future__ import annotations

from typing import Final

from api.guards.reading import STOP_WORDS, Reading, stem

_DIRECTIONS: Final = frozenset("to from than in into onto over before after by via under for against".split())
_BETWEEN: Final = 3
"""Words that an exchange is made of at least: two and what stands between."""


def objection(one: Reading, other: Reading) -> str:
    """What differs; empty where nothing does."""
    mine, theirs = _aims(one), _aims(other)
    for direction in mine.keys() & theirs.keys():
        here, there = mine[direction] - theirs[direction], theirs[direction] - mine[direction]
        exchanged = [(a, b) for a in sorted(here) for b in sorted(there) if a in other.stems and b in one.stems]
        if exchanged:
            return f"{direction} {exchanged[0][0]} / {direction} {exchanged[0][1]}"
    return _exchanged(one.content, other.content)


def _aims(reading: Reading) -> dict[str, set[str]]:
    """What each word of direction points at: the next word that matters."""
    found: dict[str, set[str]] = {}
    words = reading.words
    for index, word in enumerate(words):
        if word in _DIRECTIONS:
            aim = next((stem(after) for after in words[index + 1 :] if after not in STOP_WORDS), None)
            if aim is not None:
                found.setdefault(word, set()).add(aim)
    return found


def _exchanged(mine: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Two words that changed places around a third: dogs chase cats, cats chase dogs."""
    if len(mine) != len(theirs) or len(mine) < _BETWEEN:
        return ""
    places = [index for index, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
    if len(places) != 2 or places[1] - places[0] < 2:
        return ""
    first, second = places
    if mine[first] == theirs[second] and mine[second] == theirs[first]:
        return f"{mine[first]} ... {mine[second]} / {mine[second]} ... {mine[first]}"
    return ""
