"""Reads the answers to forwarded requests, piece by piece, and passes them on as text, unchanged.

Ollama streams lines of JSON below `/api/`, and server-sent events below `/v1/`; without a stream an answer is one JSON
document. Only the end is understood: whether the answer is complete, why it ended, and how many tokens it cost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from api.errors import UpstreamError, UpstreamFault
from api.ollama.failures import given_up
from api.values import ForwardedRequest, GenerationEnd, Thought, Token, Usage

AnswerPart = Token | Thought | GenerationEnd

LINE_LIMIT: Final = 1024 * 1024
"""Bytes in a line. Ollama's lines have about a hundred, so a longer one is not from Ollama."""

_NANOSECONDS: Final = 1_000_000_000


def end_of(fields: dict[str, Any], model: str) -> GenerationEnd:
    """Parses the last line of an answer of Ollama's."""
    return GenerationEnd(
        model=str(fields.get("model") or model),
        done_reason=str(fields.get("done_reason") or "stop"),
        usage=Usage(int(fields.get("prompt_eval_count", 0)), int(fields.get("eval_count", 0))),
        total_duration=fields.get("total_duration", 0) / _NANOSECONDS,
        load_duration=fields.get("load_duration", 0) / _NANOSECONDS,
        prompt_eval_duration=fields.get("prompt_eval_duration", 0) / _NANOSECONDS,
        eval_duration=fields.get("eval_duration", 0) / _NANOSECONDS,
    )


def invalid() -> UpstreamError:
    """The error for an answer that is not of Ollama's API."""
    return UpstreamError(UpstreamFault.INVALID_RESPONSE, "Ollama's answer holds a line that is not of its API.")


WHOLE_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of an answer. With `logprobs` a token takes a thousand, and `context` has a number for each."""
CUT: Final = frozenset({"length", "max_tokens", "max_output_tokens", "incomplete"})
"""Reasons to end, in the words of the three APIs, of an answer that reached its limit of tokens."""
UNLOADED: Final = frozenset({"load", "unload"})
"""Reasons of Ollama's answers to a request without a question."""
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "message_stop"})
_FAILED_EVENTS: Final = frozenset({"response.failed", "error"})
_DONE: Final = b"[DONE]"


class ForwardedAnswer:
    """Reads one answer. `pieces` cuts it, and `events` reads each piece in turn."""

    def __init__(self, request: ForwardedRequest, model: str) -> None:
        self._request = request
        self._model = model
        self._reason = "stop"
        self._usage = Usage()

    def pieces(self, parts: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
        """Yields the lines or events that arrive together, or the document. Raises `UpstreamError` if too long."""
        if not self._request.streams:
            return _whole(parts)
        return _ending_with(b"\n\n" if self._is_event_stream else b"\n", parts)

    def events(self, piece: bytes) -> list[AnswerPart]:
        """Returns the piece as text, and the end after the last one. Raises `UpstreamError`, also if Ollama gave up."""
        try:
            text = piece.decode()
            if self._request.content_type:  # a transcription may be plain text
                return [Token(text), self._end()]
            said = _event_data(piece) if self._request.streams and self._is_event_stream else piece
            if said == _DONE:
                return [Token(text), self._end()]
            fields = orjson.loads(said) if said.strip() else {}
            ended = self._learn(fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise invalid() from error
        return [Token(text), ended] if ended is not None else [Token(text)]

    @property
    def _is_event_stream(self) -> bool:
        return self._request.path.startswith("/v1/")

    def _learn(self, fields: dict[str, Any]) -> GenerationEnd | None:
        """Notes reason and cost. Returns the end if this piece is the last."""
        if not self._is_event_stream:
            if "error" in fields:
                raise _gave_up(fields["error"])
            return _mapped(end_of(fields, self._model)) if fields.get("done") is True else None
        if self._request.streams and (fields.get("error") or fields.get("type") in _FAILED_EVENTS):
            raise _gave_up(fields.get("error") or fields)
        self._note(fields)
        for part in ("response", "message", "delta"):
            if isinstance(fields.get(part), dict):
                self._note(fields[part])
        return self._end() if not self._request.streams or fields.get("type") in _LAST_EVENTS else None

    def _note(self, fields: dict[str, Any]) -> None:
        if isinstance(usage := fields.get("usage"), dict):
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            completion = usage.get("completion_tokens", usage.get("output_tokens"))
            known = self._usage
            self._usage = Usage(int(prompt or known.prompt_tokens), int(completion or known.completion_tokens))
        reasons = [choice.get("finish_reason") for choice in fields.get("choices") or ()]
        reasons += [fields.get("stop_reason"), fields.get("status")]
        if any(reason in CUT for reason in reasons):
            self._reason = "length"

    def _end(self) -> GenerationEnd:
        return GenerationEnd(self._model, self._reason, self._usage)


def _mapped(end: GenerationEnd) -> GenerationEnd:
    """Ollama's own reasons, but `stop` for each that means a complete answer."""
    known = {"stop", "length"} | UNLOADED
    return end if end.done_reason in known else GenerationEnd(end.model, "stop", end.usage)


async def _whole(parts: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    yield [b"".join([part async for part in _bounded(parts)])]


async def _bounded(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises `UpstreamError` past `WHOLE_LIMIT` bytes, which says nothing against Ollama: the client asked for them."""
    received = 0
    async for part in parts:
        received += len(part)
        if received > WHOLE_LIMIT:
            detail = f"The answer has more than {WHOLE_LIMIT} bytes. Ask for fewer tokens, or for no `logprobs`."
            raise UpstreamError(UpstreamFault.REQUEST_REJECTED, detail)
        yield part


async def _ending_with(mark: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yields the pieces that each part completes, however it is cut. They end with `mark`; the last may lack it."""
    rest = bytearray()
    async for part in _bounded(parts):
        searched = max(0, len(rest) - len(mark) - 1)
        rest += part
        if rest.find(mark, searched) < 0 and rest.find(b"\r\n\r\n", searched) < 0:
            continue
        *whole, last = bytes(rest).replace(b"\r\n", b"\n").split(mark)
        rest = bytearray(last)
        if pieces := [piece + mark for piece in whole if piece.strip()]:
            yield pieces
    if rest.strip():
        yield [bytes(rest)]


def _event_data(event: bytes) -> bytes:
    """Returns the data of a server-sent event; empty for a comment."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)


def _gave_up(said: Any) -> UpstreamError:
    message = said.get("message", said) if isinstance(said, dict) else said
    return given_up(str(message))
