"""When two questions are the same to the letter, apart from how they were typed."""

from __future__ import annotations

import unicodedata
from typing import Final

MEANINGFUL: Final = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms that say something: 2² is not 22."""

FINAL_PUNCTUATION: Final = "?!.…。？！ "


def normalise(question: str) -> str:
    """Unicode NFKC (save for superscripts and their kind), case, white space, and punctuation at the end.

    Nothing inside the question is dropped, so questions of different meaning stay apart.
    """
    composed = unicodedata.normalize("NFC", question)
    compatible = "".join(map(_compatible, composed))
    folded = " ".join(compatible.casefold().split())
    return folded.rstrip(FINAL_PUNCTUATION) or folded


def _compatible(character: str) -> str:
    if unicodedata.decomposition(character).startswith(MEANINGFUL):
        return character
    return unicodedata.normalize("NFKC", character)
