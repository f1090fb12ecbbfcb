"""Finds what else a question asks for: other spellings, acronyms that the documents explain, further parts. Pure.

A word that none of the tenant's passages has may be misspelled. The index finds passages with a similar word, and here
the question gets the word that the passages have. A code may be written with other signs, `QX-1108` as `QX1108`, and
a number with another decimal sign.

A passage that says `Service Level Agreement (SLA)` explains the acronym. A question for one finds the other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Final, TypeVar

from api.knowledge.quotes import SPACELESS, terms_of
from api.knowledge.ranking import LONGEST_TEXT

Place = TypeVar("Place", bound=Hashable)

SIMILAR: Final = 0.8
"""How similar two spellings must be, as `difflib` measures it: one letter of five, or two swapped ones."""
MIN_LETTERS: Final = 5
"""Shorter words resemble too many others."""
MAX_FUZZY: Final = 4
MAX_COMPARED: Final = 200
"""Words that a misspelled one is compared with, from the best passages on: each takes 0.1 ms of the event loop."""
MAX_KNOWN: Final = 5_000
MAX_CODES: Final = 2
MAX_RUNS: Final = 5
LONGEST_LETTERS: Final = 4
"""Letters that may stand before the number of a code that is written as two words: `QX 1108`."""
MAX_PHRASES: Final = 4
LONGEST_QUESTION: Final = 400
"""Characters of a question of which the parts are looked at."""
MAX_ACRONYMS: Final = 20
"""Of one passage."""
_WORD: Final = re.compile(r"[^\W\d_]{4,40}")
_PARTS: Final = re.compile(r"\w+")
_PART: Final = re.compile(r"[,;?]|\b(?:and|und|et|y|e|en|och|og|ja|i|ve)\b", re.IGNORECASE)
"""What separates the parts of a question, in some languages."""
_EXPLAINED: Final = re.compile(r"\(([A-Z][A-Za-z]{1,7})\)")
_BEFORE: Final = 120
"""Characters before an acronym in which its long form is looked for."""
_WRITTEN: Final = re.compile(r"[^\W_]+(?:[-./_:][^\W_]+)*")
_RUN: Final = re.compile(r"[^\W\d_]+|\d+")
_DECIMAL: Final = re.compile(r"(?<![\w.,])\d+[.,]\d+(?!\w|[.,]\d)")
_LINKS: Final = frozenset(("a", "and", "for", "in", "of", "on", "the", "to"))
"""Words of a long form that need no letter in the acronym."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """`misspelled`: words of the question to search for by similar spellings. `phrases`: what else it asks for."""

    misspelled: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.misspelled or self.phrases)


def expanded(question: str, absent: Collection[str], passages: Iterable[str]) -> Expansion:
    """The expansion of a question. `absent`: its case-folded words that no passage has. `passages`: those found."""
    misspelled = [word for word in absent if word.isalpha() and len(word) >= MIN_LETTERS]
    folded = f" {' '.join(_PARTS.findall(question.casefold()))} "
    phrases = dict.fromkeys(one for code in _codes(question, absent)[:MAX_CODES] for one in _spellings(code))
    most = MAX_PHRASES + len(phrases)
    for text in passages:
        for acronym, long_form in explained(text[:LONGEST_TEXT]):
            if f" {acronym} " in folded:
                phrases[long_form] = None
            elif f" {long_form} " in folded:
                phrases[acronym] = None
    return Expansion(tuple(sorted(misspelled)[:MAX_FUZZY]), tuple(phrases)[:most])


def explained(text: str) -> Iterator[tuple[str, str]]:
    """Yields the first acronyms that a text explains, with their long forms, both case-folded."""
    for found in islice(_EXPLAINED.finditer(text), MAX_ACRONYMS):
        words = _PARTS.findall(text[max(0, found.start() - _BEFORE) : found.start()].casefold())
        long_form = _long_form(found[1].casefold(), words)
        if long_form:
            yield found[1].casefold(), long_form


def _long_form(acronym: str, words: list[str]) -> str:
    """The last words whose initials are the acronym; empty if they are not."""
    left, place = acronym, len(words)
    while left and place > 0:
        place -= 1
        if words[place][0] == left[-1]:
            left = left[:-1]
        elif words[place] not in _LINKS:
            return ""
    return "" if left else " ".join(words[place:])


def _codes(question: str, absent: Collection[str] | None = None) -> list[tuple[str, ...]]:
    """The codes of a question that may be written with other signs, each as its runs of letters and of digits.

    `absent`: only those that no passage has. A full stop or a colon means something: `v1.10` is another version.
    """
    words = _WRITTEN.findall(question[:LONGEST_QUESTION])
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word.isdecimal() and before.isalpha() and len(before) <= LONGEST_LETTERS:
            runs = (before.casefold(), word)
        else:
            runs = () if "." in word or ":" in word else tuple(_RUN.findall(word.casefold()))
        is_mixed = 2 <= len(runs) <= MAX_RUNS and any(map(str.isdigit, runs)) and not all(map(str.isdigit, runs))
        if is_mixed and (absent is None or word.casefold() in absent):
            found.append(runs)
    return list(dict.fromkeys(found))


def _spellings(code: tuple[str, ...]) -> Iterator[str]:
    """Yields a code as one word, then divided at each place, then everywhere."""
    yield "".join(code)
    yield from ("".join(code[:at]) + "-" + "".join(code[at:]) for at in range(1, len(code)))
    if len(code) > 2:
        yield "-".join(code)


def respelled(question: str, misspelled: Collection[str], passages: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The question with its codes and misspelled words as the passages spell them, and the words that changed."""
    forms = ["[-_/ ]?".join(map(re.escape, code)) for code in _codes(question)]
    forms += [re.sub("[.,]", "[.,]", number) for number in _DECIMAL.findall(question[:LONGEST_QUESTION])]
    if not (misspelled or forms):
        return question, ()
    texts = [text[:LONGEST_TEXT] for text in passages]
    for form in forms[:MAX_FUZZY]:
        question = _as_written(question, form, texts)
    known = _known(misspelled, texts) if misspelled else ()
    corrections = {}
    for word in misspelled:
        near = [one for one in known if one[0] == word[0] and abs(len(one) - len(word)) <= 2]
        for correction in get_close_matches(word, sorted(near[:MAX_COMPARED]), 1, SIMILAR):
            corrections[word] = correction
    corrected = _WORD.sub(lambda found: _cased(found[0], corrections.get(found[0].casefold())), question)
    return corrected, tuple(corrections.values())


