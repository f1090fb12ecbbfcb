"""Finds the parts of a text that the tokenizer did not pass to the model. Texts that differ only there
look the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

UNKNOWN: Final = ("[UNK]", "<unk>")
"""The unknown token of WordPiece and SentencePiece vocabularies."""
VARIATION_SELECTORS: Final = "\ufe0e\ufe0f"
"""They select how a character is drawn, not which character it is."""
ACCENTED: Final = ("LATIN", "GREEK", "CYRILLIC")
"""Scripts in which a letter without accents is close to the accented one."""

Span = tuple[int, int]


class UnreadWords:
    """Inspects the encodings of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._unknown = frozenset(map(tokenizer.token_to_id, UNKNOWN)) - {None}
        normalizer = tokenizer.normalizer
        self._drops_marks = normalizer is not None and normalizer.normalize_str("\u2260") == "="

    def of(self, text: str, encoding: Encoding) -> tuple[str, ...]:
        """Returns what became an unknown token, lost its marks or was cut off, in order and case-folded.

        WordPiece does not know words of more than 100 letters. Linear in the length of `text`.
        """
        spans: list[Span] = []
        if not self._unknown.isdisjoint(encoding.ids):
            spans += (
                span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token in self._unknown
            )
        if self._drops_marks and not text.isascii():
            spans += _lost_marks(text)
        words = [text[start:end].casefold() for start, end in _runs(spans)]
        if encoding.overflowing:
            words.append(_cut_off(text, encoding.offsets))
        return tuple(words)


def _cut_off(text: str, offsets: Sequence[Span]) -> str:
    return text[max(end for _, end in offsets) :].strip().casefold()


def _runs(spans: Iterable[Span]) -> list[Span]:
    """Merges spans that touch or overlap, in order."""
    runs: list[Span] = []
    for start, end in sorted(spans):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs


def _lost_marks(text: str) -> Iterator[Span]:
    """Yields characters whose dropped marks change their meaning: Devanagari vowels, voiced kana, not-equals."""
    base = 0
    for place, character in enumerate(text):
        if character.isascii():
            base = place
            continue
        is_mark, is_marked = _marks(character)
        if not is_mark:
            base = place
        if (is_mark and not _is_accented(text[base])) or is_marked:
            yield base, place + 1


@lru_cache(maxsize=4096)
def _marks(character: str) -> tuple[bool, bool]:
    """Returns whether a character is a mark, and whether it decomposes into a base that is not an accented letter and a
    mark.
    """
    if character in VARIATION_SELECTORS:
        return False, False
    parts = unicodedata.normalize("NFD", character)
    is_marked = any(unicodedata.category(one) == "Mn" for one in parts[1:]) and not _is_accented(parts[0])
    return unicodedata.category(character) == "Mn", is_marked


@lru_cache(maxsize=4096)
def _is_accented(base: str) -> bool:
    return base.isalpha() and unicodedata.name(base, "").startswith(ACCENTED)
