"""Guards `negation` and `opposites`.

`negation` requires that both questions negate the same things. `opposites` rejects antonyms: an answer about enabling
does not answer a question about disabling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.guards.opposite_words import (
    AMBIGUOUS_ANTONYMS,
    AMBIGUOUS_STEMS,
    FALSE_PREFIXES,
    PARTICLE_VERBS,
    PARTICLES,
    PHRASES,
    POLES,
    PREFIXES,
)
from api.guards.vocabulary import FUNCTION_WORDS, stem
from api.guards.words import Words
from api.languages.function_words import words_in

NEGATORS: Final = words_in(
    """
    not no never without none nobody nothing neither nor unable nowhere hardly non avoid avoiding prevent preventing
    """
)
FOREIGN_NEGATORS: Final = words_in(
    """
    nicht kein keine keinen keiner keinem nie niemals ohne sans jamais sin nunca jamás tampoco pas no non não
    """
)
SUBJECTS: Final = words_in("i you we they he she it there this that these those the my your our")
AUXILIARIES: Final = words_in("do does did is are was were can could will would should have has")
COPULAS: Final = words_in("is are was were")
UNCERTAINTY_WORDS: Final = words_in("know sure understand understanding certain clear see get")
ADVERBS: Final = words_in("quite really fully seem to entirely too even")
QUESTIONS: Final = words_in("how what why when where which who if whether")
REQUESTS: Final = words_in("tell explain show describe give help just")
HARMLESS_AFTER: Final = words_in("only problem worries forget hesitate")
SEARCH_VERBS: Final = words_in("find locate")
"""After `can't`, these ask where something is: I can't find my PIN."""
NEGATIVE_WORDS: Final = words_in(
    """
    wrong incorrect invalid failed fails fail failing declined rejected refused refuses denied stopped broken missing
    impossible unavailable stuck outside wrongly disallowed prevented blocked forgot forgotten lost false unknown
    trouble difficulty difficulties damaged unsatisfied
    """
)
"""Words with a negative meaning. One of them in one question balances one `not` in the other (wrong / not correct)."""
CONSTITUENT: Final = words_in("but and or")


@dataclass(frozen=True, slots=True)
class Negation:
    """The negation in a question."""

    count: int = 0
    without: int = 0
    negated_stems: tuple[str, ...] = ()
    """The stem that each negator applies to, or an empty string if that is uncertain."""
    shown: str = "none"
    negative_words: frozenset[str] = frozenset()
    stems: frozenset[str] = frozenset()


NO_WORDS: Final[frozenset[str]] = frozenset()
NO_NEGATION: Final = Negation()


def read_negation(question: Words) -> Negation:
    """Returns the negation in a question. Ignores polite forms (can't you tell me, I don't know how, or not)."""
    words = question.words
    table = NEGATORS if question.english else FOREIGN_NEGATORS
    negative_words = NEGATIVE_WORDS.intersection(words) if question.english else NO_WORDS
    polite = _polite if question.english else _never
    indexes = [index for index, word in enumerate(words) if word in table and not polite(question, index)]
    if not indexes:
        return Negation(negative_words=negative_words) if negative_words else NO_NEGATION
    without = sum(words[index] == "without" for index in indexes)
    next_stems = [_next_stem(words, index + 1) for index in indexes]
    certain = tuple(one if _is_certain(words, index) else "" for one, index in zip(next_stems, indexes, strict=True))
    shown = ", ".join(f"not {word}".strip() for word in next_stems)
    return Negation(len(indexes) - without, without, certain, shown, negative_words, frozenset(map(stem, words)))


def compare_negation(one: Negation, other: Negation) -> str:
    """Returns the negation that only one question has, else an empty string."""
    if one is other:
        return ""
    if one.without != other.without or not _balanced(one, other):
        return f"{one.shown} / {other.shown}"
    if one.count != other.count:
        return ""
    for word, counterpart in zip(one.negated_stems, other.negated_stems, strict=True):
        if word != counterpart and word in other.stems and counterpart in one.stems:
            return f"not {word} / not {counterpart}"
    return ""


def _balanced(one: Negation, other: Negation) -> bool:
    """Returns whether both negate equally often. Negative words that the other question lacks count as negations."""
    difference = one.count - other.count
    if difference == 0:
        return True
    fewer, more = (other, one) if difference > 0 else (one, other)
    return abs(difference) <= len(fewer.negative_words - more.negative_words)


def _is_certain(words: Sequence[str], index: int) -> bool:
    return words[index] in ("without", "no") or (index > 0 and words[index - 1] in CONSTITUENT)


def _next_stem(words: Sequence[str], index: int) -> str:
    """Returns the stem of the next content word."""
    return next((stem(word) for word in words[index:] if word not in FUNCTION_WORDS), "")


def _never(_question: Words, _place: int) -> bool:
    return False


