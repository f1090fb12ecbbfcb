"""Trains the base model that ships: from MiniLM's weights and the free data sets, for the project's developers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import numpy as np

from api.embedders.minilm import MiniLM, model_files
from api.embedders.onnx import identity_of
from api.embedders.verifier import PRIOR
from api.guards.agreement import disagreement, read
from training.dataset import Dataset, collect
from training.fit import BATCH, Progress, TrainingPlan, ends, fit, load_tokenizer, tokenize
from training.judge import Calibration, calibrate, figures, rounded
from training.model_folder import ModelFacts, digest, read_info, read_model, write_model
from training.onnx_file import Array
from training.pairs import Pair
from training.questions import calibration_pairs
from training.scoring import Scorer, labels

RATES: Final = {3: (2e-4, 1e-3), 6: (1.3e-4, 6e-4)}
"""Of the encoder and of the head, by the number of layers."""
JUDGED: Final = 4_000
"""Pairs of each part that are scored: enough for two digits, in half a minute."""
JUDGED_SEED: Final = 1
CONTINUED: Final = (9e-5, 3e-4)
"""The same for a model that goes on from an earlier one."""
KEPT: Final = 0.5
"""The share of the earlier model's weights in the average with the new ones, so that its knowledge is kept."""
CONSIDERED: Final = 0.6
"""The lowest cosine of a pair that the policy `verified` considers."""
REPLAYED: Final = 0.06
"""The share of the other sources that such a model sees again, so that it keeps what it knows."""


@dataclass(frozen=True)
class BaseWish:
    """What to train. `start` is a model to go on from. `share` makes a smaller data set, for tests."""

    data: Path
    out: Path
    layers: int = 6
    epochs: float = 1.0
    seconds: float = float("inf")
    seed: int = 0
    start: Path | None = None
    share: float = 1.0


class BaseOutcome(NamedTuple):
    """The version in `BaseWish.out` and its figures on held-out intents."""

    version: str
    figures: dict[str, Any]


def train_base(wish: BaseWish, report: Callable[[Progress], None]) -> BaseOutcome:
    """Trains, calibrates on held-out intents and judges on others.

    `data` has, besides the data sets, minilm/model.safetensors and minilm/tokenizer.json of all-MiniLM-L6-v2.
    """
    from training.network import LAYERS, pretrained, shallower

    share = wish.share if wish.start is None else wish.share * REPLAYED
    data = collect(wish.data, embed_with(MiniLM(model_files(None))), share)
    minilm = wish.data / "minilm"
    tokenizer = load_tokenizer(minilm / "tokenizer.json")
    if wish.start is None:
        weights = pretrained(minilm / "model.safetensors", LAYERS[wish.layers], wish.seed)
    else:
        weights = shallower(read_model(wish.start), wish.layers)
    rate, head_rate = RATES[wish.layers] if wish.start is None else CONTINUED
    plan = TrainingPlan(
        max(1, round(wish.epochs * len(data.train) / BATCH)),
        wish.seconds,
        rate=rate,
        head_rate=head_rate,
        seed=wish.seed,
    )
    trained = fit(weights, tokenize(data.train, tokenizer), ends(tokenizer), plan, report)
    if wish.start is not None:
        trained = {name: KEPT * weights[name] + (1 - KEPT) * one for name, one in trained.items()}
    write_model(wish.out, trained, minilm / "tokenizer.json")
    calibration, found = judge_base(wish.out, data)
    earlier = read_info(wish.start) if wish.start else {}
    seen = Counter(earlier.get("trained_on", {})) + Counter(data.counts())
    write_prior(wish.out, MiniLM(model_files(None)), calibration_pairs(Random(JUDGED_SEED)))
    info = ModelFacts(f"verifier-{wish.layers}", dict(sorted(seen.items())), base=earlier.get("version", ""))
    return BaseOutcome(info.completed(wish.out, calibration, found), found)


def judge_base(folder: Path, data: Dataset) -> tuple[Calibration, dict[str, Any]]:
    """Calibrates on the calibration intents, and returns the figures on the last quarter of the intents."""
    scorer = Scorer(folder)
    calibration_pairs, figure_pairs = (_sample(part) for part in (data.calibration, data.figures))
    calibration = calibrate(scorer.logits(calibration_pairs), labels(calibration_pairs))
    probabilities = calibration.probabilities(scorer.logits(figure_pairs))
    found = figures(probabilities, labels(figure_pairs))
    return calibration, {"held_out_intents": rounded({"pairs": len(figure_pairs), **found._asdict()})}


def write_prior(folder: Path, encoder: MiniLM, pairs: Sequence[Pair]) -> int:
    """Writes what the policy `verified` knows before it has labels: pairs that it would consider, with their scores.

    Returns the number of pairs.
    """
    embed = embed_with(encoder)
    firsts, seconds = embed([pair.first for pair in pairs]), embed([pair.second for pair in pairs])
    cosines = (firsts * seconds).sum(1)
    near = [
        (pair, float(cosine))
        for pair, cosine in zip(pairs, cosines, strict=True)
        if cosine >= CONSIDERED and disagreement(read(pair.first), read(pair.second)) is None
    ]
    logits = Scorer(folder).logits([pair for pair, _ in near])
    rows = [
        [round(cosine, 3), round(float(logit), 2), int(pair.same)]
        for (pair, cosine), logit in zip(near, logits, strict=True)
    ]
    written = {"embedder": identity_of(encoder).fingerprint, "verifier": digest(folder), "pairs": rows}
    (folder / PRIOR).write_text(json.dumps(written, separators=(",", ":")) + "\n", "utf-8")
    return len(rows)


def _sample(pairs: Sequence[Pair]) -> list[Pair]:
    return Random(JUDGED_SEED).sample(pairs, min(JUDGED, len(pairs)))


def embed_with(encoder: MiniLM) -> Callable[[Sequence[str]], Array]:
    """Returns a function from texts to (texts, dimensions) unit vectors."""

    def embed(texts: Sequence[str]) -> Array:
        return np.array([np.frombuffer(vector, "<f4") for vector in encoder.encode(texts)])

    return embed
