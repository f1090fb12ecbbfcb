"""Two words or short phrases that changed places: the same words, another question.

`Can I learn French before Spanish` is not `Can I learn Spanish before French`. A clause that only moved to the front,
and lists (cats and dogs), say the same in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from api.guards.language import FUNCTION_WORDS
from api.guards.number_words import WORDS as NUMBER_WORDS
from api.languages.function_words import words_in

EQUALS: Final = words_in("and or vs versus between either both & + with")
"""Join what may stand in any order."""
CHOICE: Final = words_in("or vs versus")
LINKS: Final = words_in("a an the my your his her our their this that some any of")
"""Stand before a member of a list."""
ADVERBIAL: Final = words_in(
    """
    in on at by for with from to during since until after before within when if today tomorrow tonight yesterday now
    currently please usually often always sometimes here there this next last every
    """
)
"""Begin what may stand at either end of a question."""
LONGEST: Final = 4
"""Words of a phrase that changes places."""
MAX_WORDS: Final = 60


def exchanged(one: Sequence[str], other: Sequence[str]) -> str:
    """What changed places, as `cat eats dog / dog eats cat`, else an empty text. Both have the same words."""
    if one == other:
        return ""
    start, end = _differing(one, other)
    left, right = list(one[start:end]), list(other[start:end])
    for first, last in _phrases(left, right):
        middle = left[first : len(left) - last]
        phrases = left[:first], left[len(left) - last :]
        if not all(map(_tells, phrases)) or is_list(middle):
            return ""
        if start == 0 and end == len(one) and any(phrase[0] in ADVERBIAL for phrase in phrases):
            return ""
        if middle or first == last == 1:
            return f"{' '.join(left)} / {' '.join(right)}"
    return ""


def is_list(between: Sequence[str]) -> bool:
    """Whether two words with these between them are members of a list, or the two sides of a choice."""
    if not between or EQUALS.isdisjoint(between):
        return False
    if between[-1] in CHOICE and any(_compares(word) for word in between):
        return True
    matter = [word for word in between if word not in EQUALS and word not in LINKS]
    return not matter or (len(matter) == 1 and between[-1] in EQUALS and between[0] not in FUNCTION_WORDS)


def _differing(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """Where the two begin to differ and where they end to."""
    start, end = 0, len(one)
    while one[start] == other[start]:
        start += 1
    while one[end - 1] == other[end - 1]:
        end -= 1
    return start, end


def _phrases(left: list[str], right: list[str]) -> Iterator[tuple[int, int]]:
    """How many words of the beginning and of the end changed places around what stayed."""
    size = len(left)
    for first in range(1, min(LONGEST, size - 1) + 1):
        for last in range(1, min(LONGEST, size - first) + 1):
            if (
                left[:first] == right[size - first :]
                and left[size - last :] == right[:last]
                and left[first : size - last] == right[last : size - first]
            ):
                yield first, last


def _tells(phrase: Sequence[str]) -> bool:
    """Whether it has more than grammar and figures (their order is the guard `numbers`' matter)."""
    return any(word not in FUNCTION_WORDS and word not in NUMBER_WORDS and not word[-1].isdigit() for word in phrase)


def _compares(word: str) -> bool:
    return word in ("more", "less", "better", "worse", "best") or (len(word) > 4 and word.endswith(("er", "est")))
