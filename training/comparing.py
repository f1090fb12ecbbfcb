"""Trains the comparator's model: a cross-encoder that reads a question and two answers. One logit: they say the same.

It starts from the verifier, which reads two questions, and sees many varied pairs of answers: written ones, ones with
a fact changed by rule, and longer answers put together from several. A family of pairs speaks of one question. It is
trained on, or held out, as a whole.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from training import onnx_file
from training.answer_edits import dress, falsify, names_of, reword, shortened
from training.answers import AnswerPair, AnswerSet, answer_sets, read_labelled
from training.fit import BATCH, Example, TrainingPlan
from training.pairs import Pair

PAIRS: Final = Path(__file__).parents[1] / "tests/quality"
LABELLED: Final = (("answer_pairs.jsonl", ("groups", "tune")), ("answer_pairs_test.jsonl", ("test",)))
HELD_OUT: Final = (("answer_pairs.jsonl", ("held-out",)),)
"""Never trained on."""
FOLDS: Final = 4
HELD_OUT_FOLD: Final = 0
MAX_TOKENS: Final = 256
"""Of the question and both answers, with the tokens between them."""
LENGTHS: Final = (40, 56, 72, 104, 152, MAX_TOKENS)
"""Batches are padded to these. On a GPU, compiling takes longer than training."""
SHARES: Final = {"sets": 0.5, "groups": 0.3, "tune": 0.2}
"""Of the samples, by where they come from. `groups` includes the pairs of answer_pairs_test.jsonl."""
SHARED: Final = ("embed.", "layers.0.", "layers.1.", "layers.2.")
"""The weights that the comparator shares with the verifier."""
COMPOSED: Final = 0.2
REWORDED: Final = 0.35
DRESSED: Final = 0.3


def fold_of(family: str) -> int:
    """Returns the part of the data that a family belongs to."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:4]) % FOLDS


def read_files(files: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, AnswerPair]]:
    """Reads labelled pairs with the name of their half."""
    return [(half, pair) for name, halves in files for half in halves for pair in read_labelled(PAIRS / name, [half])]


def text_of(question: str, answer: str) -> str:
    """Returns the first text of the model; the second one is the other answer."""
    return f"{question}\n{answer}"


@dataclass(frozen=True, slots=True)
class _Said:
    question: str
    one: str
    other: str
    same: bool


