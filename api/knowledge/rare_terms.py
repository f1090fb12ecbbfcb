"""Terms of a question that stand in very few passages, such as codes, figures and names: those passages lead. Pure.

An embedder tells `7Q-4821` from `7Q-4812` badly, and a fusion of ranks outweighs the one passage that has the code. So
passages with a rare term are a ranking of their own.

Which term is rare is counted among the passages that were found. The search by words ranks a passage with a rare word
first, so where few passages have it, all of them are among those found.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Final, TypeVar

MOST_PASSAGES: Final = 3
"""In how many passages a term may stand and be rare."""
MOST_TERMS: Final = 32
"""As many terms of a question are looked at as the search by words looks for."""
LONGEST_TEXT: Final = 20_000
"""Characters of a passage that are looked at."""

Place = TypeVar("Place", bound=Hashable)

_TERM: Final = re.compile(r"[^\W_]+(?:[-./_:][^\W_]+)*")
"""A word, a figure, or parts that signs join, as in `QZ-1108`, `99.5`, `node_exporter`."""


def distinctive_terms(question: str) -> tuple[str, ...]:
    """Terms that name one thing, case-folded: codes and figures of two characters or more, and names.

    A name has a capital, and does not begin the question; where most terms have one, a capital says nothing. A question
    of one term asks for that.
    """
    found = _TERM.findall(question)[:MOST_TERMS]
    chosen = (term for number, term in enumerate(found) if _is_distinctive(term, number, found))
    return tuple(dict.fromkeys(term.casefold() for term in chosen))


def _is_distinctive(term: str, number: int, all_terms: list[str]) -> bool:
    if len(term) < 2:
        return False
    if len(all_terms) == 1 or _is_code(term):
        return True
    others = all_terms[1:]
    capitals = sum(one[0].isupper() for one in others)
    return number > 0 and term[0].isupper() and 2 * capitals <= len(others)


def _is_code(term: str) -> bool:
    return any(map(str.isdigit, term)) or any(sign in term for sign in "_:/")


def leading(question: str, passages: Mapping[Place, str]) -> list[Place]:
    """The places of passages with a rare term of the question, the rarest first; of equals, as they were given."""
    terms = distinctive_terms(question)
    if not terms:
        return []
    holders = _holders(terms, passages)
    worth: dict[Place, float] = {}
    for places in holders.values():
        if len(places) <= MOST_PASSAGES:
            for place in places:
                worth[place] = worth.get(place, 0.0) + 1 / len(places)
    return sorted(worth, key=lambda place: -worth[place])


def _holders(terms: tuple[str, ...], passages: Mapping[Place, str]) -> dict[str, list[Place]]:
    """Which passages have each term, as a whole term or as one of its parts."""
    wanted = set(terms)
    holders: dict[str, list[Place]] = {}
    for place, text in passages.items():
        whole = _TERM.findall(text[:LONGEST_TEXT].casefold())
        parts = (part for term in whole if len(term) > 2 for part in re.split(r"[-./_:]", term))
        for term in wanted.intersection((*whole, *parts)):
            holders.setdefault(term, []).append(place)
    return holders
