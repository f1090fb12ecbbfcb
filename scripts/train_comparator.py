"""Trains the comparator's model on one CPU thread, for the project's developers.

    .venv/bin/python -m scripts.train_comparator [--pairs 40000] [--seconds 2550] [--seed 0] [--out FOLDER]

Starts from the shipped verifier and trains its upper layers on pairs of answers (training/comparing.py). Families of
pairs whose hash is 0 of 4 are held out. Writes answers.onnx into FOLDER, by default into the verifier's, and every 50
steps the weights so far (answers.npz), so that a run that is stopped leaves a model: --from FILE writes the model of
such weights. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from api.embedders.answer_model import MODEL, AnswerScorer
from api.embedders.minilm import SHIPPED as MINILM
from api.embedders.verifier import SHIPPED
from training import comparing, onnx_file
from training.fit import Progress, ends, fit, load_tokenizer, single_threaded
from training.judge import auc
from training.onnx_file import Array

WEIGHTS = "answers.npz"
SAMPLES_SEED = 100
"""Added to the seed of the training."""


def train(out: Path, pairs: int, seconds: float, seed: int) -> dict[str, Array]:
    """Returns the trained weights."""
    tokenizer = load_tokenizer(SHIPPED / "tokenizer.json")
    weights = comparing.start_weights(SHIPPED / "model.onnx", MINILM / "model.onnx")
    made = comparing.Sampler(SAMPLES_SEED + seed, comparing.HELD_OUT_FOLD).pairs(pairs)
    examples = comparing.tokenized(made, tokenizer)
    plan = comparing.plan_of(len(examples), seconds, seed)
    return fit(weights, examples, ends(tokenizer), plan, _report, keep=lambda found: save(out / WEIGHTS, found))


def save(path: Path, weights: dict[str, Array]) -> None:
    """Saves what was trained, whole or not at all."""
    new = path.with_suffix(".new.npz")
    own = {name: one.astype(np.float16) for name, one in weights.items() if not name.startswith(comparing.SHARED)}
    np.savez(new, allow_pickle=False, **own)
    new.rename(path)


def load(path: Path) -> dict[str, Array]:
    """Returns the whole model of saved weights."""
    saved = {name: array.astype(np.float32) for name, array in np.load(path).items()}
    start: dict[str, Array] = comparing.start_weights(SHIPPED / "model.onnx", MINILM / "model.onnx")
    return start | saved


def judge(folder: Path) -> None:
    """Prints how well the model in `folder` tells the held-out pairs apart."""
    scorer = AnswerScorer(folder)
    found = comparing.held_out_pairs()
    for source in dict.fromkeys(source for source, _ in found):
        pairs = [pair for one, pair in found if one == source]
        scores = [asyncio.run(scorer.score(pair.question, pair.one, pair.other)) for pair in pairs]
        logits = np.array(scores, float)
        same = np.array([pair.same for pair in pairs], float)
        known = np.isfinite(logits)
        print(f"{source}: {known.sum()} pairs, AUC {auc(logits[known], same[known]):.3f}", flush=True)


def _report(progress: Progress) -> None:
    now = time.strftime("%H:%M:%S")
    print(f"{now} step {progress.step}, loss {progress.loss:.3f}, {progress.seconds:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Train the comparator's model.")
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--from", dest="start", type=Path)
    wish = parser.parse_args(arguments)
    single_threaded()
    weights = load(wish.start) if wish.start else train(wish.out, wish.pairs, wish.seconds, wish.seed)
    onnx_file.write_upper(weights, wish.out / MODEL, SHIPPED / "model.onnx", comparing.SHARED, comparing.MAX_TOKENS)
    judge(wish.out)


if __name__ == "__main__":
    main()