class Sampler:
    """Makes training pairs. `held_out`: the fold that it does not use; None uses all."""

    def __init__(self, seed: int, held_out: int | None = None, *, plain: bool = False) -> None:
        self._random = Random(seed)
        self._plain = plain
        self._sets = [one for one in answer_sets() if held_out is None or fold_of(_family(one)) != held_out]
        self._names = [name for one in self._sets for answer in one.equal for name in names_of(answer)]
        self._labelled: dict[str, list[dict[bool, list[AnswerPair]]]] = {}
        for source, halves in (("groups", ("groups", "test")), ("tune", ("tune",))):
            families: defaultdict[str, dict[bool, list[AnswerPair]]] = defaultdict(lambda: {True: [], False: []})
            for half, pair in read_files(LABELLED):
                if half in halves and (held_out is None or fold_of(pair.family) != held_out):
                    families[pair.family][pair.same].append(pair)
            self._labelled[source] = list(families.values())

    def pairs(self, count: int) -> list[Pair]:
        """Returns `count` pairs, half of them the same."""
        return [self._pair(number % 2 == 0) for number in range(count)]

    def _pair(self, same: bool) -> Pair:
        said = self._composed(same) if self._random.random() < COMPOSED else self._single(same)
        return Pair(text_of(said.question, self._varied(said.one)), self._varied(said.other), said.same, "answers")

    def _varied(self, text: str) -> str:
        if self._plain:
            return text
        if self._random.random() < REWORDED:
            text = reword(text, self._random)
        return dress(text, self._random) if self._random.random() < DRESSED else text

    def _single(self, same: bool) -> _Said:
        source = self._random.choices(list(SHARES), list(SHARES.values()))[0]
        said = self._of_set(same) if source == "sets" else self._of_labelled(source, same)
        if self._random.random() < 0.5:
            return _Said(said.question, said.other, said.one, said.same)
        return said

    def _of_set(self, same: bool) -> _Said:
        chosen, chance = self._random.choice(self._sets), self._random.random()
        one, other = self._random.sample(chosen.equal, 2)
        if same:
            if chosen.kept and chance < 0.15:
                other = self._random.choice(chosen.kept)[1]
            return _Said(chosen.question, one, one if chance > 0.9 else other, True)
        return _Said(chosen.question, one, self._apart(chosen, one, other, chance), False)

    def _apart(self, chosen: AnswerSet, one: str, other: str, chance: float) -> str:
        """Returns an answer that says something else than `one`."""
        if chance < 0.45 and chosen.edited:
            return self._random.choice(chosen.edited)[1]
        if chance < 0.6 and chosen.others:
            return self._random.choice(chosen.others)
        if chance < 0.67:
            stranger = self._random.choice(self._sets)
            if stranger is not chosen:
                return self._random.choice(stranger.equal)
        if chance < 0.75 and (less := shortened(other, self._random)):
            return less
        if not self._plain:
            base = one if chance > 0.9 else other
            if changed := falsify(base, self._random, self._names):
                return changed
        return self._random.choice([text for _, text in chosen.edited] or chosen.others)

    def _of_labelled(self, source: str, same: bool) -> _Said:
        while True:
            family = self._random.choice(self._labelled[source])
            if family[True] and not same and not self._plain and self._random.random() < 0.3:
                pair = self._random.choice(family[True])
                if changed := falsify(pair.other, self._random, self._names):
                    return _Said(pair.question, pair.one, changed, False)
            if family[same]:
                pair = self._random.choice(family[same])
                return _Said(pair.question, pair.one, pair.other, same)

    def _composed(self, same: bool) -> _Said:
        """Puts two or three pairs together. One part that differs makes the whole differ."""
        count = self._random.choice((2, 2, 3))
        odd = None if same else self._random.randrange(count)
        parts = [self._single(place != odd) for place in range(count)]
        order = list(range(count))
        if self._random.random() < 0.4:
            self._random.shuffle(order)
        others = [parts[place].other for place in order]
        if odd is not None and count > 2 and self._random.random() < 0.15:
            others = [parts[place].one for place in order if place != odd]
        glue = self._random.choice((" ", "\n", "\n\n"))
        question = " ".join(part.question for part in parts[: self._random.choice((1, count))])
        return _Said(question, glue.join(part.one for part in parts), glue.join(others), same)


def _family(one: AnswerSet) -> str:
    return AnswerPair(one.question, "", "", True).family


def held_out_pairs() -> list[tuple[str, AnswerPair]]:
    """Returns the pairs that no training reads, unchanged, with where they come from."""
    written = [("sets", pair) for one in answer_sets() for pair in one.pairs()]
    pairs = [*written, *read_files(LABELLED)]
    return [(name, pair) for name, pair in pairs if fold_of(pair.family) == HELD_OUT_FOLD] + read_files(HELD_OUT)


def tokenized(pairs: Sequence[Pair], tokenizer: Any) -> list[Example]:
    """Returns the pairs as token IDs, those that are short enough."""
    firsts = tokenizer.encode_batch([pair.first for pair in pairs], add_special_tokens=False)
    seconds = tokenizer.encode_batch([pair.second for pair in pairs], add_special_tokens=False)
    return [
        Example(one.ids, other.ids, pair.same, 1.0)
        for pair, one, other in zip(pairs, firsts, seconds, strict=True)
        if len(one.ids) + len(other.ids) + 3 <= MAX_TOKENS
    ]


def start_weights(verifier: Path, minilm: Path) -> Any:
    """Returns the verifier's weights with more positions, those of MiniLM. Both are model files.

    MiniLM's file has the type of a token added to its position.
    """
    import onnx
    from onnx import numpy_helper

    weights = onnx_file.read(verifier)
    found = {one.name: one for one in onnx.load(minilm).graph.initializer}
    positions = numpy_helper.to_array(found["embeddings.position_embeddings.weight"])[:MAX_TOKENS].astype(np.float32)
    known = weights["embed.positions"]
    return weights | {"embed.positions": positions + (known - positions[: len(known)]).mean(axis=0)}


def plan_of(pairs: int, seconds: float, seed: int) -> TrainingPlan:
    """Returns how the model is trained on so many pairs, each once."""
    return TrainingPlan(
        pairs // BATCH,
        seconds,
        rate=1.5e-4,
        head_rate=4.5e-4,
        seed=seed,
        lengths=LENGTHS,
        either_order=False,
        frozen=SHARED,
    )
