"""Guard `negation`: what one question denies the other denies too.

Guard `opposites`: nobody who asks how to enable a thing is told how to disable it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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
from api.guards.vocabulary import stem as stem_of
from api.guards.words import Words
from api.languages.function_words import words_in

ENGLISH: Final = words_in(
    """
    not no never without none nobody nothing neither nor unable nowhere hardly non avoid avoiding prevent preventing
    """
)
ELSEWHERE: Final = words_in(
    """
    nicht kein keine keinen keiner keinem nie niemals ohne sans jamais sin nunca jamás tampoco pas no non não
    """
)
SUBJECTS: Final = words_in("i you we they he she it there this that these those the my your our")
AUXILIARIES: Final = words_in("do does did is are was were can could will would should have has")
BEING: Final = words_in("is are was were")
UNSURE: Final = words_in("know sure understand understanding certain clear see get")
ADVERBS: Final = words_in("quite really fully seem to entirely too even")
QUESTIONS: Final = words_in("how what why when where which who if whether")
REQUESTS: Final = words_in("tell explain show describe give help just")
HARMLESS_AFTER: Final = words_in("only problem worries forget hesitate")
SOUGHT: Final = words_in("find locate")
"""I can't find my PIN: asks where it is."""
TROUBLE: Final = words_in(
    """
    wrong incorrect invalid failed fails fail failing declined rejected refused refuses denied stopped broken missing
    impossible unavailable stuck outside wrongly disallowed prevented blocked forgot forgotten lost false unknown
    trouble difficulty difficulties damaged unsatisfied
    """
)
"""Deny by themselves: a word of these in one question makes up for one `not` in the other (wrong / not correct)."""
CONSTITUENT: Final = words_in("but and or")


@dataclass(frozen=True, slots=True)
class Negation:
    """What a question denies."""

    times: int = 0
    without: int = 0
    denied: tuple[str, ...] = ()
    """After each negator the stem that matters, where it is sure (but not a cat), else an empty text."""
    shown: str = "none"
    trouble: frozenset[str] = frozenset()
    stems: frozenset[str] = frozenset()


NONE: Final[frozenset[str]] = frozenset()
NOTHING: Final = Negation()


def read_negation(question: Words) -> Negation:
    """Polite forms (can't you tell me, I don't know how, or not) deny nothing."""
    words = question.words
    table = ENGLISH if question.english else ELSEWHERE
    trouble = TROUBLE.intersection(words) if question.english else NONE
    polite = _polite if question.english else _never
    places = [place for place, word in enumerate(words) if word in table and not polite(question, place)]
    if not places:
        return Negation(trouble=trouble) if trouble else NOTHING
    without = sum(words[place] == "without" for place in places)
    next_stems = [_next(words, place + 1) for place in places]
    sure = tuple(stem if _sure(words, place) else "" for stem, place in zip(next_stems, places, strict=True))
    shown = ", ".join(f"not {word}".strip() for word in next_stems)
    return Negation(len(places) - without, without, sure, shown, trouble, frozenset(map(stem_of, words)))


def compare_negation(one: Negation, other: Negation) -> str:
    """What is denied in one only, else an empty text."""
    if one is other:
        return ""
    if one.without != other.without or not _balanced(one, other):
        return f"{one.shown} / {other.shown}"
    if one.times != other.times:
        return ""
    for word, counterpart in zip(one.denied, other.denied, strict=True):
        if word != counterpart and word in other.stems and counterpart in one.stems:
            return f"not {word} / not {counterpart}"
    return ""


def _balanced(one: Negation, other: Negation) -> bool:
    """Denied as often, words of trouble that the other lacks counted as denials where that helps."""
    difference = one.times - other.times
    if difference == 0:
        return True
    fewer, more = (other, one) if difference > 0 else (one, other)
    return abs(difference) <= len(fewer.trouble - more.trouble)


def _sure(words: Sequence[str], place: int) -> bool:
    return words[place] in ("without", "no") or (place > 0 and words[place - 1] in CONSTITUENT)


def _next(words: Sequence[str], place: int) -> str:
    """The stem of the next word that matters."""
    return next((stem_of(word) for word in words[place:] if word not in FUNCTION_WORDS), "")


def _never(_question: Words, _place: int) -> bool:
    return False


def _polite(question: Words, place: int) -> bool:
    words = question.words
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    if words[place] == "no":
        return after[:1].isdigit() or after in HARMLESS_AFTER or before == "or" or after in ("idea", "clue")
    if words[place] != "not":
        return False
    if before == "or" or after in HARMLESS_AFTER:
        return True
    if before in AUXILIARIES and (after in SUBJECTS or (before in BEING and not after.endswith(("ing", "ed", "en")))):
        return _asked(question, place, after)
    return _unsure(words, place)


def _unsure(words: Sequence[str], place: int) -> bool:
    """I don't know how to; I can't find."""
    later = [word for word in words[place + 1 : place + 6] if word not in ADVERBS]
    if not later:
        return False
    if later[0] == "sure":
        return True
    if later[0] in UNSURE:
        return any(word in QUESTIONS for word in later[1:3])
    return later[0] in SOUGHT and words[place - 2 : place] == ("i", "can")


def _asked(question: Words, place: int, subject: str) -> bool:
    """Isn't it slow? Don't you sell? Why don't you tell me? But not: why can't I, and not can't log in."""
    if place - 1 in question.clause_starts:
        return True
    later = question.words[place + 2 : place + 4]
    return subject == "you" and any(word in REQUESTS for word in later)


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


def read_opposites(question: Words) -> Poles:
    """The poles that the question names on each axis."""
    words = question.words
    found: dict[str, set[str]] = {}
    denials = 0
    if question.english:
        for place, word in enumerate(words):
            denials += word in ENGLISH
            if word in PARTICLE_VERBS:
                _add(found, _phrase(words, place))
            if word in POLES:
                _add(found, POLES[word])
    return Poles({axis: frozenset(poles) for axis, poles in found.items()}, frozenset(map(stem, words)), denials)


def compare_opposites(one: Poles, other: Poles) -> str:
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
