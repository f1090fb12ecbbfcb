"""Which scripts an embedding model on Ollama can read. Its tokens are not shown, so unrelated texts are compared.

A vocabulary without a script makes the same unknown tokens of all its words: texts of equal length have one vector.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

import numpy as np

from api.languages.identify import ANY_SCRIPT, LATIN, script_of, scripts_of

PROBES: Final = {
    "HAN": ("天空很蓝", "报销发票", "狗咬邮差"),
    "KANA": ("そらがあおい", "いぬとさんぽ", "おかねをはらう"),
    "HANGUL": ("하늘이 파랗다", "비용을 청구함", "개가 물었어요"),
    "CYRILLIC": ("голубое небо", "оплата счёта", "злая собака"),
    "GREEK": ("γαλάζιος ουρανός", "πληρωμή λογαριασμού", "άγριο σκυλί"),
    "ARABIC": ("السماء زرقاء", "دفع الفاتورة", "كلب شرس"),
    "HEBREW": ("השמיים כחולים", "תשלום חשבון", "כלב נושך"),
    "DEVANAGARI": ("आसमान नीला", "बिल भुगतान", "कुत्ता काटा"),
    "BENGALI": ("আকাশ নীল", "বিল পরিশোধ", "কুকুর কামড়"),
    "TAMIL": ("வானம் நீலம்", "கட்டணம் செலுத்து", "நாய் கடி"),
    "TELUGU": ("ఆకాశం నీలం", "బిల్లు చెల్లింపు", "కుక్క కాటు"),
    "THAI": ("ท้องฟ้าสีคราม", "จ่ายใบแจ้งหนี้", "สุนัขกัดคน"),
    "KHMER": ("មេឃពណ៌ខៀវ", "បង់វិក្កយបត្រ", "ឆ្កែខាំមនុស្ស"),
    "GEORGIAN": ("ცისფერი ცა", "ანგარიშის გადახდა", "ავი ძაღლი"),
    "ARMENIAN": ("կապույտ երկինք", "հաշվի վճարում", "չար շուն"),
}
"""Three unrelated texts of about equal length: a blue sky, a bill, a dog."""
ALIKE: Final = 0.9
"""The cosine from which on two of them are one to the model. Multilingual models stay below 0.85."""
LONG_WORD: Final = 100
"""Letters of the longest word that WordPiece takes apart."""
PIECES: Final = 200
"""Words and marks of a text that are surely read: the smallest models stop at 256 tokens."""

_PIECE: Final = re.compile(r"\w+|[^\w\s]")
_LONG: Final = re.compile(rf"\w{{{LONG_WORD + 1},}}")


def scripts_to_read(texts: Iterable[str]) -> set[str]:
    """The scripts of some texts, but for Latin, which every model reads."""
    return {script for text in texts for script in scripts_of(text)} - {LATIN}


def is_read(vectors: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """By the unit vectors of a script's probes: whether no two of them are alike."""
    cosines = vectors @ vectors.T
    return bool(np.all(cosines[~np.eye(len(vectors), dtype=bool)] < ALIKE))


def unread_of(text: str, read: Collection[str]) -> tuple[str, ...]:
    """The runs of a text that a model cannot be trusted to read, in order and without case.

    These are letters of scripts that are not in `read`, symbols, very long words, and the end of a very long text.
    """
    end = _surely_read(text)
    runs = [] if text.isascii() else list(_strange_runs(text[:end], read))
    if len(text) > LONG_WORD:
        runs += (found.span() for found in _LONG.finditer(text[:end]))
    unread = [text[start:stop].casefold() for start, stop in sorted(runs)]
    if rest := text[end:].strip():
        unread.append(rest.casefold())
    return tuple(unread)


def _surely_read(text: str) -> int:
    if len(text) > PIECES:
        for count, piece in enumerate(_PIECE.finditer(text)):
            if count == PIECES:
                return piece.start()
    return len(text)


def _strange_runs(text: str, read: Collection[str]) -> Iterator[tuple[int, int]]:
    start = -1
    for place, character in enumerate(text):
        if _is_strange(character, read) or (start >= 0 and unicodedata.category(character)[0] == "M"):
            start = place if start < 0 else start
        elif start >= 0:
            yield start, place
            start = -1
    if start >= 0:
        yield start, len(text)


def _is_strange(character: str, read: Collection[str]) -> bool:
    if character.isascii():
        return False
    script = script_of(character)
    if script == ANY_SCRIPT:
        return unicodedata.category(character)[0] == "S"
    return script != LATIN and script not in read
