"""Guard `order`: the same words the other way round (dollars to euros / euros to dollars).

Two words or short phrases that changed places: the same words, another question.

`Can I learn French before Spanish` is not `Can I learn Spanish before French`. A clause that only moved to the front,
and lists (cats and dogs), say the same in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.guards.vocabulary import CLASSES, FUNCTION_WORDS, stem
from api.guards.vocabulary import WORDS as NUMBER_WORDS
from api.guards.words import Words
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


PIVOTS: Final = words_in("to from than over into in by of as for against onto before after")
"""What stands before one of these is not what stands after it."""
LOOSE: Final = words_in("for as against in")
"""Tell only among the very same words."""
ROLES: Final = {
    "from": "from", "to": "to", "into": "to", "onto": "to", "before": "before", "after": "after", "above": "above",
    "below": "below", "over": "above", "under": "below", "with": "with", "without": "without", "until": "before",
    "since": "after", "versus": "", "off": "from",
}  # fmt: skip
COUNTERPARTS: Final = {
    "from": "to", "to": "from", "before": "after", "after": "before", "above": "below", "below": "above",
    "with": "without", "without": "with",
}  # fmt: skip
INFINITIVE: Final = FUNCTION_WORDS | words_in("going able trying try way ways used supposed order")
"""Before a `to` that leads a verb, no place."""
NONE: Final[frozenset[str]] = frozenset()
SILENCED: Final = {
    "to": INFINITIVE,
    "of": words_in("one two some any all most many none each both out kind kinds type types sort lot because"),
}
"""A pivot after one of these is none."""
SKIPPED: Final = FUNCTION_WORDS | ROLES.keys() | NUMBER_WORDS | words_in("already still now yet again ever currently")
"""Grammar, and numbers: their order is the guard `numbers`' matter."""

Sides = tuple[frozenset[str], frozenset[str], tuple[str, str]]
"""The words before a pivot, those after it, and the two beside it."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a question's words."""

    words: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    """The stems that matter."""
    pivots: dict[str, Sides] = field(default_factory=dict)
    """By pivot the stems before and after it."""
    roles: dict[str, str] = field(default_factory=dict)
    """By stem what stands before it (from, to, with ...)."""


def read_order(question: Words) -> Order:
    """One walk over the words."""
    content: list[str] = []
    pivots: dict[str, int] = {}
    roles: dict[str, str] = {}
    role = ""
    words = question.words[:MAX_WORDS] if question.english else ()
    previous = ""
    for word in words:
        if word in ROLES:
            role = "" if word == "to" and previous in INFINITIVE else ROLES[word]
        if word in PIVOTS and previous not in SILENCED.get(word, NONE):
            pivots.setdefault(word, len(content))
        if word not in SKIPPED and not word[-1].isdigit():
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
    beside = ("".join(content[at - 1 : at]), "".join(content[at : at + 1]))
    return frozenset(content[:at]), frozenset(content[at:]), beside


def compare_order(one: Order, other: Order) -> str:
    """The words that changed places, else an empty text."""
    difference = _turned(one, other) or _role(one, other)
    if difference or one.words == other.words:
        return difference
    same_words = len(one.words) == len(other.words) and sorted(one.words) == sorted(other.words)
    return exchanged(one.words, other.words) if same_words else _swapped(one, other)


def _turned(one: Order, other: Order) -> str:
    """Around one pivot a word went from before to after it, and another the other way.

    Words right beside the pivot tell by themselves, others only where nearly all words are the same.
    """
    for pivot, (before, after, beside) in one.pivots.items():
        sides = other.pivots.get(pivot)
        if sides is None:
            continue
        if beside == sides[2] or (pivot in LOOSE and set(one.content) != set(other.content)):
            continue
        if beside == sides[2][::-1] and all(beside):
            return f"{beside[0]} {pivot} {beside[1]} / {beside[1]} {pivot} {beside[0]}"
        if _alike(one.content, other.content):
            to_after = before & sides[1] - sides[0] - after
            to_before = after & sides[0] - sides[1] - before
            if to_after and to_before:
                left, right = min(to_after), min(to_before)
                return f"{left} {pivot} {right} / {right} {pivot} {left}"
    return ""


def _alike(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """At least three of four words in common."""
    ours, theirs = set(left), set(right)
    return 4 * len(ours & theirs) >= 3 * len(ours | theirs)


def _role(one: Order, other: Order) -> str:
    """from Paris / to Paris."""
    for word, role in one.roles.items():
        if other.roles.get(word, "?") == COUNTERPARTS.get(role):
            return f"{role} {word} / {other.roles[word]} {word}"
    return ""


def _swapped(one: Order, other: Order) -> str:
    """Germany invade France / France invade Germany: two words changed places around others that stayed.

    Where grammar changed too it may say the same: the price of a flight / the flight's price, was invaded by.
    """
    left, right = one.content, other.content
    if left == right or len(left) != len(right) or len(left) < 3 or one.pivots.keys() != other.pivots.keys():
        return ""
    moved = [place for place, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
    if len(moved) != 2 or not 2 <= moved[1] - moved[0] <= 3 or ("by" in one.words) != ("by" in other.words):
        return ""
    if not EQUALS.isdisjoint(one.words) or not EQUALS.isdisjoint(other.words):
        return ""
    first, second = moved
    if left[first] == right[second] and left[second] == right[first]:
        return f"{' '.join(left[first : second + 1])} / {' '.join(right[first : second + 1])}"
    return ""
