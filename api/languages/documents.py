"""Finds the language of a document: the one that its file declares, or the one that its text shows. Pure and linear.

A file often declares the language of the program that wrote it. So the text decides, if its language is one that can be
detected: English, those in `function_words`, and those that their script or letters show.
"""

from __future__ import annotations

import re
from typing import Final

from api.languages.function_words import BY_WORD
from api.languages.identify import LATIN, SCRIPTS, UNDETERMINED, language_by_words, scripts_of

LONGEST_TAG: Final = 35
TAG: Final = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8}){0,4}")
"""A language in BCP 47, such as `de`, `pt-BR` or `zh-Hant`; files also write `pt_BR`."""
WINDOW: Final = 4_000
"""Characters that are read at the start, in the middle and at the end of a text."""
MAX_WORDS: Final = 1_500
EVIDENCE: Final = 3.0
"""Function words that show the language of a long text."""
_CODE: Final = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
_INLINE_CODE: Final = re.compile(r"`[^`\n]{1,200}`")
_CODE_WORD: Final = re.compile(r"(?=\D*\d)[!-~]+")
"""A word of ASCII with a digit, such as a code or a hexadecimal number, whose letters are no words."""
_ADDRESS: Final = ("://", "@", "www.")
_KANA: Final = 0.05
"""The share of kana from which a text in Han characters is Japanese."""
# fmt: off
_BY_LETTERS: Final = {
    "CYRILLIC": {"uk": "іїєґ", "be": "ў", "sr": "ђћџљњ", "mk": "ѓќѕ", "ru": "ыэё", "bg": "ъ", "kk": "әғқңөұүһ"},
    "ARABIC": {"ar": "ةىأإ", "fa": "پچژگ", "ur": "ٹڈڑےں"},
    "HEBREW": {"yi": "ײױװ"},
}
"""Letters that only one of a script's languages has, or that it has the most of, the first of equals."""
_MAIN: Final = {"CYRILLIC": "ru", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi", "BENGALI": "bn"}
"""The language of a script with several, without other evidence."""
# fmt: on
_ONLY: Final = {scripts[0]: code for code, scripts in sorted(SCRIPTS.items(), reverse=True) if len(scripts) == 1}
DETECTED: Final = frozenset(
    ["en", "ja", "zh", "ko", *(code for codes in BY_WORD.values() for code in codes)]
    + [code for letters in _BY_LETTERS.values() for code in letters]
    + [code for script, code in _ONLY.items() if script not in _BY_LETTERS]
)
"""ISO 639-1 codes of the languages that a text can show."""


def canonical(tag: str | None) -> str | None:
    """A language tag as BCP 47 writes it, such as `pt-BR` for `pt_br`; None if it is none."""
    text = (tag or "").strip()
    if len(text) > LONGEST_TAG or not TAG.fullmatch(text) or text.lower() == UNDETERMINED:
        return None
    first, *others = text.replace("_", "-").split("-")
    return "-".join([first.lower(), *map(_subtag, others)])


def _subtag(text: str) -> str:
    if len(text) == 2:
        return text.upper()
    return text.title() if len(text) == 4 and text.isalpha() else text.lower()


def primary(tag: str) -> str:
    """The language of a tag without script and region."""
    return tag.partition("-")[0]


def language_of_document(text: str, declared: str | None = None) -> str | None:
    """Returns the language in BCP 47, None if it is unknown. `declared`: the one that the file states.

    The text is in NFC, as every stored text.
    """
    stated, shown = canonical(declared), _shown(_sample(text))
    if stated is not None and (shown is None or primary(stated) == shown or primary(stated) not in DETECTED):
        return stated
    return shown


def _sample(text: str) -> str:
    """Prose from three places of a text."""
    middle = max(WINDOW, len(text) // 2)
    windows = (text[:WINDOW], text[middle : middle + WINDOW], text[max(middle + WINDOW, len(text) - WINDOW) :])
    words = (word for window in windows for word in _INLINE_CODE.sub(" ", _CODE.sub(" ", window)).split())
    return " ".join(
        word for word in words if not (any(sign in word for sign in _ADDRESS) or _CODE_WORD.fullmatch(word))
    )


def _shown(sample: str) -> str | None:
    scripts = scripts_of(sample)
    if not scripts:
        return None
    script, letters = max(scripts.items(), key=lambda item: item[1])
    if script == LATIN or 2 * letters <= scripts.total():
        eastern = scripts["HAN"] + scripts["KANA"]
        if 2 * eastern > scripts.total():
            return _eastern(scripts["KANA"], eastern)
        found = language_by_words(sample, MAX_WORDS, EVIDENCE)
        return found if found not in ("", UNDETERMINED) else None
    if script in ("HAN", "KANA"):
        return _eastern(scripts["KANA"], scripts["HAN"] + scripts["KANA"])
    return _by_letters(script, sample.lower())


def _eastern(kana: int, letters: int) -> str:
    return "ja" if kana >= _KANA * letters else "zh"


def _by_letters(script: str, sample: str) -> str | None:
    if script == "HANGUL":
        return "ko"
    counts = {code: sum(map(sample.count, letters)) for code, letters in _BY_LETTERS.get(script, {}).items()}
    best = max(counts, key=lambda code: counts[code], default="")
    if best and counts[best]:
        return best
    return _MAIN.get(script) or _ONLY.get(script)
