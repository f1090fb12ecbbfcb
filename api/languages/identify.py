"""Which language a text is in: by its script, its words of grammar, its letters, and for English its common words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from api.languages.english_words import COMMON
from api.languages.function_words import BY_WORD, ENGLISH, LETTERS, LOANS, SHARED
from api.languages.scripts import LATIN, scripts_of

UNDETERMINED: Final = "und"
"""As ISO 639 has it: words, and none that are known."""
HINT: Final = 0.25
"""What a word weighs that other languages may have too, beside a word of grammar."""

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ELISION: Final = re.compile(r"\b(?:[ldjnc]|qu|dell|nell|all|sull)['’](?=[^\W\d_]{2})", re.IGNORECASE)
"""French and Italian: l'ordine, qu'il."""
ENDINGS: Final = (
    ("s", ""),
    ("es", ""),
    ("ies", "y"),
    ("ed", ""),
    ("d", ""),
    ("ing", ""),
    ("ing", "e"),
    ("ly", ""),
    ("'s", ""),
)
"""Of inflected words, and what their base ends with instead."""
MAX_WORDS: Final = 120


def language_of(text: str) -> str:
    """ISO 639-1 for a language in Latin letters, the script's name in lower case for one that is not.

    `und` where there are words and nothing tells, an empty text where there are only names, figures and signs.
    """
    scripts = scripts_of(text)
    if not scripts:
        return ""
    script, letters = max(scripts.items(), key=lambda item: item[1])
    if script != LATIN and 2 * letters > scripts.total():
        return script.lower()
    return _by_words(text)


def _by_words(text: str) -> str:
    words = _WORD.findall(text)[:MAX_WORDS]
    english, foreign = _evidence(text, [word.lower().replace("’", "'") for word in words])
    if foreign:
        language, weight = max(foreign.items(), key=lambda item: item[1])
        if weight > english:
            return language
    if english >= 1:
        return "en"
    return _by_vocabulary(words)


def _evidence(text: str, words: list[str]) -> tuple[float, dict[str, float]]:
    """What speaks for English, and what for each other language."""
    english = 0.0
    foreign: Counter[str] = Counter()
    for word in words:
        if word in ENGLISH:
            english += 1
        elif languages := BY_WORD.get(word):
            foreign.update(languages)
        elif _is_english(word):
            english += HINT
    if not text.isascii():
        _count_letters(text, foreign)
    if "'" in text or "’" in text:
        elided = len(_ELISION.findall(text))
        foreign.update({"fr": elided, "it": elided} if elided else {})
    return english, dict(foreign)


def _is_english(word: str) -> bool:
    """A common word, or an inflected form of one."""
    if word in COMMON or word in SHARED or word in ENGLISH:
        return True
    return any(word.endswith(ending) and word.removesuffix(ending) + base in COMMON for ending, base in ENDINGS)


def _count_letters(text: str, foreign: Counter[str]) -> None:
    """Words with a letter that English lacks, but for names and loans: a word counts once."""
    for place, word in enumerate(text.split()):
        is_name = place > 0 and word[:1].isupper()
        if word.isascii() or is_name or word.lower().strip(".,;:?!()\"'") in LOANS:
            continue
        languages = {language for letter in word.lower() for language in LETTERS.get(letter, ())}
        foreign.update(languages)


def _by_vocabulary(words: list[str]) -> str:
    """English where most of the words are: a capital inside, or all in capitals, is a name and says nothing."""
    telling = [word.lower() for place, word in enumerate(words) if (place == 0 or word.islower()) and len(word) > 1]
    if words and words[0].isupper() and len(words[0]) > 1:
        telling = telling[1:]
    if not telling:
        return ""
    known = sum(map(_is_english, telling))
    return "en" if 2 * known > len(telling) else UNDETERMINED