def _polite(question: Words, index: int) -> bool:
    words = question.words
    before = words[index - 1] if index else ""
    after = words[index + 1] if index + 1 < len(words) else ""
    if words[index] == "no":
        return after[:1].isdigit() or after in HARMLESS_AFTER or before == "or" or after in ("idea", "clue")
    if words[index] != "not":
        return False
    if before == "or" or after in HARMLESS_AFTER:
        return True
    if before in AUXILIARIES and (after in SUBJECTS or (before in COPULAS and not after.endswith(("ing", "ed", "en")))):
        return _is_negative_question(question, index, after)
    return _is_uncertainty(words, index)


def _is_uncertainty(words: Sequence[str], index: int) -> bool:
    """Returns whether the negation only states uncertainty: I don't know how to; I can't find."""
    later = [word for word in words[index + 1 : index + 6] if word not in ADVERBS]
    if not later:
        return False
    if later[0] == "sure":
        return True
    if later[0] in UNCERTAINTY_WORDS:
        return any(word in QUESTIONS for word in later[1:3])
    return later[0] in SEARCH_VERBS and words[index - 2 : index] == ("i", "can")


def _is_negative_question(question: Words, index: int, subject: str) -> bool:
    """Returns whether the negation only asks for agreement (isn't it slow), unlike "why can't I"."""
    if index - 1 in question.clause_starts:
        return True
    later = question.words[index + 2 : index + 4]
    return subject == "you" and any(word in REQUESTS for word in later)


REFUSAL_AXES: Final = words_in("accept/decline pass/fail remember/forget love/hate cover/exclude")
NEGATIVE_STEMS: Final = frozenset(map(stem, NEGATIVE_WORDS))
"""If one question has such a word and the other a `not`, the words are not antonyms."""
IGNORED_STEMS: Final = FUNCTION_WORDS - AMBIGUOUS_STEMS
MAX_PARTICLE_DISTANCE: Final = 5
"""Maximum words between a verb and its particle: turn my phone's notifications off."""


@dataclass(frozen=True, slots=True)
class Poles:
    """The antonyms that a question contains."""

    by_axis: dict[str, frozenset[str]]
    stems: frozenset[str]
    negators: int
    """The number of negators, including polite ones."""


def read_opposites(question: Words) -> Poles:
    """Returns the poles that the question names on each axis."""
    words = question.words
    found: dict[str, set[str]] = {}
    negators = 0
    if question.english:
        for index, word in enumerate(words):
            negators += word in NEGATORS
            if word in PARTICLE_VERBS:
                _add(found, _phrase(words, index))
            if word in POLES:
                _add(found, POLES[word])
    return Poles({axis: frozenset(poles) for axis, poles in found.items()}, frozenset(map(stem, words)), negators)


def compare_opposites(one: Poles, other: Poles) -> str:
    """Returns the opposite words, else an empty string."""
    negation_differs = one.negators != other.negators
    for axis, poles in one.by_axis.items():
        other_poles = other.by_axis.get(axis)
        if not other_poles or other_poles == poles or (negation_differs and axis in REFUSAL_AXES):
            continue
        if axis[0] != "~" or not poles & other_poles:
            return f"{'+'.join(sorted(poles))} / {'+'.join(sorted(other_poles))}"
    prefixed, base = _prefixed(one.stems, other.stems)
    if prefixed:
        return "" if negation_differs and prefixed in NEGATIVE_STEMS else f"{prefixed} / {base}"
    prefixed, base = _prefixed(other.stems, one.stems)
    if prefixed:
        return "" if negation_differs and prefixed in NEGATIVE_STEMS else f"{base} / {prefixed}"
    return _ambiguous_antonyms(one.stems, other.stems)


def _ambiguous_antonyms(one: frozenset[str], other: frozenset[str]) -> str:
    """Returns antonyms such as left / right if all other content words are the same."""
    left, right = one - other - IGNORED_STEMS, other - one - IGNORED_STEMS
    if len(left) == len(right) == 1:
        pair = (min(left), min(right))
        if pair in AMBIGUOUS_ANTONYMS:
            return f"{pair[0]} / {pair[1]}"
    return ""


def _add(found: dict[str, set[str]], poles: Sequence[tuple[str, str]]) -> None:
    for axis, pole in poles:
        found.setdefault(axis, set()).add(pole)


def _phrase(words: Sequence[str], index: int) -> Sequence[tuple[str, str]]:
    """Returns the poles of a phrasal verb, split or not: turn ... off."""
    verb = PARTICLE_VERBS[words[index]]
    for word in words[index + 1 : index + 1 + MAX_PARTICLE_DISTANCE]:
        if word in PARTICLES:
            return PHRASES.get(f"{verb} {word}", ())
    return ()


def _prefixed(stems: frozenset[str], others: frozenset[str]) -> tuple[str, str]:
    """Returns a stem with a negative prefix (un-, dis-, de-, in-, non-) and its base in the other question."""
    for word in stems - others:
        if word.startswith(PREFIXES) and word not in FALSE_PREFIXES:
            for prefix in PREFIXES:
                base = word.removeprefix(prefix)
                if base != word and len(base) > 2 and base in others and base not in stems:
                    return word, base
    return "", ""
