"""The language model behind Ollama's /api/chat, as a stream with every wait bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from typing import Final

import orjson

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import GenerationEnd, GenerationRequest, Thought, Token
from api.ollama import answer_lines
from api.ollama.deadlines import Clock, Deadlines
from api.ollama.models import OllamaModels
from api.ollama.pinned import Pinned
from api.ollama.pool import OllamaPool
from api.ollama.retries import with_one_retry

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
                for event in answer_lines.events(line, request.model):
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
                lines = answer_lines.lines(exchange.parts())
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
