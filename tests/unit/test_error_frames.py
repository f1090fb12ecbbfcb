"""Errors that are kept forget the frames in which they were raised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain

import pytest

from api.cancellation import CancelScope
from api.errors import UpstreamError, UpstreamFault, without_frames


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def raised() -> UpstreamError:
    try:
        try:
            raise OSError
        except OSError as error:
            raise UpstreamError(UpstreamFault.CONNECT_FAILED, "No.") from error
    except UpstreamError as error:
        return error


def test_an_error_and_its_causes_forget_their_frames() -> None:
    error = raised()
    assert all(one.__traceback__ for one in chain_of(error))
    assert without_frames(error) is error
    assert [(type(one), one.__traceback__) for one in chain_of(error)] == [(UpstreamError, None), (OSError, None)]


def test_what_was_handled_meanwhile_forgets_its_frames_though_another_cause_is_named() -> None:
    error, context = raised(), raised()
    error.__context__ = context
    without_frames(error)
    assert not any(one.__traceback__ for one in chain(chain_of(error), chain_of(context)))


def test_errors_that_caused_each_other_are_visited_once() -> None:
    one, other = raised(), raised()
    one.__cause__, other.__cause__ = other, one
    assert without_frames(one).__traceback__ is other.__traceback__ is None


@pytest.mark.parametrize("ended", [True, False])
async def test_a_scope_takes_the_frames_only_of_the_cancellation_that_it_swallows(ended: bool) -> None:
    seen: list[BaseException] = []

    async def block() -> None:
        with CancelScope() as scope:
            if ended:
                scope.cancel()
            try:
                await asyncio.sleep(0 if ended else 60)
            except asyncio.CancelledError as error:
                seen.append(error)
                raise

    task = asyncio.create_task(block())
    await asyncio.sleep(0)
    if not ended:
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() is not ended
    assert (seen[0].__traceback__ is None) is ended
