"""Opposites: no word of one question is turned round in the other."""

from __future__ import annotations

from typing import Final

from api.guards.opposite_words import PARTICLE_VERBS, PARTICLES, SIDES
from api.guards.reading import Reading

_PREFIXES: Final = ("un", "dis", "de", "in", "im", "il", "ir", "non", "non-", "anti", "anti-")
_SHORTEST: Final = 4
"""Letters that a word has at least without its prefix: `put` and `input` are no opposites."""

_PARTICLE_SIDES: Final = {
    particle: (f"{one}/{other}", side) for one, other in PARTICLES.items() for side, particle in enumerate((one, other))
}
_REACH: Final = 4
"""Words within which a particle belongs to its verb: turn the wi-fi off."""


def objection(one: Reading, other: Reading) -> str:
    """What differs; empty where nothing does."""
    mine, theirs = _sides(one), _sides(other)
    for pair, sides in mine.items():
        if pair in theirs and theirs[pair].keys() != sides.keys():
            return f"{' '.join(sides.values())} / {' '.join(theirs[pair].values())}"
    return _prefixed(frozenset(one.words), frozenset(other.words))


def _sides(reading: Reading) -> dict[str, dict[int, str]]:
    """For each pair that a word belongs to: the sides that are named, and by which word."""
    found: dict[str, dict[int, str]] = {}
    for index, word in enumerate(reading.words):
        for pair, side in SIDES.get(word, ()):
            found.setdefault(pair, {})[side] = word
        if word in PARTICLE_VERBS:
            for near in reading.words[index + 1 : index + 1 + _REACH]:
                if near in _PARTICLE_SIDES:
                    pair, side = _PARTICLE_SIDES[near]
                    found.setdefault(f"particle {pair}", {})[side] = near
                    break
    return found


def _prefixed(mine: frozenset[str], theirs: frozenset[str]) -> str:
    for only, others in ((mine - theirs, theirs - mine), (theirs - mine, mine - theirs)):
        for word in only:
            for prefix in _PREFIXES:
                plain = word.removeprefix(prefix)
                if plain != word and len(plain) >= _SHORTEST and plain in others:
                    return f"{word} / {plain}" if only <= mine else f"{plain} / {word}"
    return ""