def _known(misspelled: Collection[str], texts: Sequence[str]) -> Collection[str]:
    """The words of the passages that begin as a misspelled one does, those of the best passages first."""
    initials = "".join({word[0] for word in misspelled})
    like = re.compile(rf"\b[{initials}][^\W\d_]{{3,39}}")
    known: dict[str, None] = {}
    for text in texts:
        known.update(dict.fromkeys(like.findall(text.casefold())))
        if len(known) > MAX_KNOWN:
            break
    return known


def _as_written(question: str, form: str, texts: Sequence[str]) -> str:
    """The question with a code or number as the first passage writes it, unless one writes it as the question does."""
    written = re.compile(rf"(?<![^\W_]){form}(?![^\W_])", re.IGNORECASE)
    asked = written.search(question)
    found = [one[0] for text in texts if (one := written.search(text))]
    if asked is None or not found or asked[0].casefold() in map(str.casefold, found):
        return question
    return f"{question[: asked.start()]}{found[0]}{question[asked.end() :]}"


def uncovered(
    question: str, relevant: Sequence[Place], passages: Mapping[Place, str], shown: int, most: int
) -> list[Place]:
    """Passages for parts of the question that the first `shown` of the relevant passages do not speak about.

    `Who keeps the press, and who mentors apprentices?` has two parts. A passage speaks about one if it has a word of
    it; a word in more than `most` passages does not count. Without any relevant passage the whole question is about
    something else.
    """
    parts = [terms for part in _PART.split(question[:LONGEST_QUESTION]) if (terms := terms_of(part))]
    if len(parts) < 2 or not relevant:
        return []
    wanted = {term for terms in parts for term in terms}
    words = {place: _among(wanted, text[:LONGEST_TEXT].casefold()) for place, text in passages.items()}
    frequency = Counter(word for some in words.values() for word in some)
    told = {word for place in relevant[:shown] for word in words[place]}
    found = []
    for part in parts:
        rare = frozenset(word for word in part if 0 < frequency[word] <= most)
        if rare and part.isdisjoint(told):
            found.append(max(passages, key=lambda place: len(words[place] & rare)))
    return list(dict.fromkeys(found))


def _among(terms: Collection[str], text: str) -> frozenset[str]:
    """Which terms a case-folded text has at the start of a word; much faster than to take the text apart."""
    return frozenset(
        term
        for term in terms
        if term in text and (SPACELESS.search(term) or re.search(rf"\b{re.escape(term)}", text) is not None)
    )


def _cased(word: str, correction: str | None) -> str:
    if correction is None:
        return word
    return correction.capitalize() if word[0].isupper() else correction
