"""Guard `negation`: what the one denies the other denies too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.guards.vocabulary import FUNCTION_WORDS
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


def read(question: Words) -> Negation:
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


def compare(one: Negation, other: Negation) -> str:
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
