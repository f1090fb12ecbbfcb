"""Request bodies with the field names of Ollama's documentation, options, and errors in Ollama's form.

Unknown fields are ignored, like in Ollama. Options are validated like in Ollama, with llama.cpp's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse


class OllamaFault(Exception):
    """Rendered as `{"error": message}` with its status, or as the last line of a stream that has begun."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def render_fault(request: Request, error: Exception) -> JSONResponse:
    """Handles `OllamaFault`."""
    assert isinstance(error, OllamaFault)
    return JSONResponse({"error": error.message}, error.status)


class Body(BaseModel):
    """The fields of every body."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    keep_alive: float | str | None = None


class GenerationInput(Body):
    """The common fields of chat and generate."""

    stream: bool = True
    format: str | dict[str, Any] = ""
    think: bool | str | None = None

    @property
    def unloads(self) -> bool:
        """True if an empty request asks to unload the model instead of loading it."""
        return self.keep_alive in (0, "0", "0s", "0m")


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: list[Any] | None = None


class ChatInput(GenerationInput):
    """The body of `/api/chat`."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[Any] = Field(default_factory=list)


class GenerateInput(GenerationInput):
    """The body of `/api/generate`."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    raw: bool = False
    images: list[Any] = Field(default_factory=list)


class EmbedInput(Body):
    """The body of `/api/embed`."""

    input: str | list[str] = Field(default_factory=list)
    dimensions: int = Field(default=0, ge=0)


class EmbeddingsInput(Body):
    """The body of the older `/api/embeddings`."""

    prompt: str = ""


class ShowInput(Body):
    """The body of `/api/show`. `name` is the older spelling of `model`."""

    name: str = ""


AnyBody = TypeVar("AnyBody", bound=Body)


async def read_body(request: Request, kind: type[AnyBody]) -> AnyBody:
    """Reads a body with any content type. Raises `OllamaFault` 400 that names the error."""
    raw = await request.body()
    if not raw.strip():
        raise OllamaFault(400, "missing request body")
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise OllamaFault(400, f"invalid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise OllamaFault(400, "invalid JSON: an object is expected")
    try:
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise OllamaFault(400, f"json: field {place}: {first['msg']}") from error


DEFAULT_TOKENS: Final = 256
"""Maximum length of an answer without `num_predict`. Ollama has no limit."""

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
"""The options that have an effect, with llama.cpp's names. Only the types of the others are checked."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
    "max_tokens": DEFAULT_TOKENS,
}
"""Ollama's defaults with llama.cpp's names."""


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of a llama.cpp request. Raises `OllamaFault` 500 for a value of a wrong type, like Ollama."""
    fields = dict(DEFAULTS)
    for name, value in options.items():
        if value is None:
            continue
        checked = _checked(name, value)
        if name in SAMPLING:
            fields[SAMPLING[name]] = checked
    if fields["max_tokens"] < 0:  # -1 and -2 mean until the context is full
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
