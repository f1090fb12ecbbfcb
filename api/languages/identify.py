"""Identifies the language and scripts of a text, and the languages that an embedding model supports.

The evidence is the script, function words and letters, and for English also common words. Languages of embedding models
are known by their Ollama names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from api.languages.english_words import COMMON
from api.languages.function_words import BY_WORD, ENGLISH, LETTERS, LOANS, SHARED

LATIN: Final = "LATIN"
ANY_SCRIPT: Final = ""
"""Characters that all scripts share: digits, punctuation, symbols."""
SCRIPT_BY_NAME: Final = {
    "CJK": "HAN", "IDEOGRAPHIC": "HAN", "KANGXI": "HAN", "BOPOMOFO": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA",
    "KATAKANA-HIRAGANA": "KANA", "HANGUL": "HANGUL", "LATIN": LATIN,
}  # fmt: skip
"""Script by the first word of a letter's Unicode name, if that word is not the script."""
WIDTHS: Final = ("FULLWIDTH ", "HALFWIDTH ")
LETTERLIKE: Final = frozenset(
    ["MODIFIER", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "KELVIN", "ANGSTROM", "OHM", "DOUBLE-STRUCK",
     "SCRIPT", "BLACK-LETTER", "SUPERSCRIPT", "SUBSCRIPT", "ROMAN", "CIRCLED", "PARENTHESIZED", "TURNED", "PLANCK",
     "EULER", "INFORMATION", "ESTIMATED", "BLACKBOARD"]
)  # fmt: skip
"""First words in the Unicode names of symbols that Unicode classifies as letters."""


@lru_cache(maxsize=8192)
def script_of(character: str) -> str:
    """Returns `LATIN`, `HAN`, `KANA`, `CYRILLIC` and so on for a letter or its mark, and `ANY_SCRIPT` otherwise."""
    if character.isascii():
        return LATIN if character.isalpha() else ANY_SCRIPT
    category = unicodedata.category(character)
    if category[0] not in "LM":
        return ANY_SCRIPT
    name = unicodedata.name(character, "")
    for width in WIDTHS:
        name = name.removeprefix(width)
    first = name.split(" ", 1)[0]
    if first in LETTERLIKE or first in ("COMBINING", "VARIATION", "ZERO", ""):
        return ANY_SCRIPT
    return SCRIPT_BY_NAME.get(first, first)


def scripts_of(text: str) -> Counter[str]:
    """Counts the letters of each script."""
    if text.isascii():
        return Counter({LATIN: sum(map(str.isalpha, text))})
    found = Counter(map(script_of, text))
    del found[ANY_SCRIPT]
    return found


def words_outside(text: str, scripts: frozenset[str]) -> tuple[str, ...]:
    """Returns the case-folded runs of letters in no script of `scripts`, in order."""
    return () if text.isascii() else tuple(_outside(text, scripts))


def _outside(text: str, scripts: frozenset[str]) -> Iterator[str]:
    run: list[str] = []
    for character in text:
        script = script_of(character)
        belongs = script != ANY_SCRIPT and script not in scripts
        if belongs or (run and script == ANY_SCRIPT and unicodedata.category(character)[0] == "M"):
            run.append(character)
        elif run:
            yield "".join(run).casefold()
            run.clear()
    if run:
        yield "".join(run).casefold()


UNDETERMINED: Final = "und"
"""The ISO 639 code for words in no known language."""
COMMON_WORD_WEIGHT: Final = 0.25
"""The weight of a common English word, compared with 1 for a function word."""

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ELISION: Final = re.compile(r"\b(?:[ldjnc]|qu|dell|nell|all|sull)['’](?=[^\W\d_]{2})", re.IGNORECASE)
"""French and Italian elision: l'ordine, qu'il."""
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
"""Endings of inflected words, and the ending of their base form."""
MAX_WORDS: Final = 120


def language_of(text: str) -> str:
    """Returns the ISO 639-1 code of a language in Latin script, or the lower-case name of another script.

    Returns `und` if the words give no evidence, and an empty string if the text has only names, numbers and symbols.
    """
    scripts = scripts_of(text)
    if not scripts:
        return ""
    script, letters = max(scripts.items(), key=lambda item: item[1])
    if script != LATIN and 2 * letters > scripts.total():
        return script.lower()
    return language_by_words(text)


def language_by_words(text: str, most: int = MAX_WORDS, evidence: float = 1) -> str:
    """Reads `most` words. `evidence`: the weight that is enough; a tenth of the words of a short text is too."""
    words = _WORD.findall(text)[:most]
    least = min(evidence, max(1.0, len(words) / 10))
    english, foreign = _evidence(text, [word.lower().replace("’", "'") for word in words])
    if foreign:
        language, weight = max(foreign.items(), key=lambda item: item[1])
        if weight > english and weight >= least:
            return language
    if english >= least:
        return "en"
    return _by_vocabulary(words)


def _evidence(text: str, words: list[str]) -> tuple[float, dict[str, float]]:
    """Returns the weight of the evidence for English and for each other language."""
    english = 0.0
    foreign: Counter[str] = Counter()
    for word in words:
        if word in ENGLISH:
            english += 1
        elif languages := BY_WORD.get(word):
            foreign.update(languages)
        elif is_common_english(word):
            english += COMMON_WORD_WEIGHT
    if not text.isascii():
        _count_letters(text, foreign)
    if "'" in text or "’" in text:
        elided = len(_ELISION.findall(text))
        foreign.update({"fr": elided, "it": elided} if elided else {})
    return english, dict(foreign)


