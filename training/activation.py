"""Puts a trained model where workers load it, next to the versions before it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from training.model_folder import WEIGHTS, InvalidModel, digest, read_info

SHIPPED: Final = Path(__file__).parents[1] / "api" / "embedders" / "weights" / "verifier"
"""The base model that comes with Ragherd."""


def place(model: Path, versions: Path) -> Path:
    """Copies the model to a folder named by its version, whole or not at all, and returns that folder.

    A version that is there already stays as it is. Raises `InvalidModel` if the model is incomplete, or if `versions`
    is itself a model: workers that load one fixed model cannot switch.
    """
    version = str(read_info(model)["version"])
    if version != digest(model):
        raise InvalidModel(f"{model} was changed after it was trained: its files do not match its version")
    if (versions / WEIGHTS).exists():
        raise InvalidModel(f"{versions} is a single model. Name a folder of versions, and restart the workers once.")
    placed = versions / version
    if not placed.exists():
        versions.mkdir(parents=True, exist_ok=True)
        unfinished = versions / f".{version}.{os.getpid()}"
        shutil.copytree(model, unfinished)
        try:
            unfinished.rename(placed)
        except OSError:
            shutil.rmtree(unfinished)
            if not placed.exists():  # else another process was faster
                raise
    return placed
