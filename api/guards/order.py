"""Guard `order`: rejects the same words in another order if the meaning changes.

"Dollars to euros" is not "euros to dollars". "Can I learn French before Spanish" is not "Can I learn Spanish before
French". A clause that moved to the front, or a list (cats and dogs), keeps its meaning in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.guards.vocabulary import CLASSES, FUNCTION_WORDS, NUMBER_WORDS, stem
from api.guards.words import Words
from api.languages.function_words import words_in

COORDINATORS: Final = words_in("and or vs versus between either both & + with")
"""Join words whose order does not matter."""
CHOICE: Final = words_in("or vs versus")
DETERMINERS: Final = words_in("a an the my your his her our their this that some any of")
"""May precede a member of a list."""
ADVERBIAL_STARTS: Final = words_in(
    """
    in on at by for with from to during since until after before within when if today tomorrow tonight yesterday now
    currently please usually often always sometimes here there this next last every
    """
)
"""Begin a phrase that can stand at either end of a question."""
MAX_PHRASE_WORDS: Final = 4
"""Maximum words in a phrase that changes places."""
MAX_WORDS: Final = 60


def swapped_phrases(one: Sequence[str], other: Sequence[str]) -> str:
    """Returns the phrases that changed places, as `cat eats dog / dog eats cat`, else an empty string.

    Both sequences must contain the same words.
    """
    if one == other:
        return ""
    start, end = _differing(one, other)
    left, right = list(one[start:end]), list(other[start:end])
    for first, last in _phrases(left, right):
        middle = left[first : len(left) - last]
        phrases = left[:first], left[len(left) - last :]
        if not all(map(_has_content, phrases)) or is_list(middle):
            return ""
        if start == 0 and end == len(one) and any(phrase[0] in ADVERBIAL_STARTS for phrase in phrases):
            return ""
        if middle or first == last == 1:
            return f"{' '.join(left)} / {' '.join(right)}"
    return ""


def is_list(between: Sequence[str]) -> bool:
    """Returns whether two words with `between` in the middle form a list or a choice."""
    if not between or COORDINATORS.isdisjoint(between):
        return False
    if between[-1] in CHOICE and any(_is_comparative(word) for word in between):
        return True
    content_words = [word for word in between if word not in COORDINATORS and word not in DETERMINERS]
    return not content_words or (
        len(content_words) == 1 and between[-1] in COORDINATORS and between[0] not in FUNCTION_WORDS
    )


def _differing(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """Returns the first index at which the two differ, and the index after the last."""
    start, end = 0, len(one)
    while one[start] == other[start]:
        start += 1
    while one[end - 1] == other[end - 1]:
        end -= 1
    return start, end


def _phrases(left: list[str], right: list[str]) -> Iterator[tuple[int, int]]:
    """Yields how many words at the beginning and at the end changed places around the unchanged middle."""
    size = len(left)
    for first in range(1, min(MAX_PHRASE_WORDS, size - 1) + 1):
        for last in range(1, min(MAX_PHRASE_WORDS, size - first) + 1):
            if (
                left[:first] == right[size - first :]
                and left[size - last :] == right[:last]
                and left[first : size - last] == right[last : size - first]
            ):
                yield first, last


def _has_content(phrase: Sequence[str]) -> bool:
    """Returns whether the phrase has a content word. The guard `numbers` compares the order of numbers."""
    return any(word not in FUNCTION_WORDS and word not in NUMBER_WORDS and not word[-1].isdigit() for word in phrase)


def _is_comparative(word: str) -> bool:
    return word in ("more", "less", "better", "worse", "best") or (len(word) > 4 and word.endswith(("er", "est")))


PIVOTS: Final = words_in("to from than over into in by of as for against onto before after")
"""Pivots: swapping the words around one changes the meaning."""
WEAK_PIVOTS: Final = words_in("for as against in")
"""Pivots that count only if both questions have exactly the same content words."""
ROLES: Final = {
    "from": "from", "to": "to", "into": "to", "onto": "to", "before": "before", "after": "after", "above": "above",
    "below": "below", "over": "above", "under": "below", "with": "with", "without": "without", "until": "before",
    "since": "after", "versus": "", "off": "from",
}  # fmt: skip
COUNTERPARTS: Final = {
    "from": "to", "to": "from", "before": "after", "after": "before", "above": "below", "below": "above",
    "with": "without", "without": "with",
}  # fmt: skip
BEFORE_INFINITIVE: Final = FUNCTION_WORDS | words_in("going able trying try way ways used supposed order")
"""Before a `to` that begins an infinitive."""
NO_WORDS: Final[frozenset[str]] = frozenset()
NOT_PIVOT_AFTER: Final = {
    "to": BEFORE_INFINITIVE,
    "of": words_in("one two some any all most many none each both out kind kinds type types sort lot because"),
}
"""A word is not a pivot after one of these."""
IGNORED_WORDS: Final = (
    FUNCTION_WORDS | ROLES.keys() | NUMBER_WORDS | words_in("already still now yet again ever currently")
)
"""Function words and numbers. The guard `numbers` compares the order of numbers."""

Sides = tuple[frozenset[str], frozenset[str], tuple[str, str]]
"""The words before a pivot, those after it, and its two neighbors."""


@dataclass(frozen=True, slots=True)
class Order:
    """The word order of a question."""

    words: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    """Stems of the content words."""
    pivots: dict[str, Sides] = field(default_factory=dict)
    """By pivot, the stems before and after it."""
    roles: dict[str, str] = field(default_factory=dict)
    """By stem, the preposition before it (from, to, with, ...)."""


def read_order(question: Words) -> Order:
    """Returns the word order of a question in one pass."""
    content: list[str] = []
    pivots: dict[str, int] = {}
    roles: dict[str, str] = {}
    role = ""
    words = question.words[:MAX_WORDS] if question.english else ()
    previous = ""
    for word in words:
        if word in ROLES:
            role = "" if word == "to" and previous in BEFORE_INFINITIVE else ROLES[word]
        if word in PIVOTS and previous not in NOT_PIVOT_AFTER.get(word, NO_WORDS):
            pivots.setdefault(word, len(content))
        if word not in IGNORED_WORDS and not word[-1].isdigit():
            known = CLASSES.get(word)
            base = known[1] if known else stem(word)
            content.append(base)
            if role:
                roles.setdefault(base, role)
                role = ""
        previous = word
    sides = {pivot: _sides(content, at) for pivot, at in pivots.items()}
    return Order(words, tuple(content), sides, roles)


def _sides(content: list[str], at: int) -> Sides:
    neighbors = ("".join(content[at - 1 : at]), "".join(content[at : at + 1]))
    return frozenset(content[:at]), frozenset(content[at:]), neighbors


def compare_order(one: Order, other: Order) -> str:
    """Returns the words that changed places, else an empty string."""
    difference = _swapped_around_pivot(one, other) or _preposition_changed(one, other)
    if difference or one.words == other.words:
        return difference
    same_words = len(one.words) == len(other.words) and sorted(one.words) == sorted(other.words)
    return swapped_phrases(one.words, other.words) if same_words else _swapped_words(one, other)


def _swapped_around_pivot(one: Order, other: Order) -> str:
    """Returns two words that changed sides around a pivot, else an empty string.

    Neighbors of the pivot are enough. For other words, most content words must be the same.
    """
    for pivot, (before, after, neighbors) in one.pivots.items():
        sides = other.pivots.get(pivot)
        if sides is None:
            continue
        if neighbors == sides[2] or (pivot in WEAK_PIVOTS and set(one.content) != set(other.content)):
            continue
        if neighbors == sides[2][::-1] and all(neighbors):
            return f"{neighbors[0]} {pivot} {neighbors[1]} / {neighbors[1]} {pivot} {neighbors[0]}"
        if _mostly_same(one.content, other.content):
            to_after = before & sides[1] - sides[0] - after
            to_before = after & sides[0] - sides[1] - before
            if to_after and to_before:
                left, right = min(to_after), min(to_before)
                return f"{left} {pivot} {right} / {right} {pivot} {left}"
    return ""


def _mostly_same(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Returns whether the two share at least three of four words."""
    ours, theirs = set(left), set(right)
    return 4 * len(ours & theirs) >= 3 * len(ours | theirs)


def _preposition_changed(one: Order, other: Order) -> str:
    """Compares the preposition before each word: from Paris / to Paris."""
    for word, role in one.roles.items():
        if other.roles.get(word, "?") == COUNTERPARTS.get(role):
            return f"{role} {word} / {other.roles[word]} {word}"
    return ""


def _swapped_words(one: Order, other: Order) -> str:
    """Returns two words that changed places around unchanged ones: Germany invade France / France invade Germany.

    Ignores questions whose grammar also changed: the price of a flight / the flight's price, was invaded by.
    """
    left, right = one.content, other.content
    if left == right or len(left) != len(right) or len(left) < 3 or one.pivots.keys() != other.pivots.keys():
        return ""
    moved = [index for index, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
    if len(moved) != 2 or not 2 <= moved[1] - moved[0] <= 3 or ("by" in one.words) != ("by" in other.words):
        return ""
    if not COORDINATORS.isdisjoint(one.words) or not COORDINATORS.isdisjoint(other.words):
        return ""
    first, second = moved
    if left[first] == right[second] and left[second] == right[first]:
        return f"{' '.join(left[first : second + 1])} / {' '.join(right[first : second + 1])}"
    return ""
