"""A model as files: its weights as ONNX, its tokenizer beside them. A fault is told by the name of the setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from api.errors import SettingsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

INSTALL: Final = "needs packages that are not installed: pip install 'ragherd[onnx]'"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the weights and their tokenizer are."""

    weights: Path
    tokenizer: Path


def files_at(path: str, setting: str) -> ModelFiles:
    """`path`: a folder with model.onnx and tokenizer.json, or the weights with tokenizer.json beside.

    Raises `SettingsError` that names what is missing. Nothing is loaded.
    """
    given = Path(path)
    weights = given / "model.onnx" if given.is_dir() else given
    files = ModelFiles(weights, weights.with_name("tokenizer.json"))
    for file in (files.weights, files.tokenizer):
        if not file.is_file():
            raise SettingsError(f"{setting}: there is no file {file}")
    return files


def load_tokenizer(path: Path, setting: str, max_tokens: int | None = None) -> Tokenizer:
    """One that pads nothing. `max_tokens`: where it cuts; None leaves that to the file."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SettingsError(f"{setting}: {INSTALL}") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every fault of the file
        raise SettingsError(f"{setting}: {path} is no tokenizer: {error}") from error
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def load_session(path: Path, setting: str) -> InferenceSession:
    """One thread of computation: a machine has several workers."""
    try:
        import onnxruntime
    except ImportError as error:
        raise SettingsError(f"{setting}: {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors share no public base below Exception
        raise SettingsError(f"{setting}: {path} is no ONNX model: {error}") from error
