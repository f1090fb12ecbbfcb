"""Guard `numbers`: the same figures in the same order or the same places, in digits or in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.guards.vocabulary import HOURS, ORDINALS, OTHER_NUMBERS, SCALES, SMALL, SOFT, SUFFIXES, TENS, WORDS
from api.guards.words import Words


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers as plain decimals; `%`, am and pm follow theirs, a minus stands before."""

    every: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()
    """Without the soft ones."""
    before: frozenset[tuple[str, str]] = frozenset()
    """Each hard one with the word before it,"""
    after: frozenset[tuple[str, str]] = frozenset()
    """and with the word after it."""
    shown: tuple[str, ...] = ()
    """All, as they were written."""


NO_NUMBERS: Final = Numbers()


def read(question: Words) -> Numbers:
    """All numbers in order."""
    words = question.words
    every: list[str] = []
    shown: list[str] = []
    hard: list[str] = []
    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    place = 0
    while place < len(words):
        word = words[place]
        if word.isalpha() and not (question.english and word in WORDS):
            place += 1
            continue
        found, soft, end = _spoken(question, place) if word in WORDS else _figure(words, place)
        every += found
        shown += (question.spans[place],) if place in question.spans else found
        if found and not soft:
            hard += found
            before.append((words[place - 1] if place else "", " ".join(found)))
            after.append((" ".join(found), words[end] if end < len(words) else ""))
        place = end
    if not every:
        return NO_NUMBERS
    return Numbers(tuple(every), tuple(hard), frozenset(before), frozenset(after), tuple(shown))


def compare(one: Numbers, other: Numbers) -> str:
    """The numbers of both where they differ, else an empty text."""
    if one.hard == other.hard or one.every == other.every or one.hard == other.every or one.every == other.hard:
        return ""
    if sorted(one.hard) == sorted(other.hard) and (one.before == other.before or one.after == other.after):
        return ""
    return f"{' '.join(one.shown) or 'none'} / {' '.join(other.shown) or 'none'}"


_Read = tuple[list[str], bool, int]
"""What was read, whether it is soft, and the place after it."""


def _figure(words: Sequence[str], place: int) -> _Read:
    """One figure and what belongs to it (5 million, 5 pm, 1 st); % and fractions stand for themselves."""
    word = words[place]
    if not word[-1].isdecimal():
        return ([word] if word == "%" or word.isnumeric() else []), False, place + 1
    value = _plain(word.removeprefix("-"))
    found = ["-", value] if word[0] == "-" else [value]
    place += 1
    after = words[place] if place < len(words) else ""
    if after in SCALES and value.count(".") < 2:
        found[-1] = f"{float(value) * SCALES[after]:.15g}"
    elif after in HOURS:
        found.append(after)
    elif after not in SUFFIXES:
        return found, False, place
    return found, False, place + 1


def _plain(figure: str) -> str:
    """05 is 5 and 5.00 is 5, but 3.10 is not 3.1 (versions) nor 1.000 1 (thousands elsewhere)."""
    if not figure.isascii():
        figure = "".join(str(int(mark)) if mark.isdecimal() else mark for mark in figure)
    if len(figure) == 2 and figure[0] == "0":
        return figure[1]
    return figure.removesuffix(".00")


def _spoken(question: Words, place: int) -> _Read:
    """A number in words (two hundred and five)."""
    words = question.words
    word = words[place]
    after = words[place + 1] if place + 1 < len(words) else ""
    if word == "first" and (not after or place + 1 in question.clause_starts):
        return ["1"], True, place + 1  # do I need to activate it first?
    if word == "minus":
        return ["-"], False, place + 1
    if word in SOFT and after not in SCALES:
        return [SOFT[word]], True, place + 1
    if word in ORDINALS or word in OTHER_NUMBERS:
        return [OTHER_NUMBERS.get(word) or str(ORDINALS[word])], False, place + 1
    if word == "k":
        return [], False, place + 1
    total, end = _cardinal(words, place)
    return [str(total)], False, end


def _cardinal(words: Sequence[str], place: int) -> tuple[int, int]:
    """Its value and the place after it."""
    total = current = 0
    room = 10**13  # what may still be added: after "twenty" less than ten, after "hundred" less than a hundred
    while place < len(words):
        word = words[place]
        value = SMALL.get(word) or TENS.get(word) or 0
        if word in SCALES and word != "k":
            current = max(current, 1) * SCALES[word]
            room = SCALES[word]
            if room > 100:
                total, current = total + current, 0
        elif 0 < value < room:
            current += value
            room = 10 if word in TENS else 1
        elif not (word == "and" and room in SCALES.values() and _is_number(words, place + 1)):
            break
        place += 1
    return total + current, place


def _is_number(words: Sequence[str], place: int) -> bool:
    return place < len(words) and (words[place] in SMALL or words[place] in TENS)
