"""A worker gives memory back that it freed."""

from __future__ import annotations

import asyncio
import os

import pytest

from api.cancellation import cancel_and_wait
from api.wiring.process_memory import _trim, keep_trimming
from tests.support.waiting import wait_until_async
from worker_config.memory_guard import resident_bytes

PIECE, PIECES = 4_000, 20_000


@pytest.mark.skipif(_trim() is None, reason="the C library does not trim")
async def test_free_memory_below_what_is_in_use_goes_back_to_the_system() -> None:
    pieces = [bytes(PIECE) for _ in range(PIECES)]
    last = pieces.pop()
    full = resident_bytes(os.getpid())
    del pieces

    async def is_given_back() -> bool:
        return resident_bytes(os.getpid()) < full - PIECE * PIECES // 2

    task = asyncio.create_task(keep_trimming(0.01))
    try:
        await wait_until_async(is_given_back, timeout=20)
    finally:
        await cancel_and_wait([task])
    assert len(last) == PIECE
