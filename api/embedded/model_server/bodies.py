"""The requests' bodies, as Ollama's documentation names their fields. Unknown fields are ignored, as Ollama does."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from api.embedded.model_server.faults import OllamaFault


class Body(BaseModel):
    """What every body has."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    keep_alive: float | str | None = None


class GenerationBody(Body):
    """What the two bodies that ask for text have."""

    stream: bool = True
    format: str | dict[str, Any] = ""
    think: bool | str | None = None

    @property
    def unloads(self) -> bool:
        """Whether an empty request asks to unload the model instead of to load it."""
        return self.keep_alive in (0, "0", "0s", "0m")


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: list[Any] | None = None


class ChatBody(GenerationBody):
    """Of `/api/chat`."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[Any] = Field(default_factory=list)


class GenerateBody(GenerationBody):
    """Of `/api/generate`."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    raw: bool = False
    images: list[Any] = Field(default_factory=list)


class EmbedBody(Body):
    """Of `/api/embed`."""

    input: str | list[str] = Field(default_factory=list)
    dimensions: int = Field(default=0, ge=0)


class EmbeddingsBody(Body):
    """Of the older `/api/embeddings`."""

    prompt: str = ""


class ShowBody(Body):
    """Of `/api/show`; `name` is the older spelling of `model`."""

    name: str = ""


AnyBody = TypeVar("AnyBody", bound=Body)


async def read_body(request: Request, kind: type[AnyBody]) -> AnyBody:
    """The body of a request, whatever its content type. Raises `OllamaFault` 400 that names what is wrong."""
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
