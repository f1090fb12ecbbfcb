"""Trains a verifier further on a deployment's own pairs, and compares it with the one in use on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from training.fit import BATCH, Progress, TrainingPlan, ends, fit, load_tokenizer, tokenize
from training.grammar import grammar_pairs
from training.judge import Array, Calibration, ModelComparison, calibrate, compare
from training.model_folder import TOKENIZER, ModelFacts, digest, read_model, write_model
from training.pairs import Pair, Split
from training.scoring import Scorer, labels
from training.surface import vary

EPOCHS: Final = 2.0
RATE: Final = 5e-5
SHALLOW_RATE: Final = 1e-4
"""For a model with fewer layers than the one it starts from: it has more to learn."""
AVERAGED: Final = 0.99
REPLAYED: Final = 0.5
"""Grammar pairs for each of the deployment's own, so that the model keeps what the base model knows."""
RETYPED: Final = 0.25
"""The share of training questions that are retyped, with misspellings."""


class TooFewPairs(ValueError):
    """The pairs cannot be split into three parts that each have positive and negative pairs."""


@dataclass(frozen=True)
class Wish:
    """What to train from which model, and what to compare it with. No `layers`: as many as `start` has."""

    start: Path
    used: Path
    out: Path
    layers: int | None = None
    epochs: float = EPOCHS
    seconds: float = float("inf")
    seed: int = 0


class Outcome(NamedTuple):
    """The version written to `Wish.out`, and how it compares with the model in use."""

    version: str
    used: str
    comparison: ModelComparison
    trained_on: dict[str, int]


def require_labels(pairs: Split) -> None:
    """Raises `TooFewPairs` unless each part has pairs of both labels."""
    for name, part in (("training", pairs.train), ("calibration", pairs.calibration), ("held-out", pairs.held_out)):
        for same in (True, False):
            if not any(pair.same is same for pair in part):
                kind = "the same answer" if same else "different answers"
                raise TooFewPairs(f"too few pairs: no {name} pair has {kind}, after the split by question")


def tune(pairs: Split, wish: Wish, report: Callable[[Progress], None]) -> Outcome:
    """Trains, calibrates, writes and compares. Raises `TooFewPairs`, and `InvalidModel` for an unusable folder.

    No question of a held-out cluster is trained on. Both models are calibrated on the same pairs, so the comparison is
    about what they can tell apart and not about which of them was calibrated last.
    """
    from training.network import layer_count, shallower

    require_labels(pairs)
    before = _judge(wish.used, pairs)
    start = read_model(wish.start)
    first = shallower(start, wish.layers or layer_count(start))
    rate = RATE if layer_count(first) == layer_count(start) else SHALLOW_RATE
    trained_on = {"own pairs": len(pairs.train), "grammar": int(REPLAYED * len(pairs.train))}
    tokenizer = load_tokenizer(wish.start / TOKENIZER)
    examples = tokenize(_training_set(pairs.train, trained_on["grammar"], wish.seed), tokenizer)
    steps = max(1, round(wish.epochs * len(examples) / BATCH))
    plan = TrainingPlan(steps, wish.seconds, rate=rate, head_rate=2 * rate, averaged=AVERAGED, seed=wish.seed)
    weights = fit(first, examples, ends(tokenizer), plan, report)

    info = ModelFacts(f"verifier-{layer_count(weights)}-tuned", trained_on, base=digest(wish.start))
    write_model(wish.out, weights, wish.start / TOKENIZER)
    after = _judge(wish.out, pairs)
    held_out = labels(pairs.held_out)
    comparison = compare(after.held_out, before.held_out, held_out, pairs.held_out_clusters, wish.seed)
    version = info.completed(wish.out, after.calibration, {"held_out": comparison.described()})
    return Outcome(version, digest(wish.used), comparison, trained_on)


def _training_set(own: Sequence[Pair], replayed: int, seed: int) -> list[Pair]:
    random = Random(seed)
    retyped = [
        Pair(vary(pair.first, random), vary(pair.second, random), pair.same, pair.source)
        if random.random() < RETYPED
        else pair
        for pair in own
    ]
    return retyped + grammar_pairs(replayed, seed)


class _Judged(NamedTuple):
    calibration: Calibration
    held_out: Array
    """The probabilities of the held-out pairs."""


def _judge(folder: Path, pairs: Split) -> _Judged:
    scorer = Scorer(folder)
    calibration = calibrate(scorer.logits(pairs.calibration), labels(pairs.calibration))
    return _Judged(calibration, calibration.probabilities(scorer.logits(pairs.held_out)))