def is_common_english(word: str) -> bool:
    """Returns whether a lower-case word is a common English word or an inflected form of one."""
    if word in COMMON or word in SHARED or word in ENGLISH:
        return True
    return any(word.endswith(ending) and word.removesuffix(ending) + base in COMMON for ending, base in ENDINGS)


def _count_letters(text: str, foreign: Counter[str]) -> None:
    """Counts each word with a letter that English lacks once per language. Ignores names and loanwords."""
    for index, word in enumerate(text.split()):
        is_name = index > 0 and word[:1].isupper()
        if word.isascii() or is_name or word.lower().strip(".,;:?!()\"'") in LOANS:
            continue
        languages = {language for letter in word.lower() for language in LETTERS.get(letter, ())}
        foreign.update(languages)


def _by_vocabulary(words: list[str]) -> str:
    """Returns English if most words are. Ignores words with inner or all capitals, which are names."""
    plain_words = [word.lower() for index, word in enumerate(words) if (index == 0 or word.islower()) and len(word) > 1]
    if words and words[0].isupper() and len(words[0]) > 1:
        plain_words = plain_words[1:]
    if not plain_words:
        return ""
    known = sum(map(is_common_english, plain_words))
    return "en" if 2 * known > len(plain_words) else UNDETERMINED


SCRIPTS: Final = {
    "am": ("ETHIOPIC",), "ar": ("ARABIC",), "as": ("BENGALI",), "be": ("CYRILLIC",), "bg": ("CYRILLIC",),
    "bn": ("BENGALI",), "el": ("GREEK",), "fa": ("ARABIC",), "gu": ("GUJARATI",), "he": ("HEBREW",),
    "hi": ("DEVANAGARI",), "hy": ("ARMENIAN",), "ja": ("HAN", "KANA"), "ka": ("GEORGIAN",), "kk": ("CYRILLIC",),
    "km": ("KHMER",), "kn": ("KANNADA",), "ko": ("HANGUL", "HAN"), "ky": ("CYRILLIC",), "lo": ("LAO",),
    "mk": ("CYRILLIC",), "ml": ("MALAYALAM",), "mn": ("CYRILLIC",), "mr": ("DEVANAGARI",), "my": ("MYANMAR",),
    "ne": ("DEVANAGARI",), "or": ("ORIYA",), "pa": ("GURMUKHI",), "ps": ("ARABIC",), "ru": ("CYRILLIC",),
    "sa": ("DEVANAGARI",), "sd": ("ARABIC",), "si": ("SINHALA",), "sr": ("CYRILLIC",), "ta": ("TAMIL",),
    "te": ("TELUGU",), "th": ("THAI",), "ug": ("ARABIC",), "uk": ("CYRILLIC",), "ur": ("ARABIC",), "yi": ("HEBREW",),
    "zh": ("HAN",),
}  # fmt: skip
"""The scripts of languages without Latin script, by ISO 639-1 code."""


@dataclass(frozen=True, slots=True)
class Languages:
    """The languages of an embedding model. `codes`: ISO 639-1, such as `en`; None for a multilingual model."""

    codes: frozenset[str] | None = None

    @property
    def scripts(self) -> frozenset[str] | None:
        """The scripts of these languages, always with Latin; None for all scripts."""
        if self.codes is None:
            return None
        return frozenset([LATIN, *(script for code in self.codes for script in SCRIPTS.get(code, ()))])

    def outside(self, text: str) -> str:
        """Returns the language of a text if it is none of these, as `language_of` names it, else an empty string."""
        if self.codes is None:
            return ""
        language = language_of(text)
        return "" if not language or language in self.codes or self._may_be(language) else language

    def _may_be(self, language: str) -> bool:
        """Returns whether a text in this script, or in an unidentified language, may be in one of these languages."""
        if language == UNDETERMINED:
            return self.codes != ONLY_ENGLISH.codes  # we have no vocabulary of other languages
        scripts = self.scripts
        return scripts is None or language.upper() in scripts

    def read(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Returns `outside`, and the words of a text in scripts that none of these languages uses."""
        scripts = self.scripts
        return self.outside(text), () if scripts is None else words_outside(text, scripts)


ONLY_ENGLISH: Final = Languages(frozenset(["en"]))
EVERY: Final = Languages()


MULTILINGUAL: Final = (
    "bge-m3",
    "embeddinggemma",
    "granite-embedding:278m",
    "nomic-embed-text-v2",
    "paraphrase-multilingual",
    "qwen3-embedding",
    "snowflake-arctic-embed2",
    "snowflake-arctic-embed-l-v2",
    "snowflake-arctic-embed-m-v2",
)
"""Prefixes of multilingual models' names, without the publisher.

All other models count as English: `nomic-embed-text`, `all-minilm`, `mxbai-embed-large`, `snowflake-arctic-embed` and
`granite-embedding` are.
"""


def languages_of(model: str) -> Languages:
    """Returns the languages of a model: `bge-m3`, `hf.co/someone/bge-m3-GGUF:Q8_0` or `granite-embedding:278m`."""
    name = model.casefold().rpartition("/")[2]
    return EVERY if name.startswith(MULTILINGUAL) else ONLY_ENGLISH
