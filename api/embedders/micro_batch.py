"""Many callers, one computing thread: texts that wait while it is busy are computed together in its next turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from api.errors import EmbeddingUnavailable

Encoded = TypeVar("Encoded")
"""What `encode` makes of a text."""

TURN_TEXTS: Final = 32
"""Texts in one turn of the thread."""
SHARE_TEXTS: Final = 8
"""Texts of one caller in one turn: a question waits for a slice of somebody's document, not for all of it."""


@dataclass(eq=False, slots=True)
class _Call(Generic[Encoded]):
    texts: Sequence[str]
    result: asyncio.Future[list[Encoded]]
    encoded: list[Encoded] = field(default_factory=list)

    def part(self, limit: int) -> list[str]:
        """The next texts that are not encoded, `limit` at most."""
        start = len(self.encoded)
        return list(self.texts[start : start + limit])


_Turn = list[tuple[_Call[Encoded], list[str]]]


class MicroBatcher(Generic[Encoded]):
    """Runs `encode` in `thread`, a turn at a time. A caller that is cancelled takes only its own texts away."""

    def __init__(self, encode: Callable[[Sequence[str]], list[Encoded]], thread: Executor) -> None:
        self._encode = encode
        self._thread = thread
        self._waiting: deque[_Call[Encoded]] = deque()
        self._turns: asyncio.Task[None] | None = None
        self._closed = False

    async def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """What was made of each text, in order. Raises `EmbeddingUnavailable` when the encoder fails or is closed."""
        if self._closed:
            raise EmbeddingUnavailable("the embedder is closed")
        if not texts:
            return []
        call: _Call[Encoded] = _Call(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        return await call.result

    async def close(self) -> None:
        """Fails who still waits; a turn that runs in the thread ends there, its result unused."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
        _fail(self._waiting, EmbeddingUnavailable("the embedder is closed"))

    async def _take_turns(self) -> None:
        while turn := self._next_turn():
            await self._take(turn)

    def _next_turn(self) -> _Turn[Encoded]:
        turn: _Turn[Encoded] = []
        room = TURN_TEXTS
        while room and self._waiting:
            call = self._waiting.popleft()
            if call.result.done():  # its caller was cancelled or ran out of time
                continue
            part = call.part(min(room, SHARE_TEXTS))
            room -= len(part)
            turn.append((call, part))
        return turn

    async def _take(self, turn: _Turn[Encoded]) -> None:
        texts = [text for _, part in turn for text in part]
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, texts)
        except asyncio.CancelledError:
            _fail([call for call, _ in turn], EmbeddingUnavailable("the embedder is closed"))
            raise
        except Exception as error:  # noqa: BLE001 - the runtime's errors share no base; the callers must hear of each
            _fail([call for call, _ in turn], EmbeddingUnavailable(f"the embedder failed: {error}"))
        else:
            self._deal(turn, encoded)

    def _deal(self, turn: _Turn[Encoded], encoded: list[Encoded]) -> None:
        """Hands out what was encoded; a call with texts left goes to the end of the queue."""
        start = 0
        for call, part in turn:
            call.encoded += encoded[start : start + len(part)]
            start += len(part)
            if len(call.encoded) < len(call.texts):
                self._waiting.append(call)
            elif not call.result.done():
                call.result.set_result(call.encoded)


def _fail(calls: Sequence[_Call[Encoded]] | deque[_Call[Encoded]], error: EmbeddingUnavailable) -> None:
    for call in calls:
        if not call.result.done():
            call.result.set_exception(error)
