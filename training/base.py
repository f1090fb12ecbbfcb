"""Trains the base model that ships: from MiniLM's weights and the free data sets, for the project's developers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from api.embedders.minilm import MiniLM, model_files
from training.dataset import Dataset, collect
from training.fit import BATCH, Plan, Progress, ends, fit, load_tokenizer, tokenize
from training.judge import Calibration, calibrate, figures, rounded
from training.model_folder import ModelInfo, write_model
from training.onnx_file import Array
from training.scoring import Scorer, labels

RATES: Final = {3: (2e-4, 1e-3), 6: (1.3e-4, 6e-4)}
"""Of the encoder and of the head, by the number of layers."""


@dataclass(frozen=True)
class BaseWish:
    """What to train. `share` makes a smaller data set, for tests."""

    data: Path
    out: Path
    layers: int = 6
    epochs: float = 1.0
    seconds: float = float("inf")
    seed: int = 0
    share: float = 1.0


class BaseOutcome(NamedTuple):
    """The version in `BaseWish.out` and its figures on held-out intents."""

    version: str
    figures: dict[str, Any]


def train_base(wish: BaseWish, report: Callable[[Progress], None]) -> BaseOutcome:
    """Trains, calibrates on held-out intents and judges on others.

    `data` has, besides the data sets, minilm/model.safetensors and minilm/tokenizer.json of all-MiniLM-L6-v2.
    """
    from training.network import LAYERS, pretrained

    data = collect(wish.data, embed_with(MiniLM(model_files(None))), wish.share)
    minilm = wish.data / "minilm"
    tokenizer = load_tokenizer(minilm / "tokenizer.json")
    weights = pretrained(minilm / "model.safetensors", LAYERS[wish.layers], wish.seed)
    rate, head_rate = RATES[wish.layers]
    plan = Plan(
        max(1, round(wish.epochs * len(data.train) / BATCH)),
        wish.seconds,
        rate=rate,
        head_rate=head_rate,
        seed=wish.seed,
    )
    trained = fit(weights, tokenize(data.train, tokenizer), ends(tokenizer), plan, report)
    write_model(wish.out, trained, minilm / "tokenizer.json")
    calibration, found = judge_base(wish.out, data)
    info = ModelInfo(f"verifier-{wish.layers}", data.counts())
    return BaseOutcome(info.completed(wish.out, calibration, found), found)


def judge_base(folder: Path, data: Dataset) -> tuple[Calibration, dict[str, Any]]:
    """Calibrates on the calibration intents, and returns the figures on the last quarter of the intents."""
    scorer = Scorer(folder)
    calibration = calibrate(scorer.logits(data.calibration), labels(data.calibration))
    probabilities = calibration.probabilities(scorer.logits(data.figures))
    found = figures(probabilities, labels(data.figures))
    return calibration, {"held_out_intents": rounded({"pairs": len(data.figures), **found._asdict()})}


def embed_with(encoder: MiniLM) -> Callable[[Sequence[str]], Array]:
    """Returns a function from texts to (texts, dimensions) unit vectors."""

    def embed(texts: Sequence[str]) -> Array:
        return np.array([np.frombuffer(vector, "<f4") for vector in encoder.encode(texts)])

    return embed
