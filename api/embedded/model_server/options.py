"""Ollama's options, checked as Ollama checks them, in llama.cpp's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from api.embedded.model_server.faults import OllamaFault

DEFAULT_TOKENS: Final = 256
"""The length of an answer for which the caller sets no `num_predict`. (Ollama sets no limit.)"""

INTEGERS: Final = frozenset(
    {
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
    }
)
FLOATS: Final = frozenset(
    {
        "top_p",
        "min_p",
        "typical_p",
        "temperature",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
    }
)
BOOLEANS: Final = frozenset(
    {
        "numa",
        "use_mmap",
        "use_mlock",
        "low_vram",
        "f16_kv",
        "vocab_only",
        "logits_all",
        "penalize_newline",
    }
)

SAMPLING: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "seed": "seed",
    "num_predict": "max_tokens",
    "stop": "stop",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""The options that have an effect, and llama.cpp's names for them. Of the others only the type is looked at."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
    "max_tokens": DEFAULT_TOKENS,
}
"""Ollama's own, in llama.cpp's names."""


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a llama.cpp request. Raises `OllamaFault` 500, as Ollama does, for a value of a wrong type."""
    fields = dict(DEFAULTS)
    for name, value in options.items():
        if value is None:
            continue
        checked = _checked(name, value)
        if name in SAMPLING:
            fields[SAMPLING[name]] = checked
    if fields["max_tokens"] < 0:  # -1 and -2: until the context is full
        fields["max_tokens"] = -1
    return fields


def _checked(name: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in INTEGERS:
        return int(_require(name, value, is_number, "integer"))
    if name in FLOATS:
        return float(_require(name, value, is_number, "float32"))
    if name in BOOLEANS:
        return _require(name, value, isinstance(value, bool), "boolean")
    if name == "stop":
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return _require(name, value, is_list, "array")
    return value


def _require(name: str, value: Any, holds: bool, kind: str) -> Any:
    if not holds:
        raise OllamaFault(500, f'option "{name}" must be of type {kind}')
    return value
