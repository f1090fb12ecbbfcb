"""Guard `opposites`: nobody who asks how to enable a thing is told how to disable it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.guards.negation import ENGLISH as NEGATORS
from api.guards.negation import TROUBLE
from api.guards.opposite_words import (
    PARTICLE_VERBS,
    PARTICLES,
    PHRASES,
    POLES,
    PREFIXES,
    SAME_STEM_BY_CHANCE,
    SUBSTITUTED,
    SUBSTITUTING,
)
from api.guards.vocabulary import FUNCTION_WORDS, stem
from api.guards.words import Words
from api.languages.function_words import words_in

REFUSALS: Final = words_in("accept/decline pass/fail remember/forget love/hate cover/exclude")
REFUSING: Final = frozenset(map(stem, TROUBLE))
"""What one question refuses by such a word and the other by `not`: no opposites."""
GRAMMAR: Final = FUNCTION_WORDS - SUBSTITUTING
REACH: Final = 5
"""Words between a verb and its particle: turn my phone's notifications off."""


@dataclass(frozen=True, slots=True)
class Poles:
    """What a question names of opposite things."""

    by_axis: dict[str, frozenset[str]]
    stems: frozenset[str]
    denials: int
    """Negators, polite ones included."""


def read(question: Words) -> Poles:
    """The poles that the question names on each axis."""
    words = question.words
    found: dict[str, set[str]] = {}
    denials = 0
    if question.english:
        for place, word in enumerate(words):
            denials += word in NEGATORS
            if word in PARTICLE_VERBS:
                _add(found, _phrase(words, place))
            if word in POLES:
                _add(found, POLES[word])
    return Poles({axis: frozenset(poles) for axis, poles in found.items()}, frozenset(map(stem, words)), denials)


def compare(one: Poles, other: Poles) -> str:
    """The opposite words, else an empty text."""
    turned = one.denials != other.denials
    for axis, poles in one.by_axis.items():
        against = other.by_axis.get(axis)
        if not against or against == poles or (turned and axis in REFUSALS):
            continue
        if axis[0] != "~" or not poles & against:
            return f"{'+'.join(sorted(poles))} / {'+'.join(sorted(against))}"
    prefixed, base = _prefixed(one.stems, other.stems)
    if prefixed:
        return "" if turned and prefixed in REFUSING else f"{prefixed} / {base}"
    prefixed, base = _prefixed(other.stems, one.stems)
    if prefixed:
        return "" if turned and prefixed in REFUSING else f"{base} / {prefixed}"
    return _substituted(one.stems, other.stems)


def _substituted(one: frozenset[str], other: frozenset[str]) -> str:
    """left / right, where all other words that matter are the same."""
    left, right = one - other - GRAMMAR, other - one - GRAMMAR
    if len(left) == len(right) == 1:
        pair = (min(left), min(right))
        if pair in SUBSTITUTED:
            return f"{pair[0]} / {pair[1]}"
    return ""


def _add(found: dict[str, set[str]], poles: Sequence[tuple[str, str]]) -> None:
    for axis, pole in poles:
        found.setdefault(axis, set()).add(pole)


def _phrase(words: Sequence[str], place: int) -> Sequence[tuple[str, str]]:
    """turn ... off: the verb with the next particle within reach."""
    verb = PARTICLE_VERBS[words[place]]
    for word in words[place + 1 : place + 1 + REACH]:
        if word in PARTICLES:
            return PHRASES.get(f"{verb} {word}", ())
    return ()


def _prefixed(stems: frozenset[str], others: frozenset[str]) -> tuple[str, str]:
    """A word of the one that is a word of the other with un-, dis-, de-, in- or non- before it, and that word."""
    for word in stems - others:
        if word.startswith(PREFIXES) and word not in SAME_STEM_BY_CHANCE:
            for prefix in PREFIXES:
                base = word.removeprefix(prefix)
                if base != word and len(base) > 2 and base in others and base not in stems:
                    return word, base
    return "", ""
