"""Ollama's wire formats: request bodies, stream lines, responses and errors. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import ConfigDict, Field, StringConstraints

from api.endpoints.dropin_wire import (
    MAX_DIMENSIONS,
    NDJSON,
    GivenOptions,
    Ignored,
    Inputs,
    LenientBody,
    MessageLimit,
    ModelBody,
    describe_empty_values,
    done_reason,
    thinking_of,
    usage_of,
)
from api.endpoints.validation import IsBoolean, IsInteger, Text
from api.errors import RagherdError
from api.ports.question import AnswerFinished, AnswerStarted
from api.values import ChatMessage, Embeddings, Token

SERVED: Final = frozenset(
    f"/api/{name}" for name in ("chat", "generate", "embed", "embeddings", "tags", "version", "ps", "show")
)
ADMINISTRATION: Final = frozenset(f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete"))
"""Paths that change what models Ollama has."""
ACCOUNT: Final = frozenset(f"/api/{name}" for name in ("me", "signout", "status"))
"""Paths for accounts at ollama.com. Ragherd does not have them, and says so in Ollama's form."""
BLOBS: Final = "/api/blobs/"


def owns_path(path: str) -> bool:
    """Returns whether a path belongs to this API."""
    return path in SERVED or path in ADMINISTRATION or path in ACCOUNT or path.startswith(BLOBS)


def error_body(error: RagherdError) -> dict[str, Any]:
    """Returns an error as a document or as a line of a stream."""
    return {"error": error.detail}


def error_line(error: RagherdError) -> bytes:
    """Returns an error as the last line of a stream."""
    return _line(error_body(error))


class OllamaMessage(LenientBody):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text = ""

    def turn(self) -> ChatMessage:
        """Converts it to the flow's type."""
        return ChatMessage(self.role, self.content)


class GenerationBody(ModelBody):
    """The common fields of chat and generate. `keep_alive` is fixed for the fleet, so a caller's value is ignored."""

    @abstractmethod
    def turns(self) -> list[ChatMessage]:
        """Returns the conversation. The last message is the question."""

    stream: bool = True
    options: GivenOptions = Field(default_factory=dict)
    think: Annotated[Literal[False], IsBoolean] | None = None
    keep_alive: Ignored = None


class ChatBody(GenerationBody):
    """The body of `/api/chat`."""

    messages: Annotated[list[OllamaMessage], MessageLimit] = Field(default_factory=list)

    def turns(self) -> list[ChatMessage]:
        return [message.turn() for message in self.messages]


class GenerateBody(GenerationBody):
    """The body of `/api/generate`. A client that sends a `context`, if only an empty one, wants one back."""

    prompt: Text = ""
    system: Text | None = None
    context: None = None

    def turns(self) -> list[ChatMessage]:
        """Returns the equivalent conversation of one question; without a prompt, none."""
        if not self.prompt:
            return []
        before = [] if not self.system else [ChatMessage("system", self.system)]
        return [*before, ChatMessage("user", self.prompt)]


class EmbedBody(ModelBody):
    """The body of `/api/embed`."""

    input: Text | Inputs = Field(default_factory=list)
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0, le=MAX_DIMENSIONS), IsInteger] | None = None
    options: GivenOptions = Field(default_factory=dict)
    keep_alive: Annotated[str, Field(max_length=100)] | int | float | None = None

    @property
    def texts(self) -> list[str]:
        """Returns one or many texts as a list. To Ollama a single empty text is none."""
        return self.input if isinstance(self.input, list) else [self.input] if self.input else []

    @property
    def extra(self) -> dict[str, Any]:
        """Returns the fields that are passed on to Ollama. Only a request that loads or unloads has a keep-alive."""
        sent = {"truncate", "dimensions", "options", *(() if self.texts else ("keep_alive",))}
        return self.model_dump(include=sent, exclude_none=True, exclude_defaults=True)


def _with_a_name(schema: dict[str, Any]) -> None:
    describe_empty_values(schema)
    named = {"type": "string", "minLength": 1, "maxLength": 200}
    schema["anyOf"] = [{"required": [name], "properties": {name: named}} for name in ("model", "name")]


