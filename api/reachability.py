"""Whether Redis and Ollama can be used now. Many callers at once share one question, and of Ollama also its answer.

However often /health is asked, it takes no connections that commands need, and nobody stands in line for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from api.background import let_go

FRESH_SECONDS: Final = 1.0


class Shared:
    """One question to a backend on behalf of everybody who asks meanwhile, and for `fresh` seconds from its start."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, bool]], fresh: float) -> None:
        self._ask = ask
        self._fresh = fresh
        self._asked_at = 0.0
        self._answer: asyncio.Task[bool] | None = None

    async def __call__(self) -> bool:
        """The answer. A caller that leaves does not take it from the others."""
        answered = self._answer is not None and self._answer.done()
        if self._answer is None or (answered and time.monotonic() - self._asked_at > self._fresh):
            self._asked_at = time.monotonic()
            self._answer = asyncio.create_task(self._ask())
            let_go(self._answer)
        return await asyncio.shield(self._answer)


class BackendReachability:
    """See `worker_state.Reachability`. Ollama is asked at most once a second, Redis each time (a round trip)."""

    def __init__(
        self,
        redis: Callable[[], Coroutine[Any, Any, bool]],
        redis_partly: Callable[[], bool],
        breaker_redis: Callable[[], Coroutine[Any, Any, bool]],
        ollama: Callable[[], Coroutine[Any, Any, bool]],
    ) -> None:
        self._redis = Shared(redis, 0.0)
        self.redis_partly = redis_partly
        """Whether some of Redis answered when it was last asked: on a cluster, a shard."""
        self._breaker_redis = Shared(breaker_redis, 0.0)
        self._ollama = Shared(ollama, FRESH_SECONDS)

    async def redis(self) -> bool:
        """Whether Redis answers, and takes writes."""
        return await self._redis()

    async def breaker_redis(self) -> bool:
        """The same of the one that breakers are kept in."""
        return await self._breaker_redis()

    async def ollama(self) -> bool:
        """Whether Ollama answers."""
        return await self._ollama()
