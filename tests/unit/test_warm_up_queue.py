"""Loading a model waits behind users, and then delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from api.errors import BulkheadFull
from api.ollama import backend_health as module
from api.ollama.backend_health import Load, WarmUp
from api.values import Priority, QueuePlace

LOADS = (Load("text", "/api/generate", b"{}"), Load("vectors", "/api/embed", b"{}", "-embed"))


class FakePool:
    """Records the models to load, and whether a permit was held."""

    def __init__(self, bulkhead: FakeBulkhead) -> None:
        self.loaded: list[str] = []
        self.fault: Exception | None = None
        self._bulkhead = bulkhead

    async def load(self, path: str, body: bytes, model: str, limit: float) -> None:
        if self.fault is not None:
            raise self.fault
        assert not self._bulkhead.held
        self.loaded.append(model)


class FakeBulkhead:
    """A bulkhead whose queue moves when told to."""

    def __init__(self) -> None:
        self.turn = asyncio.Event()
        self.held = False
        self.full = False
        self.asked: list[tuple[str, bool]] = []

    def ask_early(self, *_: object) -> None: ...

    @asynccontextmanager
    async def permit(
        self, tenant: str, *, place: QueuePlace | None = None, within: float | None = None, queues: bool = True
    ) -> AsyncIterator[None]:
        self.asked.append((tenant, place is not None and place.priority is Priority.BACKGROUND))
        if self.full:
            raise BulkheadFull("ollama", "queue_full", 1)
        await self.turn.wait()
        self.held = True
        try:
            yield
        finally:
            self.held = False


class Lease:
    def __init__(self) -> None:
        self.held = False

    async def acquire(self, seconds: float) -> bool:
        self.held = True
        return True

    async def release(self) -> None:
        self.held = False


async def warmed(line: FakeBulkhead, lease: Lease | None = None) -> tuple[WarmUp, Any]:
    pool: Any = FakePool(line)
    bulkheads = {"ollama": line, "ollama-embed": line}
    warm_up = WarmUp({"ollama": pool}, bulkheads, {"ollama": lease or Lease()}, LOADS)
    warm_up.start_all()
    return warm_up, pool


async def test_a_load_waits_behind_users_and_holds_no_permit() -> None:
    line = FakeBulkhead()
    warm_up, pool = await warmed(line)
    while not line.asked:
        await asyncio.sleep(0)
    assert pool.loaded == []
    line.turn.set()
    while len(pool.loaded) < 2:
        await asyncio.sleep(0)
    assert line.asked == [("warm-up", True)] * 2
    await warm_up.aclose()


async def test_a_backend_that_is_drained_while_the_load_waits_loads_nothing() -> None:
    line, lease, drained = FakeBulkhead(), Lease(), False
    pool: Any = FakePool(line)
    bulkheads = {"ollama": line, "ollama-embed": line}
    warm_up = WarmUp({"ollama": pool}, bulkheads, {"ollama": lease}, LOADS, lambda _: drained)
    warm_up.start_all()
    while not line.asked:
        await asyncio.sleep(0)
    drained = True
    line.turn.set()
    (warming,) = [task for task in asyncio.all_tasks() if task.get_name() == "warm-up-ollama"]
    await warming
    assert (pool.loaded, lease.held) == ([], False)


async def test_a_full_queue_leaves_the_load_to_the_first_question() -> None:
    line = FakeBulkhead()
    line.full = True
    warm_up, pool = await warmed(line)
    while len(line.asked) < 2:
        await asyncio.sleep(0)
    await warm_up.aclose()
    assert pool.loaded == []


async def test_an_unexpected_error_leaves_the_lease_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE", 0.03)
    line, lease = FakeBulkhead(), Lease()
    _, pool = await warmed(line, lease)
    pool.fault = KeyError("load")
    line.turn.set()
    (warming,) = [task for task in asyncio.all_tasks() if task.get_name() == "warm-up-ollama"]
    with pytest.raises(KeyError):
        await warming
    await asyncio.sleep(0.03)
    assert not lease.held, "nobody renews it"
