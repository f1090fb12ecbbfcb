"""The pools of one worker, one a backend, and their figures: each one's own, and those of all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from api.ollama.pool import OllamaPool, PoolLimits, open_pool
from api.ollama.pool_statistics import PoolSnapshot, PoolStatistics
from api.ollama.retries import RetryBudget


def backend_names(count: int) -> list[str]:
    """`ollama`, `ollama-2`, ... in the order of OLLAMA_BASE_URL: the names of the breakers for generations too."""
    return ["ollama", *(f"ollama-{number}" for number in range(2, count + 1))]


class OllamaPools(Mapping[str, OllamaPool]):
    """By the backends' names, in their order. Made by `open_pools`."""

    def __init__(self, pools: Mapping[str, OllamaPool], total: PoolStatistics, retries: RetryBudget) -> None:
        self._pools = pools
        self._total = total
        self.retries = retries
        """The budget of all calls of the worker together."""

    def __getitem__(self, name: str) -> OllamaPool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def snapshot(self) -> PoolSnapshot:
        """All together: counts and times over all backends; the four sizes are those of one pool, as configured."""
        each = list(self.by_backend().values())
        return replace(
            each[0],
            active=sum(pool.active for pool in each),
            idle=sum(pool.idle for pool in each),
            waiting=sum(pool.waiting for pool in each),
            requests=self._total.requests,
            connections_opened=self._total.connections_opened,
            connections_reused=self._total.connections_reused,
            reuse_rate=self._total.reuse_rate,
            pool_timeouts=self._total.pool_timeouts,
            wait_ms=self._total.wait_ms(),
            endpoints=self._total.endpoints(),
            ollama=self._total.ollama(),
        )

    def by_backend(self) -> dict[str, PoolSnapshot]:
        """Each one's own."""
        return {name: pool.snapshot() for name, pool in self._pools.items()}


@asynccontextmanager
async def open_pools(base_urls: Sequence[str], limits: PoolLimits) -> AsyncIterator[OllamaPools]:
    """A pool for each URL, their minimum of connections opened at the same time; closed on exit."""
    total, retries = PoolStatistics(), RetryBudget()
    async with AsyncExitStack() as stack:
        pools: dict[str, OllamaPool] = {}
        for name, url in zip(backend_names(len(base_urls)), base_urls, strict=True):
            opening = open_pool(url, limits, retries=retries, statistics=PoolStatistics(total), minimum=False)
            pools[name] = await stack.enter_async_context(opening)
        await asyncio.gather(*(pool.open_minimum() for pool in pools.values()))
        yield OllamaPools(pools, total, retries)
