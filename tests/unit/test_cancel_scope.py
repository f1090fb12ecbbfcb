"""A scope cancels its block until the block has ended, and distinguishes its own cancellation from others."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from api.cancellation import CancelScope, Deadline, raise_if_cancelled
from api.endpoints.problems import ClientDisconnected
from api.endpoints.streaming import CancelOnDisconnect
from api.errors import DeadlinePassed
from tests.support.waiting import deaf


async def loses_one() -> None:
    """Waits until it is cancelled, and ignores that cancellation."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize("lost", [0, 1, 3])
async def test_a_block_that_swallows_cancellations_still_ends(lost: int) -> None:
    async with asyncio.timeout(5):
        with CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await deaf(lost)
    assert scope.cancelled
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_task_counts_as_cancelled_only_until_the_block_ends() -> None:
    with CancelScope() as scope:
        raise_if_cancelled()
        asyncio.get_running_loop().call_soon(scope.cancel)
        await loses_one()
        with pytest.raises(asyncio.CancelledError):
            raise_if_cancelled()
    raise_if_cancelled()


async def test_a_cancellation_of_the_whole_task_propagates() -> None:
    inside = asyncio.Event()

    async def work() -> None:
        with CancelScope() as scope:
            inside.set()
            await asyncio.Event().wait()
        assert scope.cancelled, "unreachable: the task itself is cancelled"

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_if_two_scopes_are_cancelled_at_once_the_outer_one_ends_the_block() -> None:
    loop = asyncio.get_running_loop()
    with CancelScope() as outer:
        with CancelScope() as inner:
            loop.call_soon(inner.cancel)
            loop.call_soon(outer.cancel)
            await deaf(1)
        pytest.fail("the outer scope ends what follows the inner one")
    assert outer.cancelled


async def test_an_error_of_the_block_propagates() -> None:
    async def fails(scope: CancelScope) -> None:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await loses_one()
        raise KeyError

    with pytest.raises(KeyError), CancelScope() as scope:
        await fails(scope)


async def test_a_result_after_the_deadline_is_dropped_even_if_the_cancellation_was_lost() -> None:
    with pytest.raises(DeadlinePassed):
        async with Deadline(0.01).watched():
            await loses_one()


async def test_no_wait_starts_after_the_deadline() -> None:
    deadline, begun = Deadline(0.0), False
    with pytest.raises(DeadlinePassed):
        async with deadline.watched():
            begun = True
    assert not begun


@pytest.mark.parametrize("lost", [0, 2])
async def test_a_disconnect_ends_work_that_swallows_cancellations(lost: int) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async with asyncio.timeout(5):
        with pytest.raises(ClientDisconnected), CancelOnDisconnect(receive):
            await deaf(lost)


async def test_a_disconnected_client_gets_no_answer_even_if_the_work_finished() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnected), CancelOnDisconnect(receive):
        await loses_one()
