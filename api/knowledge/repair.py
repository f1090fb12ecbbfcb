"""Repairs extracted text: joins words that a line end divides, and replaces ligatures. Detects garbage. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Final

from api.languages.english_words import COMMON
from api.languages.identify import LATIN, script_of

HYPHEN_AT_LINE_END: Final = "\ufffe"
"""What PDFium returns for a hyphen that ends a line."""
_DIVIDED: Final = re.compile(
    rf"(?<![^\W\d_])([^\W\d_]++)(?:{HYPHEN_AT_LINE_END}\s*+|\u00ad[\t ]*+\r?\n[\t ]*+|[-\u2010]\r?\n[\t ]*+)"
    r"(?=([^\W\d_]++)(-?))"
)
"""A word's first part with its hyphen and line end. The other groups are the part that follows, and its hyphen.

It starts where a word starts: otherwise a long word would be read once from each of its letters.
"""
_WORD: Final = re.compile(r"[^\W\d_]++(?:-[^\W\d_]++)*+")
_COMPATIBILITY: Final = re.compile(
    "[\u017f\u3000\uf900-\ufad9\ufb00-\ufb06\ufb13-\ufb17\ufb50-\ufdf9\ufe50-\ufe6f\ufe70-\ufefc\uff01-\uff5e]"
)
"""Ligatures, presentation forms, and letters of other widths. Not superscripts: 10² would become 102."""
_TOKEN: Final = re.compile(r"\S++")
_VOWELS: Final = frozenset("aeiouyæøœ")
_CONSONANTS: Final = re.compile("[b-df-hj-np-tv-xz]{5}")

EAST_ASIAN: Final = frozenset(("HAN", "KANA", "HANGUL"))
PART: Final = 20_000
"""Characters that are repaired at a time."""
SAMPLED_CHARACTERS: Final = 50_000
"""Characters that are checked for garbage."""
FEWEST_WORDS: Final = 20
"""With fewer different words, their letters tell too little."""
FEWEST_LETTERS: Final = 4
"""Letters in a word that should have a vowel."""
GARBAGE_SHARE: Final = 0.3
"""Share of characters or words from which a text is garbage. Text in any language stays far below it."""


def repaired(text: str) -> str:
    """Returns `text` without divided words and ligatures."""
    return "".join(with_joined_words(with_plain_letters(part)) for part in _parts(text))


def _parts(text: str) -> Iterator[str]:
    """Parts of a long text: a pattern keeps the GIL while it searches one."""
    start = 0
    while len(text) - start > PART:
        end = text.rfind("\n\n", start + PART // 2, start + PART)
        end = end + 2 if end > 0 else start + PART
        yield text[start:end]
        start = end
    yield text[start:]


def with_plain_letters(text: str) -> str:
    """Replaces ligatures, presentation forms and full-width letters: `ﬁve` becomes `five`."""
    if text.isascii():
        return text
    return _COMPATIBILITY.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


def with_joined_words(text: str) -> str:
    """Joins words that are divided at a line end: `reim-` and `bursement`.

    The hyphen of a compound stays. That is one that the text also has within a line, or two words that do not make one
    word. A word is what the text or common English contains.
    """
    if _DIVIDED.search(text) is None:
        return text
    known = Counter(map(str.lower, _WORD.findall(_DIVIDED.sub(" \n", text))))

    def joined(found: re.Match[str]) -> str:
        first, second, more = found[1], found[2], found[3]
        return f"{first}-" if more or _is_compound(first, second, known) else first

    return _DIVIDED.sub(joined, text)


def _is_compound(first: str, second: str, known: Counter[str]) -> bool:
    if not second[0].islower():
        return second[0].isupper()  # scripts without case have no compounds with hyphens
    first, second = first.lower(), second.lower()
    if f"{first}-{second}" in known:
        return True
    if _is_word(first + second, known):
        return False
    return _is_word(first, known) and _is_word(second, known)


def _is_word(word: str, known: Counter[str]) -> bool:
    return word in known or word in COMMON


def garbage(text: str) -> str | None:
    """Says why the text cannot be what its author wrote. None if it may be.

    Fonts without a table of characters give private or unassigned characters, or wrong letters.
    """
    sample = text[:SAMPLED_CHARACTERS]
    visible = [character for character in sample if not character.isspace()]
    unreadable = sum(map(_is_unreadable, visible))
    if visible and unreadable > GARBAGE_SHARE * len(visible):
        return f"{100 * unreadable // len(visible)} % of its characters have no meaning"
    words = {word for word in _TOKEN.findall(sample) if sum(map(str.isalpha, word)) >= FEWEST_LETTERS}
    if len(words) < FEWEST_WORDS:
        return None
    wrong = sum(_is_mixed(word) or _is_unpronounceable(word) for word in words)
    if wrong > GARBAGE_SHARE * len(words):
        return f"{100 * wrong // len(words)} % of its words are not words in any language"
    return None


def _is_unreadable(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) in ("Co", "Cn", "Cs", "Cc")


def _is_mixed(word: str) -> bool:
    """Returns whether scripts that are not written together stand in one word: `PDF文書` is fine."""
    scripts = {script for character in word if (script := script_of(character))}
    others = scripts - EAST_ASIAN
    return bool(others - {LATIN}) if scripts & EAST_ASIAN else len(others) > 1


def _is_unpronounceable(word: str) -> bool:
    """Returns whether a Latin word has no vowel, or many consonants in a row."""
    letters = unicodedata.normalize("NFD", word.strip(".,;:!?()[]\"'")).lower()
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    if len(bare) < FEWEST_LETTERS or not all(script_of(letter) == LATIN for letter in bare):
        return False
    return _VOWELS.isdisjoint(bare) or _CONSONANTS.search(bare) is not None
