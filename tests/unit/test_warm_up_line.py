"""A load waits its turn behind users, and then keeps nobody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from api.errors import BulkheadFull
from api.ollama.warm_up import Load, WarmUp

LOADS = (Load("text", "/api/generate", b"{}"), Load("vectors", "/api/embed", b"{}", "-embed"))


class Pool:
    """Notes what it is asked to load, and whether a permit was held meanwhile."""

    def __init__(self, bulkhead: Line) -> None:
        self.loaded: list[str] = []
        self._bulkhead = bulkhead

    async def load(self, path: str, body: bytes, model: str, limit: float) -> None:
        assert not self._bulkhead.held
        self.loaded.append(model)


class Line:
    """A bulkhead whose line moves when told to."""

    def __init__(self) -> None:
        self.turn = asyncio.Event()
        self.held = False
        self.full = False
        self.asked: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def permit(self, tenant: str, *, background: bool = False) -> AsyncIterator[None]:
        self.asked.append((tenant, background))
        if self.full:
            raise BulkheadFull("ollama", "queue_full", 1)
        await self.turn.wait()
        self.held = True
        try:
            yield
        finally:
            self.held = False


class Duty:
    async def hold(self, seconds: float) -> bool:
        return True

    async def leave(self) -> None:
        self.left = True


async def warmed(line: Line) -> tuple[WarmUp, Any]:
    pool: Any = Pool(line)
    warm_up = WarmUp({"ollama": pool}, {"ollama": line, "ollama-embed": line}, {"ollama": Duty()}, LOADS)
    warm_up.start_all()
    return warm_up, pool


async def test_it_waits_behind_users_and_loads_without_a_permit() -> None:
    line = Line()
    warm_up, pool = await warmed(line)
    while not line.asked:
        await asyncio.sleep(0)
    assert pool.loaded == []
    line.turn.set()
    while len(pool.loaded) < 2:
        await asyncio.sleep(0)
    assert line.asked == [("warm-up", True)] * 2
    await warm_up.aclose()


async def test_a_full_line_leaves_the_load_to_the_first_question() -> None:
    line = Line()
    line.full = True
    warm_up, pool = await warmed(line)
    while len(line.asked) < 2:
        await asyncio.sleep(0)
    await warm_up.aclose()
    assert pool.loaded == []
