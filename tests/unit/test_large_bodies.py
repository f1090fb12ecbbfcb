"""Large bodies are decoded one at a time, with time for other requests between them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from fastapi import Request

from api.endpoints.dropin_wire import MAX_FIELDS, read_fields
from api.endpoints.validation import LARGE_BODY, body_in_turn
from api.errors import InvalidRequest


def request(content: bytes, turns: asyncio.Lock) -> Request:
    async def body() -> bytes:
        return content

    state = SimpleNamespace(worker=SimpleNamespace(large_bodies=turns))
    return cast(Request, SimpleNamespace(state=state, body=body))


async def iterations(contents: list[bytes]) -> list[int]:
    """The iterations of the event loop in which the bodies are decoded. All arrive in the first."""
    now, turns, decoded = 0, asyncio.Lock(), list[int]()

    async def decode(content: bytes) -> None:
        assert await body_in_turn(request(content, turns)) == content
        decoded.append(now)

    tasks = [asyncio.create_task(decode(content)) for content in contents]
    while not all(task.done() for task in tasks):
        now += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return decoded


async def test_no_two_large_bodies_are_decoded_in_one_iteration_of_the_loop() -> None:
    decoded = await iterations([b"a" * (LARGE_BODY + 1)] * 5)
    assert len(set(decoded)) == 5


async def test_small_bodies_wait_for_nobody() -> None:
    decoded = await iterations([b"a" * (LARGE_BODY + 1)] * 5 + [b"a" * LARGE_BODY] * 5)
    assert decoded[:5] == [decoded[0]] * 5


async def test_a_caller_that_leaves_while_it_waits_keeps_nobody_waiting() -> None:
    turns, content = asyncio.Lock(), b"a" * (LARGE_BODY + 1)
    first, second, third = (asyncio.create_task(body_in_turn(request(content, turns))) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()
    assert await first == await third == content


@pytest.mark.parametrize("more", [0, 1])
async def test_a_body_has_a_limited_number_of_fields(more: int) -> None:
    fields: dict[str, Any] = {f"field-{number}": number for number in range(MAX_FIELDS + more)}
    read = read_fields(request(orjson.dumps(fields), asyncio.Lock()))
    if more:
        with pytest.raises(InvalidRequest, match=f"more than {MAX_FIELDS} fields"):
            await read
    else:
        assert await read == fields
