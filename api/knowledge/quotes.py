"""Splits text into sentences, and finds the sentence of a passage that a claim rests on. Pure and linear.

The claim is the part of the answer that cites the passage or, before there is an answer, the question. The sentence
that shares the most telling words with it is the quote: a word that few sentences of the passage have tells the most.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from api.languages.function_words import ENGLISH

LONGEST_TEXT: Final = 8_000
"""Characters of a passage that are looked at."""
LONGEST_QUOTE: Final = 1_000
"""A longer sentence, such as one without any end, is no quote."""
STEM: Final = 5
"""Letters that inflected forms of a word share: `approves`, `approval`."""
_END: Final = re.compile(
    r"""
    (?<!\b\w\.)(?<!\b(?:Mr|Ms|Dr|St|No|Nr|vs|ca)\.)(?<!\b(?:Mrs|Art|Fig|bzw|e\.g|i\.e|z\.B)\.)(?<!\bProf\.)
    (?<=[.!?…؟।])["'”’»)\]]{0,3}(?:\ ?\[[\d,\ -]{1,20}\])*\s+   # the sentence ends, with its citations
    |(?<=[。！？])
    |\n[ \t]*\n\s*                                              # a paragraph
    |\n(?=[ \t]*(?:[|\#>*+-]|\d{1,4}[.)]\s))                    # a row, a heading, a quotation or an item of a list
    """,
    re.VERBOSE,
)
_HEADING: Final = re.compile(r"\s*#{1,6}\s")
_RULE: Final = re.compile(r"[\s|:=*_-]*")
_WORD: Final = re.compile(r"\w+(?:[.,]\d+)*")
_CITATION: Final = re.compile(r"\[[\d,;\s\u2010-\u2015-]{1,40}\]")
SPACELESS: Final = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of scripts that put no spaces between words."""


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, each a part of it. A row of a table and a heading are sentences too."""
    return [one for one in _pieces(text) if not _RULE.fullmatch(one)]


def _pieces(text: str) -> list[str]:
    found, start = [], 0
    for end in _END.finditer(text):
        # The signs and citations after the full stop belong to the sentence.
        found.append(text[start : end.start() + len(end[0].rstrip())].strip())
        start = end.end()
    return [*found, text[start:].strip()]


def closest(claim: str, passage: str) -> str | None:
    """The sentence of a passage that says what the claim says, or None if none shares a word with it.

    A heading and the header of a table are not quoted: they answer nothing. A heading tells what the sentences below it
    are about.
    """
    wanted = terms_of(_CITATION.sub(" ", claim))
    candidates = list(_quotable(_pieces(passage[:LONGEST_TEXT])))
    terms = [terms_of(one) | about for one, about in candidates]
    frequency = Counter(term for some in terms for term in some)
    worth = [_shared(wanted, some, frequency) for some in terms]
    best = max(range(len(candidates)), key=lambda place: worth[place], default=None)
    if best is None or worth[best] == 0 or len(candidates[best][0]) > LONGEST_QUOTE:
        return None
    return candidates[best][0]


def _quotable(pieces: Sequence[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yields the sentences and rows that may be quoted, with the words of the heading above."""
    about: frozenset[str] = frozenset()
    for one, after in zip(pieces, [*pieces[1:], ""], strict=True):
        if _HEADING.match(one):
            about = terms_of(one)
        elif not (_RULE.fullmatch(one) or (after.startswith("|") and _RULE.fullmatch(after))):
            yield one, about


def _shared(wanted: frozenset[str], has: frozenset[str], frequency: Counter[str]) -> float:
    """The shared terms by what they tell; a long sentence shares some by chance."""
    told = sum((2.0 if any(map(str.isdigit, term)) else 1.0) / frequency[term] for term in wanted & has)
    return told / math.sqrt(math.sqrt(max(len(has), 1)))


def terms_of(text: str) -> frozenset[str]:
    """The words of a text that tell something, without endings."""
    found: set[str] = set()
    for word in _WORD.findall(text.casefold()):
        if word in ENGLISH:
            continue
        if SPACELESS.search(word):
            found.update(word[at : at + 2] for at in range(max(len(word) - 1, 1)))
        else:
            found.add(word[:STEM] if word.isalpha() else word)
    return frozenset(found)
