"""Guard `foreign_opposites`: activer / désactiver, encender / apagar, an- / ausschalten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from api.guards.foreign.opposite_stems import BY_BEGINNING, CHARACTERS, LONGEST, PARTICLES, PREFIXES
from api.guards.foreign.reading import is_read
from api.guards.words import Words

SHORTEST: Final = 4
"""Letters of a word behind a prefix that turns it."""
INFLECTED: Final = 3
"""Letters at a word's end that may differ: activar / desactivado."""
MAX_WORDS: Final = 60


@dataclass(frozen=True, slots=True)
class Opposites:
    """What a question names of opposite things, and its words."""

    poles: dict[str, frozenset[int]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    characters: frozenset[str] = frozenset()


NONE: Final = Opposites()


def read(question: Words) -> Opposites:
    """Linear in the words."""
    if not is_read(question):
        return NONE
    words = question.words[:MAX_WORDS]
    poles: dict[str, set[int]] = {}
    for word in words:
        for axis, pole in _places(word):
            poles.setdefault(axis, set()).add(pole)
    text = "" if all(map(str.isascii, words)) else " ".join(words)
    characters = frozenset(one for pair in CHARACTERS for one in pair if one in text) if text else frozenset()
    return Opposites({axis: frozenset(found) for axis, found in poles.items()}, words, characters)


def _places(word: str) -> Iterator[tuple[str, int]]:
    for length in range(3, min(len(word), LONGEST) + 1):
        yield from BY_BEGINNING.get(word[:length], ())


def compare(one: Opposites, other: Opposites) -> str:
    """The opposite words, else an empty text."""
    for axis, poles in one.poles.items():
        against = other.poles.get(axis, poles)
        if poles.isdisjoint(against):
            return axis
    for left, right in CHARACTERS:
        if _turned(one.characters, other.characters, left, right):
            return f"{left} / {right}"
    return _particles(one.words, other.words) or _prefixed(one.words, other.words) or _prefixed(other.words, one.words)


def _turned(one: frozenset[str], other: frozenset[str], left: str, right: str) -> bool:
    ours, theirs = one & {left, right}, other & {left, right}
    return bool(ours) and bool(theirs) and ours.isdisjoint(theirs)


def _particles(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    if not one or not other or one[-1] == other[-1]:
        return ""
    ends = {one[-1], other[-1]}
    return next((f"{left} / {right}" for left, right in PARTICLES if ends == {left, right}), "")


def _prefixed(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """A word of the one that is a word of the other behind an opposite prefix."""
    theirs = [word for word in other if word not in one]
    for word in one:
        if word in other:
            continue
        for prefix, opposite in PREFIXES:
            base = word[len(prefix) :]
            if len(base) < SHORTEST or not word.startswith(prefix):
                continue
            beginning = opposite + base[: max(SHORTEST, len(base) - INFLECTED)]
            turned = next((w for w in theirs if w.startswith(beginning) and _ends_alike(w, opposite + base)), "")
            if turned:
                return f"{word} / {turned}"
    return ""


def _ends_alike(word: str, expected: str) -> bool:
    return abs(len(word) - len(expected)) <= INFLECTED
