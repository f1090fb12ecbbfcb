"""Names: what one question names, the other names too."""

from __future__ import annotations

import re
from typing import Final

from api.guards.known_names import KNOWN
from api.guards.numbers import is_number, unit_of
from api.guards.reading import Reading, Token, stem

_CODE: Final = re.compile(r"\d|[@/\\_#+]|[^.]\.[^\d.]")
_NOT_NAMES: Final = frozenset("i i'm i've i'd i'll ok".split())
_ASKS: Final = frozenset({"what", "which"})
"""What follows these is asked for: what year is as good as when."""
_TITLE_SHARE: Final = 0.7
"""From this share of capitalised words on, capitals say nothing: a title, or a locked key."""


def names(reading: Reading) -> frozenset[str]:
    """Capitalised words that begin no sentence; stems in lower case."""
    letters = [token for token in reading.tokens if token.typed[0].isalpha()]
    capitalised = [token for token in letters if token.typed[0].isupper() and token.word not in _NOT_NAMES]
    if len(letters) > 2 and len(capitalised) >= _TITLE_SHARE * len(letters):
        return frozenset()
    return frozenset(stem(token.word) for token in capitalised if not token.first or _is_odd(token))


def _is_odd(token: Token) -> bool:
    """Capitals within (`NASA`, `iPhone`) are a name also where a sentence begins."""
    return len(token.typed) > 1 and any(character.isupper() for character in token.typed[1:])


def codes(reading: Reading) -> frozenset[str]:
    """What is no word: identifiers, paths, addresses, words with digits in them."""
    return frozenset(word for word in reading.words if not is_number(word) and _CODE.search(word))


def known(reading: Reading) -> frozenset[str]:
    """Currencies, units, days and months, whichever way they are written."""
    before = ("", *reading.words)
    plain = (word for word, last in zip(reading.words, before, strict=False) if last not in _ASKS)
    units = (unit_of(word) or "" for word in reading.words)
    return frozenset(KNOWN[word] for word in (*plain, *units) if word in KNOWN)


def objection(one: Reading, other: Reading) -> str:
    """What differs; empty where nothing does."""
    for found in (codes, known):
        mine, theirs = found(one), found(other)
        if mine != theirs:
            return f"{' '.join(sorted(mine - theirs)) or '-'} / {' '.join(sorted(theirs - mine)) or '-'}"
    missing, extra = names(one) - other.stems, names(other) - one.stems
    return f"{' '.join(sorted(missing)) or '-'} / {' '.join(sorted(extra)) or '-'}" if missing or extra else ""
