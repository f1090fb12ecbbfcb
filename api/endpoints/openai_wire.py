"""OpenAI's wire formats: request bodies, chunks, responses and errors. Pure."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from api.endpoints.dropin_wire import (
    MAX_DIMENSIONS,
    MAX_PARTS,
    Ignored,
    Inputs,
    LenientBody,
    MessageLimit,
    ModelBody,
    done_reason,
    dropin_status,
    single_line,
    thinking_of,
    usage_of,
)
from api.endpoints.validation import (
    IsInteger,
    Penalty,
    Seed,
    Share,
    Stops,
    StopText,
    StrictBody,
    Temperature,
    Text,
    Tokens,
)
from api.errors import RagherdError
from api.ports.question import AnswerFinished, AnswerStarted
from api.values import ChatMessage, Embeddings, Token, Usage, Vector

PREFIX: Final = "/v1/"
FINGERPRINT: Final = "fp_ollama"
"""Ollama's `system_fingerprint`. It is always the same."""

_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ERROR_CODES: Final = {
    "not-authenticated": "invalid_api_key",
    "upstream-failed": "model_not_found",
    "rate-limited": "rate_limit_exceeded",
}
_LAST: Final = b"data: [DONE]\n\n"


def owns_path(path: str) -> bool:
    """Returns whether a path belongs to this API."""
    return path.startswith(PREFIX)


def error_line(error: RagherdError) -> bytes:
    """Returns an error as the last event of a stream."""
    return _event(error_body(error))


def error_body(error: RagherdError) -> dict[str, Any]:
    """Returns an error as a document or as an event. `code` is Ragherd's problem type if OpenAI has no code for it."""
    status = dropin_status(error)
    kind = _ERROR_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    code = error.slug if status >= 500 else _ERROR_CODES.get(error.slug) if status in _ERROR_TYPES else None
    faults = error.members.get("errors") or [{}]
    return {"error": {"message": error.detail, "type": kind, "param": faults[0].get("field"), "code": code}}


class Part(StrictBody):
    """A text part of a message. Images and audio are not supported."""

    type: Literal["text"]
    text: Text


class OpenAIMessage(LenientBody):
    """One message of a conversation. `name` is ignored, like in Ollama."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: Ignored = None

    def turn(self) -> ChatMessage:
        """Converts it to the flow's type, like Ollama does."""
        text = self.content if isinstance(self.content, str) else "\n\n".join(part.text for part in self.content)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class StreamOptions(StrictBody):
    """Options for additional content of a stream."""

    include_usage: bool = False
    include_obfuscation: Ignored = None


class PlainText(StrictBody):
    """The only supported `response_format`."""

    type: Literal["text"]


class ChatCompletionBody(ModelBody):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[OpenAIMessage], MessageLimit, Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Temperature | None = None
    top_p: Share | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    seed: Seed | None = None
    stop: StopText | Stops | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1, le=1), IsInteger] = 1
    response_format: PlainText | None = None
    reasoning_effort: Literal["none"] | None = None
    user: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    parallel_tool_calls: Ignored = None

    def options(self) -> dict[str, Any]:
        """Returns the options under Ollama's names, with the defaults of Ollama's layer for this API."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        named = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "num_predict": limit,
            "seed": self.seed,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return {name: value for name, value in named.items() if value is not None}


EncodingFormat = Literal["float", "base64"]


class EmbeddingsBody(ModelBody):
    """The body of `/v1/embeddings`. Token IDs instead of text are refused, because they belong to another model's
    tokenizer.
    """

    input: Text | Inputs
    encoding_format: EncodingFormat = "float"
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS), IsInteger] | None = None
    user: Ignored = None

    @property
    def texts(self) -> list[str]:
        """Returns one or many texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def extra(self) -> dict[str, Any]:
        """Returns the fields that are passed on to Ollama."""
        return {} if self.dimensions is None else {"dimensions": self.dimensions}


class OpenAIForm:
    """An `AnswerForm`: unnamed events, or one document."""

    media_type = "text/event-stream"
    heartbeat: bytes | None = b": ping\n\n"

    def __init__(self, model: str, request_id: str, options: Mapping[str, Any], *, include_usage: bool) -> None:
        self._options = options
        self._include_usage = include_usage
        self._common = {
            "id": f"chatcmpl-{request_id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def started(self, started: AnswerStarted) -> bytes:
        return b""

    def token(self, token: Token) -> bytes:
        return self._chunk({"content": token.text})

    def done(self, answered: AnswerFinished) -> bytes:
        thinking = thinking_of(answered)
        thoughts = self._chunk({"content": "", "reasoning": thinking}) if thinking else b""
        last = thoughts + self._chunk({"content": ""}, done_reason(answered, self._options))
        if self._include_usage:
            last += _event({**self._chunk_head(), "choices": [], "usage": _usage(usage_of(answered))})
        return last + _LAST

    def error(self, error: RagherdError) -> bytes:
        return error_line(error)

    def buffered(self, answered: AnswerFinished) -> dict[str, Any]:
        thinking = thinking_of(answered)
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": answered.answer,
                **({"reasoning": thinking} if thinking else {}),
            },
            "finish_reason": done_reason(answered, self._options),
        }
        usage = _usage(usage_of(answered))
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish_reason}
        return _event({**self._chunk_head(), "choices": [choice]})

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._common, "object": "chat.completion.chunk"}


def _usage(usage: Usage) -> dict[str, int]:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def embeddings_fields(model: str, found: Embeddings) -> dict[str, Any]:
    """Returns the fields of a `/v1/embeddings` response except `data`."""
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return {"object": "list", "model": model, "usage": usage}


def embedding_row(encoding: EncodingFormat) -> Callable[[int, Vector], dict[str, Any]]:
    """Returns a function that builds an item of `data`. Base64 encodes little-endian float32."""

    def row(index: int, vector: Vector) -> dict[str, Any]:
        encoded = base64.b64encode(vector).decode() if encoding == "base64" else np.frombuffer(vector, "<f4")
        return {"object": "embedding", "index": index, "embedding": encoded}

    return row


def models_document(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Converts rows of Ollama's `/api/tags` to OpenAI's list of models."""
    data = [
        {
            "id": str(row.get("name") or row.get("model")),
            "object": "model",
            "created": _seconds(row.get("modified_at")),
            "owned_by": "library",
        }
        for row in rows
    ]
    return {"object": "list", "data": data}


def _seconds(moment: Any) -> int:
    """Returns seconds since the epoch; 0 if Ollama reports no time."""
    try:
        return int(datetime.fromisoformat(str(moment)).timestamp())
    except ValueError:
        return 0


def _event(data: Any) -> bytes:
    return f"data: {single_line(data)}\n\n".encode()
