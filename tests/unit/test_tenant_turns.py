"""Uploads of several tenants take turns in a worker."""

from __future__ import annotations

import asyncio

from api.cancellation import cancel_and_wait
from api.knowledge.document_service import TenantTurns


class Uploads:
    """Tasks that wait for their turn, and end when they are told to."""

    def __init__(self, limit: int, most: int) -> None:
        self._turns = TenantTurns(limit, most)
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.begun: list[str] = []

    def give(self, *names: str) -> None:
        """Starts uploads. The first letter of a name is its tenant."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))

    async def _run(self, name: str) -> None:
        async with self._turns.of(name[0]):
            self.begun.append(name)
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        """Ends one, and lets others begin."""
        self._ends[name].set()
        await self.tasks[name]
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_flood_leaves_a_turn_to_others() -> None:
    uploads = Uploads(limit=3, most=2)
    uploads.give("a1", "a2", "a3", "a4", "a5")
    await settled()
    assert uploads.begun == ["a1", "a2"]
    uploads.give("b1")
    await settled()
    assert uploads.begun == ["a1", "a2", "b1"]
    uploads.give("b2", "c1")
    await settled()
    assert len(uploads.begun) == 3, "no turn is free"
    await uploads.end("a1")
    assert uploads.begun[3:] == ["c1"], "the others have one turn each"
    await uploads.end("b1")
    assert uploads.begun[4:] == ["b2"]
    await uploads.end("a2")
    assert uploads.begun[5:] == ["a3"]
    await cancel_and_wait(uploads.tasks.values())


async def test_who_leaves_keeps_no_turn() -> None:
    uploads = Uploads(limit=1, most=1)
    uploads.give("a1", "a2", "b1", "a3")
    await settled()
    await cancel_and_wait([uploads.tasks["a2"], uploads.tasks["b1"]])
    await cancel_and_wait([uploads.tasks["a1"]])
    await settled()
    assert uploads.begun == ["a1", "a3"]
    await uploads.end("a3")
    uploads.give("b2")
    await settled()
    assert uploads.begun[-1] == "b2"
    await cancel_and_wait(uploads.tasks.values())
