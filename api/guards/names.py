"""Guard `names`: every name, code, month, currency and unit of one question is the other's too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from api.guards.closed_classes import AMBIGUOUS, CLASSES, MONTH_BEFORE, STRICT
from api.guards.long_names import is_part, is_slip
from api.guards.number_words import OTHERS as OTHER_NUMBERS
from api.guards.stems import stem
from api.guards.words import Words, squash
from api.languages.function_words import words_in

LETTERS: Final = frozenset("bcdefghjlopqvwz")
"""Alone they name something (vitamin c, plan b); the rest are chat or parts of words."""
NO_NAMES: Final = words_in("ok okay asap fyi please help thanks thank hi hello hey english urgent")
NOT_ASKED: Final = NO_NAMES | OTHER_NUMBERS.keys()
"""What is capitalised and no name: II is a number, and the guard `numbers`' matter."""
ALIASES: Final = {
    "usa": "us",
    "america": "us",
    "britain": "uk",
    "javascript": "js",
    "typescript": "ts",
    "tv": "television",
}

NONE: Final[frozenset[str]] = frozenset()
OTHERWISE: Final = {
    "united": words_in("us usa uk uae america britain"),
    "states": words_in("us usa america"),
    "kingdom": words_in("uk britain"),
    "us": words_in("states"),
    "uk": words_in("kingdom"),
}
"""Other words for the same."""

Names = tuple[dict[str, None], dict[str, set[str]], tuple[str, ...], Words]
"""Names, members by class, quoted phrases, and the words to look for the other's in."""


def read(question: Words) -> Names:
    """Names keep their order, for the detail shown."""
    words = question.words
    names = dict.fromkeys(name for name in question.names if name not in NOT_ASKED and name not in CLASSES)
    classes: dict[str, set[str]] = {}
    for place, word in enumerate(words):
        known = CLASSES.get(word)
        if known is not None and (word not in AMBIGUOUS or _dated(words, place)):
            classes.setdefault(known[0], set()).add(known[1])
        elif word in LETTERS and question.english:
            names[word] = None
    return names, classes, question.quoted, question


def compare(one: Names, other: Names) -> str:
    """The first name that the other does not know, else an empty text."""
    difference = _differing(one, other)
    if difference:
        return difference
    for kind in one[1].keys() | other[1].keys():
        left, right = one[1].get(kind, set()), other[1].get(kind, set())
        if left != right and (kind in STRICT or (left and right)):
            return f"{'+'.join(sorted(left)) or 'none'} / {'+'.join(sorted(right)) or 'none'}"
    return ""


def _differing(one: Names, other: Names) -> str:
    """The first names and quoted phrases that are in one only, but for parts of longer names and slips of typing."""
    missing, unknown = _missing(one, other), _missing(other, one)
    phrases = _unquoted(one, other), _unquoted(other, one)
    if not any(phrases):
        if not (missing or unknown) or is_slip(_typed(missing, one), _typed(unknown, other)):
            return ""
        if not (missing and unknown):
            longer, shorter = (one, other) if missing else (other, one)
            if is_part(missing or unknown, longer[3].words, shorter[3].words):
                return ""
    left, right = (*missing, phrases[0])[0], (*unknown, phrases[1])[0]
    return f"{left or 'none'} / {right or 'none'}"


def _missing(names: Names, other: Names) -> list[str]:
    known = other[3].words
    return [name for name in names[0] if name not in known and name not in other[0] and not _known(name, known)]


def _unquoted(names: Names, other: Names) -> str:
    """The first quoted phrase that the other does not have, quoted or not."""
    if not names[2]:
        return ""
    spaced = f" {' '.join(other[3].words)} "
    return next((phrase for phrase in names[2] if f" {phrase} " not in spaced), "")


def _typed(missing: Sequence[str], names: Names) -> Sequence[str]:
    """Those that are words; codes and identifiers are none, and are compared letter by letter."""
    return missing if all(name in names[3].words for name in missing) else ()


def _known(name: str, words: Sequence[str]) -> bool:
    """In another form: a plural, an alias, or in two or three words (abc 123)."""
    if not OTHERWISE.get(name, NONE).isdisjoint(words):
        return True
    form = stem(ALIASES.get(name, name))
    if any(stem(ALIASES.get(word, word)) == form for word in words):
        return True
    plain = squash(name)
    return any(
        plain.startswith(words[start]) and plain == "".join(words[start : start + length])
        for start in range(len(words))
        for length in range(1, 9)
    )


def _dated(words: Sequence[str], place: int) -> bool:
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    return before in MONTH_BEFORE or before[-1:].isdigit() or after[:1].isdigit()
