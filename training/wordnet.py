"""Reads WordNet 3.0 (Debian's package wordnet-base): synonyms, sisters, antonyms and compounds of a word."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

PARTS: Final = {"n": "noun", "v": "verb", "a": "adj", "s": "adj"}
SENSE_PARTS: Final = {"1": "noun", "2": "verb", "3": "adj", "5": "adj"}
"""The parts of speech by their digit in a sense key."""
MAX_SENSES: Final = 3
"""A word with more senses has too many meanings for its first synonym to be right."""
MIN_COUNT: Final = 3
"""How often WordNet's texts have a word that may stand in a question."""


class Pointer(NamedTuple):
    """From a synset, or one of its words, to another."""

    symbol: str
    target: tuple[str, str]
    words: tuple[int, int]
    """The numbers of the words that a lexical pointer connects, or 0, 0."""


class Synset(NamedTuple):
    """Words of one meaning."""

    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]


@dataclass
class WordNet:
    """The parts of WordNet that edits of questions need."""

    synsets: dict[tuple[str, str], Synset]
    senses: dict[tuple[str, str], tuple[str, ...]]
    uses: dict[tuple[str, str], int]
    """How often WordNet's texts use a word as a part of speech."""
    compounds: dict[str, list[str]] = field(default_factory=dict)
    """The compounds of a noun: insurance has "health insurance"."""

    @classmethod
    def read(cls, folder: Path) -> WordNet:
        """Reads the files of the package's folder usr/share/wordnet."""
        synsets: dict[tuple[str, str], Synset] = {}
        senses: dict[tuple[str, str], tuple[str, ...]] = {}
        for part in ("noun", "verb", "adj"):
            for fields in _rows(folder / f"data.{part}"):
                synsets[part, fields[0]] = _synset(fields)
            for fields in _rows(folder / f"index.{part}"):
                senses[part, fields[0]] = tuple(fields[-int(fields[2]) :])
        uses: defaultdict[tuple[str, str], int] = defaultdict(int)
        for sense, _, count in _rows(folder / "cntlist.rev"):
            word, _, rest = sense.partition("%")
            if rest[0] in SENSE_PARTS:
                uses[SENSE_PARTS[rest[0]], word] += int(count)
        return cls(synsets, senses, dict(uses), _compounds(senses, uses))

    def is_noun(self, word: str) -> bool:
        """Says whether WordNet has the noun."""
        return ("noun", word) in self.senses

    def synonyms(self, word: str) -> list[str]:
        """Returns words of the first sense, for a word of few senses."""
        part = max(("verb", "noun", "adj"), key=lambda part: self.uses.get((part, word), 0))
        senses = self.senses.get((part, word), ())
        if not 0 < len(senses) <= MAX_SENSES or not self.uses.get((part, word)):
            return []
        words = self.synsets[part, senses[0]].words
        return _readable([other for other in words if other.lower() != word and self._known(other)])

    def sisters(self, word: str) -> list[str]:
        """Returns other kinds of what the word is one kind of: a tomato and a potato."""
        part = "noun" if self.is_noun(word) else "adj"
        senses = self.senses.get((part, word), ())
        own = {other for sense in senses for other in self.synsets[part, sense].words}
        found = [
            self.synsets[sister].words[0]
            for sense in senses[:1]
            for parent in self._targets((part, sense), "@")
            for sister in self._targets(parent, "~")
        ]
        return _readable([one for one in found if one not in own and one.islower() and self._known(one)])

    def antonyms(self, word: str) -> list[str]:
        """Returns opposites."""
        found: list[str] = []
        for part in ("adj", "verb", "noun"):
            for sense in self.senses.get((part, word), ())[:2]:
                synset = self.synsets[part, sense]
                for pointer in synset.pointers:
                    here, there = pointer.words
                    if pointer.symbol == "!" and here and synset.words[here - 1] == word:
                        found.append(self.synsets[pointer.target].words[there - 1])
        return _readable(found)

    def _targets(self, key: tuple[str, str], symbol: str) -> Iterator[tuple[str, str]]:
        return (one.target for one in self.synsets[key].pointers if one.symbol == symbol)

    def _known(self, word: str) -> bool:
        return max(self.uses.get((part, word.lower()), 0) for part in ("noun", "verb", "adj")) >= MIN_COUNT


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("  "):  # the license
                yield line.split(" | ")[0].split()


def _synset(fields: list[str]) -> Synset:
    count = int(fields[3], 16)
    words = tuple(re.sub(r"\(.*", "", fields[4 + 2 * place]) for place in range(count))
    start = 4 + 2 * count
    pointers = []
    for place in range(start + 1, start + 1 + 4 * int(fields[start]), 4):
        symbol, target, part, numbers = fields[place : place + 4]
        if part in PARTS:
            here, there = bytes.fromhex(numbers)
            pointers.append(Pointer(symbol, (PARTS[part], target), (here, there)))
    return Synset(words, tuple(pointers))


def _compounds(
    senses: dict[tuple[str, str], tuple[str, ...]], uses: Mapping[tuple[str, str], int]
) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for part, word in senses:
        first, underscore, last = word.partition("_")
        if (
            part == "noun"
            and underscore
            and "_" not in last
            and first.isalpha()
            and uses.get(("noun", last), 0) >= MIN_COUNT
        ):
            found[last].append(f"{first} {last}")
    return dict(found)


def _readable(words: list[str]) -> list[str]:
    return [word.replace("_", " ") for word in dict.fromkeys(words)]
