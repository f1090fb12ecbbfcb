"""The language model behind Ollama's /api/chat, as a stream with every wait bounded.

The lines of a streamed /api/chat answer: bytes in, tokens and the end out. No I/O of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from typing import Any, Final

import orjson

from api.errors import UpstreamError, UpstreamFault
from api.ollama.deadlines import Clock, Deadlines
from api.ollama.models import OllamaModels, Pinned
from api.ollama.pool import OllamaPool
from api.ollama.retries import with_one_retry
from api.values import GenerationEnd, GenerationRequest, Thought, Token, Usage

LINE_LIMIT: Final = 1024 * 1024
"""Bytes. Ollama's lines are about a hundred; what is longer is no answer of Ollama's."""

_NANOSECONDS: Final = 1_000_000_000


async def lines_of(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
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


DRAIN: Final = 0.25
"""Seconds that the end of the HTTP body may lag behind the last line; past it the connection is closed, not kept."""


class OllamaModel:
    """Implements `ports.LanguageModel` over one Ollama."""

    def __init__(self, pool: OllamaPool, deadlines: Deadlines, pinned: Pinned | None = None) -> None:
        self._pool = pool
        self._deadlines = deadlines
        self._pinned = pinned or Pinned()
        self._models = OllamaModels(pool)

    def stream(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Token | Thought | GenerationEnd]]:
        """Tokens and thoughts, then one `GenerationEnd`. Nothing is sent before the first of them is asked for.

        Leaving the context closes the connection of an unfinished answer, whereupon Ollama stops generating. A fault
        before the first line may be retried once, unseen. Raises `UpstreamError`.
        """
        return aclosing(self._answer(request))

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[Token | Thought | GenerationEnd, None]:
        clock = Clock(self._deadlines, request.timeout)
        async with AsyncExitStack() as stack:
            begin = partial(self._begin, request, clock)
            started = await with_one_retry(begin, self._pool.retries, request.retry)
            stack.push_async_exit(started.stack)
            line: bytes | None = started.first
            while line is not None:
                for event in events(line, request.model):
                    if isinstance(event, GenerationEnd):
                        self._pool.generated(event)
                        await _drain(started.lines)
                        yield event
                        return
                    with clock.paused():
                        yield event
                async with clock.inter_token():
                    line = await anext(started.lines, None)
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")

    async def _begin(self, request: GenerationRequest, clock: Clock) -> _Started:
        """Sends, and waits for the first line. What it returns is open; when it raises, all is closed."""
        async with AsyncExitStack() as stack:
            exchange = await stack.enter_async_context(
                self._pool.exchange("/api/chat", _body(request, self._pinned), model=request.model)
            )
            async with clock.first_token(partial(self._resident, request.model)):
                await exchange.open()
                lines = lines_of(exchange.parts())
                first = await anext(lines, None)
            return _Started(stack.pop_all(), lines, first)

    async def _resident(self, model: str) -> bool:
        try:
            return await self._models.resident(model)
        except UpstreamError:
            return True  # an Ollama that does not even say what it has in memory is not loading: it hangs


class _Started:
    """An answer whose first line is there: the rest of its lines, and what closes it."""

    def __init__(self, stack: AsyncExitStack, lines: AsyncIterator[bytes], first: bytes | None) -> None:
        self.stack = stack
        self.lines = lines
        self.first = first


async def _drain(lines: AsyncIterator[bytes]) -> None:
    """Reads the end of the body, so that the connection can serve again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN):
            async for _ in lines:
                pass


def _body(request: GenerationRequest, pinned: Pinned) -> bytes:
    # `think` is sent because models that can think do so unless told otherwise.
    return orjson.dumps(
        {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "options": {**request.options, **pinned.options},
            "stream": True,
            "think": False,
            **pinned.keep_alive_field,
        }
    )
