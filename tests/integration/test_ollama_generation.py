"""The Ollama language model with a misbehaving stub: each fault is classified, and no wait exceeds its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from api.errors import UpstreamError, UpstreamFault
from api.ollama.generation import Deadlines, OllamaModel
from api.ollama.pool import OllamaPool, PoolLimits, open_pool
from api.values import ChatMessage, GenerationEnd, GenerationRequest, Thought, Token, Usage
from tests.stub_ollama import StubOllama, running_stub
from tests.support.waiting import wait_until_async

Fault = UpstreamFault
SHORT = Deadlines(first_token=0.2, cold_first_token=0.4, inter_token=0.2, total=2.0)
SLACK = 0.6
"""Seconds that a loaded machine may add to a deadline."""


@pytest.fixture
async def stub() -> AsyncIterator[StubOllama]:
    async with running_stub() as stub:
        yield stub


@pytest.fixture
async def pool(stub: StubOllama) -> AsyncIterator[OllamaPool]:
    async with open_pool(stub.base_url, PoolLimits(min_size=1, max_size=2, timeout=0.2, connect_timeout=0.2)) as pool:
        yield pool


@pytest.fixture
def model(pool: OllamaPool) -> OllamaModel:
    return OllamaModel(pool, SHORT)


def asked(question: str = "what is a goat", **options: Any) -> GenerationRequest:
    return GenerationRequest("llama3.2", (ChatMessage("user", question),), options)


async def collected(
    model: OllamaModel, request: GenerationRequest | None = None
) -> list[Token | Thought | GenerationEnd]:
    async with model.stream(request or asked()) as stream:
        return [event async for event in stream]


async def fault_of(model: OllamaModel) -> UpstreamFault:
    with pytest.raises(UpstreamError) as caught:
        await collected(model)
    return caught.value.fault


async def test_an_answer_streams_and_ends_once(model: OllamaModel, stub: StubOllama) -> None:
    stub.behaviour(load_duration=1.5)
    *tokens, end = await collected(model)
    assert tokens == [Token("echo:"), Token(" what"), Token(" is"), Token(" a"), Token(" goat")]
    assert end == GenerationEnd("llama3.2", "stop", Usage(4, 5), 1.7, 1.5, 0.05, 0.15)


async def test_zeros_that_ollama_omits_are_zeros(model: OllamaModel) -> None:
    end = (await collected(model))[-1]
    assert isinstance(end, GenerationEnd)
    assert end.load_duration == 0.0


async def test_what_is_sent(model: OllamaModel, stub: StubOllama) -> None:
    await collected(model, asked("hi", num_ctx=2048))
    assert stub.last_bodies["/api/chat"] == {
        "model": "llama3.2",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"num_ctx": 2048},
        "stream": True,
        "think": False,
    }


async def test_nothing_is_sent_before_a_token_is_asked_for(model: OllamaModel, stub: StubOllama) -> None:
    async with model.stream(asked()):
        pass
    assert "/api/chat" not in stub.stats["requests"]


@pytest.mark.parametrize(
    ("mode", "fields", "fault", "deadline"),
    [
        ("hang", {}, Fault.FIRST_TOKEN_TIMEOUT, SHORT.first_token),
        ("hang", {"resident": "no"}, Fault.COLD_START_TIMEOUT, SHORT.cold_first_token),
        ("hang", {"resident": "loading"}, Fault.COLD_START_TIMEOUT, SHORT.cold_first_token),
        ("hang_between", {}, Fault.INTER_TOKEN_TIMEOUT, SHORT.inter_token),
        ("ok", {"pace": 0.1, "answer": "word " * 100}, Fault.TOTAL_TIMEOUT, SHORT.total),
        ("cut", {}, Fault.CONNECTION_LOST, 0.0),
        ("error_line", {}, Fault.STREAM_ERROR, 0.0),
        ("no_done", {}, Fault.STREAM_TRUNCATED, 0.0),
        ("bad_json", {}, Fault.INVALID_RESPONSE, 0.0),
        ("status", {"status": 400}, Fault.REQUEST_REJECTED, 0.0),
        ("status", {"status": 401}, Fault.UNAUTHORIZED, 0.0),
        ("status", {"status": 404}, Fault.MODEL_NOT_FOUND, 0.0),
        ("status", {"status": 429}, Fault.BUSY, 0.0),
        ("status", {"status": 500}, Fault.SERVER_ERROR, 0.0),
        ("status", {"status": 500, "message": 'option "x" must be of type int'}, Fault.REQUEST_REJECTED, 0.0),
        ("status", {"status": 503}, Fault.BUSY, 0.0),
    ],
)
@pytest.mark.timed
async def test_a_misbehaviour_has_its_fault_within_its_deadline(
    model: OllamaModel,
    pool: OllamaPool,
    stub: StubOllama,
    mode: str,
    fields: dict[str, Any],
    fault: Fault,
    deadline: float,
) -> None:
    stub.behaviour(mode, **fields)
    began = time.monotonic()
    assert await fault_of(model) is fault
    assert deadline <= time.monotonic() - began < deadline + SLACK
    assert pool.snapshot().active == 0
    assert pool.snapshot().endpoints["/api/chat"].errors >= 1
    stub.behaviour()
    assert isinstance((await collected(model))[-1], GenerationEnd)


async def test_a_model_being_loaded_is_waited_for(model: OllamaModel, stub: StubOllama) -> None:
    stub.behaviour(delay=(SHORT.first_token + SHORT.cold_first_token) / 2, resident="loading")
    assert isinstance((await collected(model))[-1], GenerationEnd)


@pytest.mark.parametrize("total", [SHORT.cold_first_token, SHORT.cold_first_token - 0.1])
async def test_a_slow_load_is_no_failure_though_the_total_ends_first(
    pool: OllamaPool, stub: StubOllama, total: float
) -> None:
    model = OllamaModel(pool, replace(SHORT, total=total))
    stub.behaviour("hang", resident="no")
    assert await fault_of(model) is Fault.COLD_START_TIMEOUT


async def test_residency_is_learned_though_every_connection_is_taken(pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour("hang", resident="no")
    model = OllamaModel(pool, replace(SHORT, cold_first_token=SHORT.first_token + 2 * pool.limits.timeout))
    faults = await asyncio.gather(*(fault_of(model) for _ in range(pool.limits.max_size)))
    assert set(faults) == {Fault.COLD_START_TIMEOUT}


async def test_an_ollama_that_says_nothing_at_all_hangs(pool: OllamaPool, stub: StubOllama) -> None:
    model = OllamaModel(pool, replace(SHORT, cold_first_token=30.0))
    stub.behaviour("hang")
    hanging = asyncio.create_task(fault_of(model))
    await wait_until_async(lambda: _in_flight(stub, 1))
    stub.behaviour("hang", path="/api/ps")
    assert await hanging is Fault.FIRST_TOKEN_TIMEOUT


async def test_nobody_listening(model: OllamaModel, stub: StubOllama) -> None:
    await stub.refuse()
    assert await fault_of(model) is Fault.CONNECT_FAILED
    await stub.listen()
    assert await collected(model)


async def test_a_full_pool(model: OllamaModel, pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour(delay=0.15, pace=0.15, answer="one two three four five six")
    first, second = (asyncio.create_task(collected(model)) for _ in range(2))
    await wait_until_async(lambda: _in_flight(stub, 2))
    assert await fault_of(model) is Fault.POOL_TIMEOUT
    assert pool.snapshot().pool_timeouts == 1
    await asyncio.gather(first, second)


async def test_a_busy_ollama_passes_its_retry_after_on(model: OllamaModel, stub: StubOllama) -> None:
    stub.behaviour("status", status=503, retry_after="9")
    with pytest.raises(UpstreamError) as caught:
        await collected(model)
    assert caught.value.headers == {"Retry-After": "9"}


@pytest.mark.parametrize(("status", "sent"), [(500, 2), (502, 2), (503, 1), (404, 1), (400, 1)])
async def test_only_what_may_be_retried_is_retried_once(
    model: OllamaModel, stub: StubOllama, status: int, sent: int
) -> None:
    stub.behaviour("status", status=status)
    await fault_of(model)
    assert stub.stats["requests"]["/api/chat"] == sent


async def test_a_retry_that_works_is_not_seen(model: OllamaModel, stub: StubOllama) -> None:
    stub.behaviour("status", status=500, times=1)
    assert (await collected(model))[0] == Token("echo:")


@pytest.mark.parametrize("mode", ["cut", "error_line", "no_done", "bad_json", "hang_between"])
async def test_nothing_is_retried_after_the_first_byte(model: OllamaModel, stub: StubOllama, mode: str) -> None:
    stub.behaviour(mode)
    await fault_of(model)
    assert stub.stats["requests"]["/api/chat"] == 1


async def test_an_answer_is_whole_with_its_last_line(model: OllamaModel, pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour("cut_after_done")
    events = await collected(model)
    assert isinstance(events[-1], GenerationEnd)
    assert pool.snapshot().active == pool.snapshot().idle == 0, "the broken connection is not kept"
    stub.behaviour()
    assert (await collected(model))[0] == Token("echo:")


async def test_leaving_early_stops_the_generation(model: OllamaModel, pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour("hang_between")
    async with model.stream(asked()) as stream:
        assert await anext(stream) == Token("echo:")
    assert pool.snapshot().active == 0
    await wait_until_async(lambda: _cancelled(stub, 1))
    assert pool.snapshot().endpoints["/api/chat"].errors == 0


@pytest.mark.parametrize("mode", ["hang", "hang_between"])
async def test_cancellation_stops_the_generation_and_frees_the_slot(
    pool: OllamaPool, stub: StubOllama, mode: str
) -> None:
    model = OllamaModel(pool, Deadlines())
    stub.behaviour(mode)
    for count in range(1, 6):
        task = asyncio.create_task(collected(model))
        await wait_until_async(lambda: _in_flight(stub, 1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_async(partial(_cancelled, stub, count))
    assert pool.snapshot().active == 0
    assert pool.snapshot().endpoints["/api/chat"].errors == 0


async def test_a_reader_that_takes_its_time_is_not_cut_off_between_tokens(model: OllamaModel, stub: StubOllama) -> None:
    async with model.stream(asked()) as stream:
        await anext(stream)
        await wait_until_async(lambda: _finished(stub, 1))
        await asyncio.sleep(SHORT.inter_token * 1.5)  # the reader's own time, which is the point
        assert isinstance([event async for event in stream][-1], GenerationEnd)


async def test_a_readers_own_time_is_no_part_of_the_total(pool: OllamaPool, stub: StubOllama) -> None:
    model = OllamaModel(pool, replace(SHORT, total=0.4))
    stub.behaviour(pace=0.01)
    async with model.stream(asked()) as stream:
        await anext(stream)
        await asyncio.sleep(0.5)  # the reader's own time, which is the point
        assert isinstance([event async for event in stream][-1], GenerationEnd)


async def _in_flight(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["in_flight"] == count)


async def _cancelled(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["cancelled"] == count)


async def _finished(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["finished"] == count)
