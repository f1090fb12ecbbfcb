"""Searches for suffixes that make an attacker's question hit for a victim's question: docs/chaos.md.

    .venv/bin/python -m scripts.bench_collisions [--targets 100] [--words 10] [--beam 1]

The attacker and the victim are of one tenant: entries never cross tenants. The attacker knows the victim's question,
the embedder and the guards, and asks another question with a suffix, so that its answer is stored. The search begins
with the victim's question as the suffix, up to four times, and with no suffix. Then it appends one word at a time: the
victim's own words, and the words of the tokenizer's vocabulary that are nearest to the question. It keeps the most
similar questions, and ends when one is a hit, or when no word makes them more similar. Questions come from fow-cache.
Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from api.embedders.minilm import MiniLM, model_files
from api.guards.agreement import Features, disagreement, read

THRESHOLD: Final = 0.92
"""The default of SEMANTIC_CACHE_SIMILARITY_THRESHOLD."""
NEAREST: Final = 16
"""Words of the vocabulary that are tried for a target."""
REPEATED: Final = 4
"""How often the victim's question may be repeated."""
FREQUENT: Final = 6000
"""Words of the vocabulary, which is sorted by frequency, among which the nearest are looked for."""
UNLIKE: Final = 0.7
"""Attackers ask what is less similar than this without a suffix: otherwise it would be no attack."""
BATCH: Final = 512


@dataclass(frozen=True, slots=True)
class Attempt:
    """The most that a search has reached. `similar`: a question was above the threshold; `hit`: no guard objected."""

    similarity: float
    similar: bool
    hit: bool
    text: str
    guards: Counter[str]


class Search:
    """Searches for suffixes against one embedder."""

    def __init__(self, words: int, beam: int) -> None:
        self._model = MiniLM(model_files(None))
        self._words = words
        self._beam = beam
        known = sorted(self._model.tokenizer.get_vocab().items(), key=lambda one: int(one[1]))
        self._vocabulary = [word for word, _ in known if re.fullmatch(r"[a-z]{3,}", word)][:FREQUENT]

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self.encoded(self._vocabulary)

    def encoded(self, texts: Sequence[str]) -> np.ndarray:
        """Returns one row per text."""
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), BATCH):
            rows += [np.frombuffer(one, "<f4") for one in self._model.encode(texts[start : start + BATCH])]
        return np.stack(rows)

    def attack(self, attacker: str, victim: str) -> Attempt:
        """Appends words until a question is a hit for the victim's, or there are too many."""
        target = self.encoded([victim])[0]
        choices = self._choices(victim, target) if self._words else []
        asked, guards, best = read(victim), Counter[str](), (-1.0, attacker)
        texts = [" ".join((attacker, *[victim] * times)) for times in range(REPEATED + 1)]
        for number in range(self._words + 1):
            similarities = self.encoded(texts) @ target
            order = [int(index) for index in np.argsort(-similarities)]
            hit = _first_hit(asked, [texts[index] for index in order if similarities[index] >= THRESHOLD], guards)
            highest = float(similarities[order[0]])
            if hit is not None:
                return Attempt(highest, True, True, hit, guards)
            if highest <= best[0]:
                break
            best = (highest, texts[order[0]])
            if number == self._words:
                break
            beam = [texts[index] for index in order[: self._beam]]
            texts = list(dict.fromkeys(f"{text} {word}" for text in beam for word in choices))
        return Attempt(best[0], best[0] >= THRESHOLD, False, best[1], guards)

    def _choices(self, victim: str, target: np.ndarray) -> list[str]:
        nearest = np.argsort(-(self._vectors @ target))[:NEAREST]
        return list(dict.fromkeys([*victim.split(), *(self._vocabulary[index] for index in nearest)]))


def _first_hit(asked: Features, texts: Sequence[str], guards: Counter[str]) -> str | None:
    """Returns a text to which no guard objects. Counts the others by guard."""
    for text in texts:
        objection = disagreement(asked, text)
        if objection is None:
            return text
        guards[objection.guard] += 1
    return None


def targets(search: Search, count: int) -> list[tuple[str, str]]:
    """Returns pairs of an attacker's and a victim's question that are unlike each other."""
    from fow_cache.data import load_questions

    questions = sorted({row["a"] for row in load_questions()})
    random.Random(5).shuffle(questions)
    vectors = search.encoded(questions)
    pairs = []
    for index, victim in enumerate(questions):
        other = (index + len(questions) // 2) % len(questions)
        if float(vectors[index] @ vectors[other]) < UNLIKE:
            pairs.append((questions[other], victim))
    return pairs[:count]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_collisions")
    parser.add_argument("--targets", type=int, default=100, help="pairs of questions")
    parser.add_argument("--words", type=int, default=10, help="most words of a suffix")
    parser.add_argument("--beam", type=int, default=1, help="questions that are kept after each word")
    options = parser.parse_args()
    began = time.monotonic()
    search = Search(options.words, options.beam)
    found = []
    for attacker, victim in targets(search, options.targets):
        found.append(attempt := search.attack(attacker, victim))
        if attempt.hit:
            print(f"hit at {attempt.similarity:.3f}: {victim!r} is answered from {attempt.text!r}", flush=True)
        if len(found) % 10 == 0:
            _print(found, time.monotonic() - began)


def _print(found: Sequence[Attempt], seconds: float) -> None:
    guards = sum((attempt.guards for attempt in found), Counter[str]())
    print(f"\n{len(found)} targets, {seconds:.0f} s")
    print(f"median of the highest similarity: {statistics.median(one.similarity for one in found):.3f}")
    print(f"above the threshold: {sum(one.similar for one in found)}")
    print(f"hits in spite of the guards: {sum(one.hit for one in found)}")
    print("objections:", ", ".join(f"{guard} {count}" for guard, count in guards.most_common()), flush=True)


if __name__ == "__main__":
    main()
