"""The folder of a verifier: model.onnx, tokenizer.json, and model.json that says what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from api.embedders.verifier import BUILTIN, verifier_files
from api.ports.answer_quality import VerifierFiles
from training import onnx_file
from training.judge import Calibration
from training.onnx_file import MAX_TOKENS, Array

WEIGHTS: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
INFO: Final = "model.json"


class InvalidModel(ValueError):
    """The folder holds no verifier that can be trained further or compared. The message says why."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model before it is judged."""

    name: str
    trained_on: Mapping[str, int]
    base: str = ""
    """The version of the model that this one started from; empty for the base model."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def completed(self, folder: Path, calibration: Calibration, figures: Mapping[str, Any]) -> str:
        """Writes model.json and returns the version. A folder with model.json is complete."""
        version = digest(folder)
        described = {
            "name": self.name,
            "version": version,
            "created": self.created,
            "base": self.base,
            "trained_on": dict(self.trained_on),
            "calibration": {name: round(value, 6) for name, value in calibration._asdict().items()},
            "figures": dict(figures),
        }
        (folder / INFO).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
        return version


def write_model(folder: Path, weights: Mapping[str, Array], tokenizer: Path) -> None:
    """Writes the weights and the tokenizer. The folder is complete once `ModelInfo.completed` adds model.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).unlink(missing_ok=True)
    onnx_file.write(weights, folder / WEIGHTS)
    _write_tokenizer(tokenizer, folder / TOKENIZER)


def read_info(folder: Path) -> dict[str, Any]:
    """Reads model.json. Raises `InvalidModel`."""
    try:
        found = json.loads((folder / INFO).read_text("utf-8"))
        Calibration(**found["calibration"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModel(f"{folder} has no valid {INFO}: {error}") from error
    return dict(found)


def read_model(folder: Path) -> dict[str, Array]:
    """Reads the float weights of a model of this project. Raises `InvalidModel`."""
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise InvalidModel(f"{folder} has no {name}")
    try:
        return onnx_file.read(folder / WEIGHTS)
    except ValueError as error:
        raise InvalidModel(str(error)) from error


def digest(folder: Path) -> str:
    """Returns the version: the digest that `CrossEncoder` computes from the same files."""
    total = hashlib.sha256()
    for name in (WEIGHTS, TOKENIZER):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def installed(path: str | None) -> Path:
    """Returns the folder of SEMANTIC_CACHE_VERIFIER_PATH, or of the base model that ships."""
    return verifier_files(path or BUILTIN).weights.parent


def write_files(folder: Path, files: VerifierFiles) -> None:
    """Writes a model that was read from Redis."""
    for name, content in ((WEIGHTS, files.weights), (TOKENIZER, files.tokenizer), (INFO, files.info)):
        (folder / name).write_bytes(content)


def _write_tokenizer(source: Path, target: Path) -> None:
    """Writes the tokenizer with the limit of the verifier and without padding."""
    described = json.loads(source.read_text("utf-8"))
    described["padding"] = None
    described["truncation"] = {"direction": "Right", "max_length": MAX_TOKENS, "strategy": "LongestFirst", "stride": 0}
    target.write_text(json.dumps(described, ensure_ascii=False, separators=(",", ":")), "utf-8")
