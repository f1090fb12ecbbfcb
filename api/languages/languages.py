"""The languages that an embedder was made for, and the questions that are not in one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from api.languages.identify import UNDETERMINED, language_of
from api.languages.scripts import LATIN, words_outside

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
            return self.codes != ENGLISH.codes  # the vocabulary of other languages is not known
        scripts = self.scripts
        return scripts is None or language.upper() in scripts

    def words_outside(self, text: str) -> tuple[str, ...]:
        """The words of a text in scripts that none of these languages is written in."""
        scripts = self.scripts
        return () if scripts is None else words_outside(text, scripts)


ENGLISH: Final = Languages(frozenset(["en"]))
EVERY: Final = Languages()
