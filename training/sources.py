"""Reads the free data sets that the base model is trained on. The project ships none of them.

No source is share-alike, and none overlaps with what the model is measured on (fow-cache, Quora's questions).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from api.guards.agreement import disagreement, read
from training.pairs import Pair

Embed: TypeAlias = Callable[[Sequence[str]], Any]
"""Maps texts to (texts, dimensions) unit vectors."""


@dataclass(frozen=True)
class License:
    """The source and license of a data set, for the model card."""

    name: str
    license: str
    source: str


LICENSES: Final = (
    License("grammar", "Apache-2.0", "this project's training/vocabulary.toml"),
    License("written questions", "Apache-2.0", "this project's training/questions.txt"),
    License("WordNet 3.0", "WordNet-3.0", "Princeton University, Debian's package wordnet-base"),
    License("banking77, train", "CC-BY-4.0", "PolyAI"),
    License("clinc150, train", "CC-BY-3.0", "clinc/oos-eval"),
    License("text2sql advising", "CC-BY-4.0", "jkkummerfeld/text2sql-data"),
    License("PAWS-X, English, dev", "free for any purpose", "Google LLC"),
)
SHARE_ALIKE: Final = re.compile(r"\b(SA|share-?alike|GPL)\b", re.IGNORECASE)


class Question(NamedTuple):
    """A question and its intent."""

    text: str
    intent: str


class NearRange(NamedTuple):
    """From which cosine on two questions make a pair, and how many pairs are wanted."""

    same_from: float
    other_from: float
    same: int
    other: int


DUPLICATE: Final = 0.995
BANKING77: Final = NearRange(0.76, 0.62, 5500, 7500)
CLINC150: Final = NearRange(0.78, 0.60, 4500, 6500)


def banking77(folder: Path, part: str = "train") -> list[Question]:
    """Reads banking77_train.csv or banking77_test.csv."""
    with (folder / f"banking77_{part}.csv").open(encoding="utf-8", newline="") as file:
        return [Question(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]


def clinc150(folder: Path, part: str = "train") -> list[Question]:
    """Reads a part of clinc150_data_full.json."""
    rows = json.loads((folder / "clinc150_data_full.json").read_text("utf-8"))[part]
    return [Question(text, intent) for text, intent in rows]


class Intents(NamedTuple):
    """Intents by use: half of them train, a quarter calibrates, and a quarter is for the published figures."""

    train: frozenset[str]
    calibration: frozenset[str]
    figures: frozenset[str]


def split_intents(questions: Sequence[Question], seed: int = 77) -> Intents:
    """Splits the intents at random, the same way for each run."""
    intents = sorted({one.intent for one in questions})
    Random(seed).shuffle(intents)
    half, quarter = len(intents) // 2, len(intents) // 4
    parts = intents[:half], intents[half : half + quarter], intents[half + quarter :]
    return Intents(*(frozenset(part) for part in parts))


def near_pairs(questions: Sequence[Question], near: NearRange, embed: Embed, source: str, random: Random) -> list[Pair]:
    """Returns near questions of one intent as positive pairs, and near ones of two intents as negative pairs.

    Two questions of one intent on which the guards disagree make no pair, because their answers may differ.
    """
    vectors = embed([one.text for one in questions])
    intents = np.array([one.intent for one in questions])
    features = [read(one.text) for one in questions]
    same: list[Pair] = []
    other: list[Pair] = []
    for here, question in enumerate(questions):
        cosines = vectors @ vectors[here]
        cosines[here] = -1
        cosines[cosines >= DUPLICATE] = -1
        alike = intents == question.intent
        mates = np.flatnonzero(alike & (cosines >= near.same_from)).tolist()
        same += [
            Pair(question.text, questions[there].text, True, source)
            for there in random.sample(mates, min(2, len(mates)))
            if disagreement(features[here], features[there]) is None
        ]
        apart = np.where(alike, -1, cosines)
        other += [
            Pair(question.text, questions[there].text, False, source)
            for there in np.argsort(-apart)[:3]
            if apart[there] >= near.other_from
        ]
    random.shuffle(same)
    random.shuffle(other)
    return same[: near.same] + other[: near.other]


def advising(path: Path, count: int, random: Random) -> list[Pair]:
    """Reads text2sql-data's advising.json: questions of one query are positive pairs.

    With another value in one of them they are negative pairs.
    """
    same: list[Pair] = []
    other: list[Pair] = []
    for query in json.loads(path.read_text("utf-8")):
        sentences = query["sentences"]
        for sentence in sentences:
            mate = random.choice(sentences)
            values, others = sentence["variables"], mate["variables"]
            if mate is sentence or set(values) != set(others):
                continue
            first, second = _filled(sentence["text"], values), _filled(mate["text"], values)
            if first != second:
                same.append(Pair(first, second, True, "advising"))
            if values != others:
                other.append(Pair(first, _filled(mate["text"], others), False, "advising"))
    random.shuffle(same)
    random.shuffle(other)
    return same[: count // 2] + other[: count // 2]


def _filled(text: str, values: dict[str, Any]) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value).strip('"'))
    return re.sub(r" ([?.,])", r"\1", text.strip())


def paws(path: Path) -> Iterator[Pair]:
    """Reads PAWS-X's English dev file: pairs of equal words in another order."""
    for line in path.read_text("utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) == 4 and fields[3] in ("0", "1") and fields[1] and fields[2]:
            yield Pair(fields[1], fields[2], fields[3] == "1", "paws")
