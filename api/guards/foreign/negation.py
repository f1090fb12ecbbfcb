"""Guard `foreign_negation`: what the one denies the other denies too, in languages other than English.

Only whether something is denied is compared, not how often: French has two words for it, Spanish may repeat it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from api.guards.foreign.content import is_read
from api.guards.words import Words
from api.languages.function_words import BY_WORD, words_in

NOT: Final = words_in(
    """
    nicht kein keine keinen keiner keinem keines nie niemals nichts niemand ne n pas jamais rien aucun aucune non no
    nunca jamás ningún ninguna ninguno nada nadie tampoco mai niente nulla nessun nessuno nessuna não nem nenhum nenhuma
    ninguém niet geen nooit niets nie nigdy nic żaden żadna inte aldrig ingen inga inget ikke intet ne není nejsou
    не нет нельзя никогда ничего нету değil yok ei eivät nem nincs
    """
)
WITHOUT: Final = words_in("ohne sans sin senza sem zonder bez utan uden uten без olmadan")
OR: Final = words_in("oder ou o oppure of lub czy eller или veya")
"""Before a `not` that asks whether or not."""
ENGLISH_TOO: Final = words_in("no non ne n nada mai nic ei sans sin")
"""Deny nothing where no other language prevails."""
JAPANESE: Final = re.compile(r"ません|ない|なく|なかった|ずに|不可|禁止")
CHINESE: Final = re.compile(r"[不没沒未别別勿]")
KANA: Final = re.compile(r"[\u3040-\u30ff]")
WHETHER: Final = re.compile(r"(\w)[不没沒]\1")
"""能不能: can or cannot, a plain question."""
TURKISH: Final = re.compile(r"m[ıiuü]yor|\wm[ae]z(?:\b|s)")


@dataclass(frozen=True, slots=True)
class Denial:
    """What a question denies, as far as these rules see."""

    denies: bool = False
    without: bool = False


NOTHING: Final = Denial()
NONE: Final[frozenset[str]] = frozenset()
PORTUGUESE_IN: Final = words_in("no")
"""In the."""


def read(question: Words) -> Denial:
    """Linear in the words."""
    if not is_read(question):
        return NOTHING
    words = question.words
    ignored = ENGLISH_TOO if question.english else PORTUGUESE_IN if _is_portuguese(words) else NONE
    return Denial(_denies(words, ignored), any(word in WITHOUT and word not in ignored for word in words))


def _is_portuguese(words: tuple[str, ...]) -> bool:
    found = Counter(language for word in words for language in BY_WORD.get(word, ()))
    return found["pt"] > found["es"]


def _denies(words: tuple[str, ...], ignored: frozenset[str]) -> bool:
    for place, word in enumerate(words):
        if word in NOT and word not in ignored:
            if place and words[place - 1] in OR:
                continue
            return True
        if not word.isascii() and _denies_within(word):
            return True
    return False


def _denies_within(word: str) -> bool:
    """In languages that deny inside a word, or that put no blanks between words."""
    if KANA.search(word):
        return JAPANESE.search(word) is not None
    return CHINESE.search(WHETHER.sub(r"\1", word)) is not None or TURKISH.search(word) is not None


def compare(one: Denial, other: Denial) -> str:
    """What is denied in one only, else an empty text."""
    if one == other:
        return ""
    return f"{_shown(one)} / {_shown(other)}"


def _shown(denial: Denial) -> str:
    return " ".join(word for word, is_so in (("not", denial.denies), ("without", denial.without)) if is_so) or "none"
