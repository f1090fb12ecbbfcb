"""Collects the pairs that the base model is trained on, and the held-out ones that calibrate and judge it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from training.edits import Editor
from training.grammar import grammar_pairs
from training.pairs import Pair
from training.questions import training_pairs
from training.sources import (
    BANKING77,
    CLINC150,
    Embed,
    NearRange,
    advising,
    banking77,
    clinc150,
    near_pairs,
    paws,
    split_intents,
)
from training.wordnet import WordNet

SEED: Final = 20261128
"""The seed of the data. It stays the same, so that models of different training seeds differ in the training only."""
GRAMMAR: Final = 44_000
EDITS: Final = 34_000
ADVISING: Final = 4_000
WRITTEN: Final = 1
"""How often each pair of written questions is trained on, half of their questions typed in other ways."""
MAX_LENGTH: Final = 300
"""In characters. Longer texts cost time and are not what people ask."""


@dataclass(frozen=True)
class Dataset:
    """Pairs by use. No intent of one use is in another."""

    train: list[Pair]
    calibration: list[Pair]
    figures: list[Pair]

    def counts(self) -> dict[str, int]:
        """Returns the number of training pairs by source, for the model card."""
        return dict(sorted(Counter(pair.source.partition("-")[0] for pair in self.train).items()))


def collect(folder: Path, embed: Embed, share: float = 1.0) -> Dataset:
    """Reads the data sets in `folder` and makes the rest. `share` makes a smaller training set of the same kinds.

    The folder has banking77_train.csv, clinc150_data_full.json, advising.json and wordnet/; paws.tsv is optional.
    """
    random = Random(SEED)
    train = grammar_pairs(int(GRAMMAR * share), SEED)
    held: list[list[Pair]] = [[], []]
    pool: list[str] = []
    for name, questions, near in (
        ("banking77", banking77(folder), BANKING77),
        ("clinc150", clinc150(folder), CLINC150),
    ):
        intents = split_intents(questions)
        ours = [one for one in questions if one.intent in intents.train]
        train += near_pairs(ours, _shared(near, share), embed, name, random)
        pool += [one.text for one in ours]
        for pairs, part in zip(held, (intents.calibration, intents.figures), strict=True):
            pairs += near_pairs([one for one in questions if one.intent in part], near, embed, name, random)
    advice = advising(folder / "advising.json", int(ADVISING * share), random)
    train += advice
    pool += [pair.first for pair in advice] + [pair.first for pair in train[: len(pool) // 2]]
    if (folder / "paws.tsv").exists():
        train += paws(folder / "paws.tsv")
    train += _edited(sorted(set(pool)), Editor(WordNet.read(folder / "wordnet")), int(EDITS * share), random)
    train += training_pairs(WRITTEN, random)
    train = [pair for pair in train if max(len(pair.first), len(pair.second)) < MAX_LENGTH]
    random.shuffle(train)
    return Dataset(train, *held)


def _shared(near: NearRange, share: float) -> NearRange:
    return near._replace(same=int(near.same * share), other=int(near.other * share))


def _edited(pool: Sequence[str], editor: Editor, count: int, random: Random) -> list[Pair]:
    pairs: list[Pair] = []
    while len(pairs) < count:
        pair = editor.pair(random.choice(pool), random)
        if pair is not None:
            pairs.append(pair)
    return pairs
