"""Which language a text is in: by its script, its words of grammar, its letters, and for English its common words.

The scripts of a text: which its letters are of, and its words that are in none of those that are known.

The languages that an embedder was made for, and the questions that are not in one of them.

The languages of embedding models, by the names that Ollama gives them.
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
"""What all scripts share: figures, marks, symbols."""
NAMES: Final = {
    "CJK": "HAN", "IDEOGRAPHIC": "HAN", "KANGXI": "HAN", "BOPOMOFO": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA",
    "KATAKANA-HIRAGANA": "KANA", "HANGUL": "HANGUL", "LATIN": LATIN,
}  # fmt: skip
"""Scripts by the first word of the names of their letters, where that is not the script itself."""
WIDTHS: Final = ("FULLWIDTH ", "HALFWIDTH ")
LETTERLIKE: Final = frozenset(
    ["MODIFIER", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "KELVIN", "ANGSTROM", "OHM", "DOUBLE-STRUCK",
     "SCRIPT", "BLACK-LETTER", "SUPERSCRIPT", "SUBSCRIPT", "ROMAN", "CIRCLED", "PARENTHESIZED", "TURNED", "PLANCK",
     "EULER", "INFORMATION", "ESTIMATED", "BLACKBOARD"]
)  # fmt: skip
"""First words of the names of symbols that Unicode counts among letters."""


@lru_cache(maxsize=8192)
def script_of(character: str) -> str:
    """`LATIN`, `HAN`, `KANA`, `CYRILLIC` and so on for a letter and its marks, `COMMON` for all else."""
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
    return NAMES.get(first, first)


def scripts_of(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    if text.isascii():
        return Counter({LATIN: sum(map(str.isalpha, text))})
    found = Counter(map(script_of, text))
    del found[ANY_SCRIPT]
    return found


def words_outside(text: str, scripts: frozenset[str]) -> tuple[str, ...]:
    """The runs of a text whose letters are of none of `scripts`, in order and without case."""
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
"""The scripts of languages that are not written in Latin letters, by their ISO 639-1 code."""


@dataclass(frozen=True, slots=True)
class Languages:
    """`codes`: ISO 639-1, as `en` and `de`; None for a multilingual embedder, which has them all."""

    codes: frozenset[str] | None = None

    @property
    def scripts(self) -> frozenset[str] | None:
        """Those that the languages are written in, Latin always among them; None for all."""
        if self.codes is None:
            return None
        return frozenset([LATIN, *(script for code in self.codes for script in SCRIPTS.get(code, ()))])

    def outside(self, text: str) -> str:
        """The language of a text that is in none of these, as `language_of` names it; else an empty text."""
        if self.codes is None:
            return ""
        language = language_of(text)
        return "" if not language or language in self.codes or self._may_be(language) else language

    def _may_be(self, language: str) -> bool:
        """Whether a text of a script, or of no language that is known, may be in one of these."""
        if language == UNDETERMINED:
            return self.codes != ONLY_ENGLISH.codes  # the vocabulary of other languages is not known
        scripts = self.scripts
        return scripts is None or language.upper() in scripts

    def words_outside(self, text: str) -> tuple[str, ...]:
        """The words of a text in scripts that none of these languages is written in."""
        scripts = self.scripts
        return () if scripts is None else words_outside(text, scripts)


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
"""What the names of multilingual models begin with, after the publisher's name. All others are taken for English:
`nomic-embed-text`, `all-minilm`, `mxbai-embed-large`, `snowflake-arctic-embed` and `granite-embedding` are."""


def languages_of(model: str) -> Languages:
    """Of a model by its name, as `bge-m3`, `hf.co/someone/bge-m3-GGUF:Q8_0` or `granite-embedding:278m`."""
    name = model.casefold().rpartition("/")[2]
    return EVERY if name.startswith(MULTILINGUAL) else ONLY_ENGLISH
