"""A worker's copies of exact entries: served without Redis, and never after the entry has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.integration.test_feedback import vote
from tests.support.service import Service, ask
from tests.support.slow_proxy import slow_proxy

QUESTION = "What is the capital of France?"


async def asked(client: httpx.AsyncClient, question: str = QUESTION) -> httpx.Response:
    """Returns the response to a question."""
    return await client.post("/query", json={"question": question})


async def near_hit(client: httpx.AsyncClient, question: str = QUESTION) -> httpx.Response:
    """Asks until the answer is a copy."""
    async with asyncio.timeout(20):
        while True:
            response = await asked(client, question)
            if "exact-near" in response.headers["cache-status"]:
                return response


async def test_a_repeated_question_is_answered_from_a_copy(serve: Service, redis: Redis) -> None:
    client = await serve()
    near = await near_hit(client)
    print(near.headers, near.text)
    assert near.json()["cache"]["kind"] == "exact"
