"""A library may raise `CancelledError` although nobody cancelled the request. That is a failure like any other."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.types import Message, Receive, Scope, Send

from api.endpoints.middleware import RequestContext
from api.errors import StoreUnavailable
from api.ports.question import Timings
from api.query.cache import CacheBudget
from api.redis_store.health_gated import HealthGatedRedis

SCOPE = {"type": "http", "method": "POST", "path": "/query", "headers": []}


async def raises(*_: Any) -> None:
    raise asyncio.CancelledError


async def test_a_command_of_a_question_fails() -> None:
    with pytest.raises(StoreUnavailable):
        await CacheBudget(1.0).within(Timings(), raises())


async def test_a_command_of_redis_fails() -> None:
    redis = HealthGatedRedis(AsyncMock(), 1)
    redis.is_up = True
    with pytest.raises(StoreUnavailable):
        await redis.run("test", raises)


async def test_the_command_of_a_cancelled_task_is_cancelled() -> None:
    redis, started = HealthGatedRedis(AsyncMock(), 1), asyncio.Event()
    redis.is_up = True

    async def waits(_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(redis.run("test", waits))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_the_client_gets_a_problem_document() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await RequestContext(raises, "worker")({**SCOPE}, AsyncMock(), send)
    assert sent[0]["status"] == 500
    assert (b"content-type", b"application/problem+json") in sent[0]["headers"]


async def test_a_cancelled_request_gets_no_response() -> None:
    started, send = asyncio.Event(), AsyncMock()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(RequestContext(waits, "worker")({**SCOPE}, AsyncMock(), send))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    send.assert_not_called()
