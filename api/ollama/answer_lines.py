"""The lines of a streamed /api/chat answer: bytes in, tokens and the end out. No I/O of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import GenerationEnd, Thought, Token, Usage

LINE_LIMIT: Final = 1024 * 1024
"""Bytes. Ollama's lines are about a hundred; what is longer is no answer of Ollama's."""

_NANOSECONDS: Final = 1_000_000_000


async def lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines that are not blank, however the parts are cut; the last may lack its line feed."""
    rest = b""
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) > LINE_LIMIT:
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"A line of Ollama's is over {LINE_LIMIT} bytes.")
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def events(line: bytes, model: str) -> list[Token | Thought | GenerationEnd]:
    """What one line says: a thought, a token, the end, several or nothing. `model` is what was asked for.

    Raises `UpstreamError`: STREAM_ERROR for Ollama's `{"error": ...}`, INVALID_RESPONSE for what is no such line.
    """
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _invalid() from error
    if not isinstance(fields, dict):
        raise _invalid()
    if "error" in fields:
        raise UpstreamError(UpstreamFault.STREAM_ERROR, f"Ollama gave up: {str(fields['error'])[:300]}")
    try:
        return _events(fields, model)
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid() from error


def _events(fields: dict[str, Any], model: str) -> list[Token | Thought | GenerationEnd]:
    message = fields.get("message") or {}
    thinking, content = message.get("thinking") or "", message.get("content") or ""
    if not (isinstance(thinking, str) and isinstance(content, str)):
        raise TypeError
    found: list[Token | Thought | GenerationEnd] = [Thought(thinking)] if thinking else []
    if content:
        found.append(Token(content))
    if fields.get("done") is True:
        found.append(_end(fields, model))
    return found


def _end(fields: dict[str, Any], model: str) -> GenerationEnd:
    return GenerationEnd(
        model=str(fields.get("model") or model),
        done_reason=str(fields.get("done_reason") or "stop"),
        usage=Usage(int(fields.get("prompt_eval_count", 0)), int(fields.get("eval_count", 0))),
        total_duration=fields.get("total_duration", 0) / _NANOSECONDS,
        load_duration=fields.get("load_duration", 0) / _NANOSECONDS,
        prompt_eval_duration=fields.get("prompt_eval_duration", 0) / _NANOSECONDS,
        eval_duration=fields.get("eval_duration", 0) / _NANOSECONDS,
    )


def _invalid() -> UpstreamError:
    return UpstreamError(UpstreamFault.INVALID_RESPONSE, "Ollama's answer holds a line that is not of its API.")
