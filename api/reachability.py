"""Whether Redis and Ollama can be used now. Many callers at once share one question, and for a moment its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

FRESH_SECONDS: Final = 1.0


class Shared:
    """One question to a backend on behalf of everybody who asks within a second."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self._ask = ask
        self._asked_at = 0.0
        self._answer: asyncio.Task[bool] | None = None

    async def __call__(self) -> bool:
        """The answer, at most `FRESH_SECONDS` old. A caller that leaves does not take it from the others."""
        answered = self._answer is not None and self._answer.done()
        if self._answer is None or (answered and time.monotonic() - self._asked_at > FRESH_SECONDS):
            self._asked_at = time.monotonic()
            self._answer = asyncio.create_task(self._ask())
        return await asyncio.shield(self._answer)


class BackendReachability:
    """See `worker_state.Reachability`. Redis is asked each time (a round trip), Ollama at most once a second."""

    def __init__(
        self,
        redis: Callable[[], Awaitable[bool]],
        redis_partly: Callable[[], bool],
        breaker_redis: Callable[[], Awaitable[bool]],
        ollama: Callable[[], Coroutine[Any, Any, bool]],
    ) -> None:
        self._redis = redis
        self.redis_partly = redis_partly
        """Whether some of Redis answered when it was last asked: on a cluster, a shard."""
        self._breaker_redis = breaker_redis
        self._ollama = Shared(ollama)

    async def redis(self) -> bool:
        """Whether Redis answers, and takes writes."""
        return await self._redis()

    async def breaker_redis(self) -> bool:
        """The same of the one that breakers are kept in."""
        return await self._breaker_redis()

    async def ollama(self) -> bool:
        """Whether Ollama answers."""
        return await self._ollama()
