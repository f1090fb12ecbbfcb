"""One reader serves every open page, and each page gets only what changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
import pytest

from api.endpoints.dashboard import ADMIN, LiveFeed

TICK = 0.01


class Figures:
    """What a feed reads. Counts how often."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts
        self.reads = 0
        self.draining = False

    async def read(self) -> dict[str, Any]:
        self.reads += 1
        return dict(self.parts)

    def feed(self) -> LiveFeed:
        return LiveFeed(self.read, lambda: self.draining, TICK)


async def following(changes: AsyncIterator[bytes]) -> Any:
    async with asyncio.timeout(5):
        return orjson.loads(await anext(changes))


async def test_a_page_first_gets_everything_and_then_what_changed() -> None:
    figures = Figures(breaker="CLOSED", cache=1)
    async with figures.feed().followed(admin=False) as changes:
        assert await following(changes) == {"breaker": "CLOSED", "cache": 1}
        figures.parts["cache"] = 2
        assert await following(changes) == {"cache": 2}


async def test_a_page_that_opens_later_gets_everything_at_once() -> None:
    figures = Figures(breaker="CLOSED")
    feed = figures.feed()
    async with feed.followed(admin=False) as first:
        await following(first)
        async with feed.followed(admin=False) as second:
            assert await following(second) == {"breaker": "CLOSED"}


async def test_a_page_never_gets_what_was_read_for_a_page_of_earlier() -> None:
    figures = Figures(turn="earlier", gone=1)
    feed = figures.feed()
    async with feed.followed(admin=False) as changes:
        await following(changes)
    figures.parts = {"turn": "now"}
    async with feed.followed(admin=False) as changes:
        assert await following(changes) == {"turn": "now"}


async def test_fifty_pages_cost_one_reader() -> None:
    figures = Figures(turn=0)
    feed = figures.feed()

    async def page() -> None:
        async with feed.followed(admin=False) as changes:
            async for changed in changes:
                if orjson.loads(changed)["turn"] == "last":
                    return

    pages = [asyncio.create_task(page()) for _ in range(50)]
    async with asyncio.timeout(5):
        while feed.pages < 50 or figures.reads < 3:
            await asyncio.sleep(0)
    reads = figures.reads
    figures.parts["turn"] = "last"
    await asyncio.gather(*pages)
    assert figures.reads <= reads + 2


async def test_nobody_reads_without_a_page() -> None:
    figures = Figures(turn=0)
    feed = figures.feed()
    async with feed.followed(admin=False) as changes:
        await following(changes)
    reads = figures.reads
    await asyncio.sleep(3 * TICK)
    assert (figures.reads, feed.pages) == (reads, 0)


async def test_only_admins_get_the_part_for_admins() -> None:
    figures = Figures(bulkhead="counts", **{f"{ADMIN}bulkhead": "with tenants"})
    feed = figures.feed()
    async with feed.followed(admin=False) as anyone, feed.followed(admin=True) as admin:
        assert await following(anyone) == {"bulkhead": "counts"}
        assert await following(admin) == {"bulkhead": "with tenants"}


async def test_a_draining_worker_ends_the_streams() -> None:
    figures = Figures(turn=0)
    async with figures.feed().followed(admin=False) as changes:
        await following(changes)
        figures.draining = True
        with pytest.raises(StopAsyncIteration):
            await following(changes)


async def test_a_page_that_reads_slowly_also_sees_the_end() -> None:
    figures = Figures(turn=0)
    feed = figures.feed()
    async with feed.followed(admin=False) as changes:
        await following(changes)  # the page has not asked for more yet
        reader = feed._reading
        assert reader is not None
        figures.draining = True
        await asyncio.wait([reader])
        with pytest.raises(StopAsyncIteration):
            await following(changes)


async def test_a_reader_whose_cancellation_was_lost_ends_by_itself() -> None:
    figures = Figures(turn=0)
    feed, began = figures.feed(), asyncio.Event()

    async def read() -> dict[str, Any]:
        if not began.is_set():
            began.set()
            with suppress(asyncio.CancelledError):  # as `asyncio.wait_for` of Python 3.11 may
                await asyncio.Event().wait()
        return await figures.read()

    feed._read = read
    async with feed.followed(admin=False):
        reader = feed._reading
        assert reader is not None
        await began.wait()
    done, _ = await asyncio.wait([reader], timeout=5)
    assert done


async def test_a_failed_reader_ends_the_streams_and_the_next_page_starts_another() -> None:
    figures = Figures(turn=object())  # no JSON
    feed = figures.feed()
    async with feed.followed(admin=False) as changes:
        with pytest.raises(StopAsyncIteration):
            await following(changes)
    figures.parts["turn"] = 1
    async with feed.followed(admin=False) as changes:
        assert await following(changes) == {"turn": 1}