class EmbeddingsBody(ModelBody):
    """The body of the older `/api/embeddings`."""

    prompt: Text = ""
    options: GivenOptions = Field(default_factory=dict)
    keep_alive: Ignored = None


class ShowBody(LenientBody):
    """The body of `/api/show`. `name` is the older spelling of `model`."""

    model_config = ConfigDict(json_schema_extra=_with_a_name)

    model: Annotated[str, StringConstraints(max_length=200)] = ""
    name: Annotated[str, StringConstraints(max_length=200)] = ""
    verbose: bool = False


Content = Callable[[str, str], dict[str, Any]]
"""Wraps a text and the thoughts before it for an endpoint."""


def in_message(text: str, thinking: str = "") -> dict[str, Any]:
    """Wraps a text for `/api/chat`."""
    return {"message": {"role": "assistant", "content": text, **_thoughts(thinking)}}


def in_response(text: str, thinking: str = "") -> dict[str, Any]:
    """Wraps a text for `/api/generate`."""
    return {"response": text, **_thoughts(thinking)}


def _thoughts(thinking: str) -> dict[str, str]:
    return {"thinking": thinking} if thinking else {}


class OllamaForm:
    """An `AnswerForm`: NDJSON, or one document. Has no heartbeats, because a blank line would break clients."""

    media_type = NDJSON
    heartbeat: bytes | None = None

    def __init__(self, model: str, content: Content, options: Mapping[str, Any]) -> None:
        self._model = model
        self._content = content
        self._options = options

    def started(self, started: AnswerStarted) -> bytes:
        return b""

    def token(self, token: Token) -> bytes:
        return _line(self._piece(token.text, "", done=False))

    def done(self, answered: AnswerFinished) -> bytes:
        """Thoughts come last in a stream, because they are complete only then."""
        thinking = thinking_of(answered)
        thoughts = _line(self._piece("", thinking, done=False)) if thinking else b""
        return thoughts + _line(self._end("", "", answered))

    def error(self, error: RagherdError) -> bytes:
        return error_line(error)

    def buffered(self, answered: AnswerFinished) -> dict[str, Any]:
        return self._end(answered.answer, thinking_of(answered), answered)

    def _piece(self, text: str, thinking: str, *, done: bool) -> dict[str, Any]:
        return {"model": self._model, "created_at": now(), **self._content(text, thinking), "done": done}

    def _end(self, text: str, thinking: str, answered: AnswerFinished) -> dict[str, Any]:
        reason = done_reason(answered, self._options)
        return {**self._piece(text, thinking, done=True), "done_reason": reason, **_figures(answered)}


def _figures(answered: AnswerFinished) -> dict[str, int]:
    """Returns counts and nanoseconds. Zeros are omitted, like Ollama does; generating a cached answer took no time."""
    usage = usage_of(answered)
    figures = {
        "total_duration": _nanoseconds(answered.timings.total),
        "prompt_eval_count": usage.prompt_tokens,
        "eval_count": usage.completion_tokens,
    }
    if answered.completed is not None and answered.completed.generation is not None:
        end = answered.completed.generation.end
        figures["load_duration"] = _nanoseconds(end.load_duration)
        figures["prompt_eval_duration"] = _nanoseconds(end.prompt_eval_duration)
        figures["eval_duration"] = _nanoseconds(end.eval_duration)
    return {name: value for name, value in figures.items() if value}


def embed_fields(model: str, found: Embeddings) -> dict[str, Any]:
    """Returns the fields of an `/api/embed` response except the vectors. Zeros are omitted, like Ollama does."""
    figures = {
        "total_duration": _nanoseconds(found.total_duration),
        "load_duration": _nanoseconds(found.load_duration),
        "prompt_eval_count": found.prompt_tokens,
    }
    return {"model": model, **{name: value for name, value in figures.items() if value}}


def now() -> str:
    """Returns the current time as RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _line(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
