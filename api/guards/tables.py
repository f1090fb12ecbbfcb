"""How the tables of words are written: as text, words apart by white space."""

from __future__ import annotations


def words_in(text: str) -> frozenset[str]:
    """A table of words."""
    return frozenset(text.split())


def ranked(text: str, start: int) -> dict[str, int]:
    """Words that count up from `start`."""
    return {word: value for value, word in enumerate(text.split(), start)}
