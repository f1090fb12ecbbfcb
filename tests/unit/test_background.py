"""A worker's tasks end with the worker, even if a cancellation is lost."""

from __future__ import annotations

import asyncio

from api.cancellation import Background, cancel_and_wait
from tests.support.waiting import deaf


async def test_a_lost_cancellation_is_repeated() -> None:
    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_and_wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_cancelling_an_ended_or_failed_task_is_no_error() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    await cancel_and_wait([task])
    assert isinstance(task.exception(), ValueError)


async def test_the_background_ends_although_a_task_swallows_one_cancellation() -> None:
    async with asyncio.timeout(5), Background() as background:
        background.start(lambda: deaf(1))
        await asyncio.sleep(0)
