"""How long a prompt may take to read, and what becomes of the permit of a call that was given up meanwhile."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from api.backends.choice import OverdueCalls
from api.endpoints.dropin import ForwardedPath, forwarded_request
from api.endpoints.dropin_wire import tokens_in
from api.errors import UpstreamError, UpstreamFault
from api.ollama.generation import ASSUMED_FREE, ASSUMED_SPEED, MODELS, ReadingSpeeds
from api.values import ChatMessage, ForwardedRequest, GenerationEnd, GenerationRequest, Usage
from tests.support.waiting import wait_until_async

REQUEST = GenerationRequest("m", (ChatMessage("user", "Why?"),))
FIRST_TOKEN = 30.0


def read(tokens: int, seconds: float) -> GenerationEnd:
    return GenerationEnd("m", "stop", Usage(tokens, 1), seconds, 0.0, seconds, 0.0)


def test_an_unknown_backend_gets_time_for_a_long_prompt_only() -> None:
    speeds = ReadingSpeeds()
    assert speeds.seconds("m", ASSUMED_FREE) == 0.0
    assert speeds.seconds("m", ASSUMED_FREE + 500) == 500 / ASSUMED_SPEED


def test_a_prompt_gets_the_time_that_it_takes_at_the_reported_speed() -> None:
    speeds = ReadingSpeeds()
    speeds.learn("m", read(100, 2.0))
    assert speeds.seconds("m", 1000) == pytest.approx(20.0)
    assert speeds.seconds("m", 40) == 0.0, "less than a second is part of the first-token deadline"
    assert speeds.seconds("other", 1000) == 0.0


def test_a_prompt_whose_beginning_ollama_has_kept_does_not_make_the_backend_look_fast() -> None:
    speeds = ReadingSpeeds()
    speeds.learn("m", read(1000, 10.0))
    for _ in range(5):
        speeds.learn("m", read(1000, 0.01))
    assert speeds.seconds("m", 1000) > 7
    for _ in range(200):
        speeds.learn("m", read(1000, 2.0))
    assert speeds.seconds("m", 1000) == pytest.approx(2.0, rel=0.01)


def test_another_worker_adopts_what_this_one_has_learned() -> None:
    speeds, new = ReadingSpeeds(), ReadingSpeeds()
    speeds.learn("m", read(100, 2.0))
    assert speeds.take_unsent() == {"m": 0.02}
    assert speeds.take_unsent() == {}
    new.learn("known", read(100, 1.0))
    new.adopt({"m": 0.02, "known": 5.0})
    assert new.seconds("m", 1000) == pytest.approx(20.0)
    assert new.seconds("known", 1000) == pytest.approx(10.0), "what it measured itself counts"
    assert new.take_unsent() == {"known": 0.01}, "what others know is not sent again"
    new.adopt({str(number): 1.0 for number in range(2 * MODELS)})
    assert new.seconds(str(2 * MODELS - 1), 1000) == 0.0, "bounded"


def test_what_says_nothing_about_the_speed_is_ignored_and_few_models_are_remembered() -> None:
    speeds = ReadingSpeeds()
    speeds.learn("m", read(15, 60.0))
    speeds.learn("m", read(1000, 0.0))
    assert speeds.seconds("m", 100) == 0.0
    for number in range(MODELS + 1):
        speeds.learn(f"m{number}", read(100, 10.0))
    assert speeds.seconds("m0", 100) == 0.0
    assert speeds.seconds("m1", 100) == pytest.approx(10.0)


def test_a_prompt_has_a_token_for_three_bytes() -> None:
    request = GenerationRequest("m", (ChatMessage("system", "a" * 30), ChatMessage("user", "文" * 10)))
    assert request.prompt_tokens == 20


def forwarded(**fields: Any) -> ForwardedRequest:
    return forwarded_request(fields, ForwardedPath("/api/chat", True, lambda error: b""))


def test_the_texts_of_a_forwarded_request_count_and_its_images_do_not() -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "a" * 30}, {"image_url": {"url": "b" * 999}}]}]
    request = forwarded(messages=turns, images=["c" * 999], system="d" * 30)
    assert 20 <= GenerationRequest("m", (), forwarded=request).prompt_tokens <= 25


@pytest.mark.parametrize(
    "fields",
    [
        {"context": list(range(1000))},
        {"tools": [{"function": {"parameters": {"properties": {"url": {"description": "a" * 3000}}}}}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"data": "a" * 3000}}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"images": ["a" * 3000]}}]}]},
    ],
)
def test_all_that_the_model_reads_counts(fields: dict[str, Any]) -> None:
    assert 1000 <= forwarded(**fields).prompt_tokens < 1020


@pytest.mark.parametrize(
    "content", [[1] * 500_000, [[]] * 300_000, [{}] * 300_000, [[1] * 100] * 2000, ["1"] * 250_000]
)
def test_a_body_of_many_parts_counts_by_its_bytes(content: list[Any]) -> None:
    request = forwarded(messages=[{"role": "user", "content": content}])
    assert request.prompt_tokens == len(request.body) // 3


def test_images_do_not_count_in_a_long_conversation() -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "a" * 30}]} for _ in range(4_000)]
    assert forwarded(messages=[*turns, {"images": ["b" * 500_000]}]).prompt_tokens < 100_000


def test_many_fields_without_text_do_not_count() -> None:
    assert forwarded(prompt="a" * 30, logit_bias=dict.fromkeys(map(str, range(10_000)), 1)).prompt_tokens == 10


def test_a_long_context_counts_beside_the_texts() -> None:
    assert forwarded(context=list(range(50_000)), prompt="a" * 300).prompt_tokens == 50_100
    assert forwarded(context=[1] * 190_000, options=[1] * 50_000).prompt_tokens >= 190_000


@pytest.mark.slow
@pytest.mark.timed
def test_a_body_of_many_parts_is_counted_without_a_visit_to_each() -> None:
    fields = {"messages": [{"role": "user", "content": [[] for _ in range(300_000)]}]}
    began = time.process_time()
    body = orjson.dumps(fields)
    writing = time.process_time() - began
    began = time.process_time()
    assert tokens_in(fields, body) == len(body) // 3
    assert time.process_time() - began < 3 * writing


class Backend:
    """Replaces the language model and the breaker."""

    def __init__(self, reading: float = 0.0) -> None:
        self.reading = reading
        self.epoch = 7
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked: list[float] = []
        self.hung: list[int] = []

    def reading_seconds(self, request: GenerationRequest) -> float:
        return self.reading

    async def answer_one_token(self, model: str, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.shield(self.answer)

    async def hangs(self, epoch: int) -> None:
        self.hung.append(epoch)


class Permits:
    """Counts permits that were returned."""

    def __init__(self) -> None:
        self.returned = 0

    def one(self) -> AsyncExitStack:
        stack = AsyncExitStack()
        stack.callback(self._returns)
        return stack

    def _returns(self) -> None:
        self.returned += 1


def overdue(backend: Backend) -> OverdueCalls:
    return OverdueCalls("ollama", backend, backend, FIRST_TOKEN)


def fault(kind: UpstreamFault) -> UpstreamError:
    return UpstreamError(kind, kind.value)


async def test_which_calls_keep_their_permit() -> None:
    calls = overdue(Backend(reading=10.0))
    assert calls.reads_on(REQUEST, fault(UpstreamFault.FIRST_TOKEN_TIMEOUT), 40.0) == 0.0
    for left in (asyncio.CancelledError(), fault(UpstreamFault.TOTAL_TIMEOUT)):
        assert calls.reads_on(REQUEST, left, 4.0) == pytest.approx(6.0)
        assert calls.reads_on(REQUEST, left, 9.9) is None
    for other in set(UpstreamFault) - {UpstreamFault.FIRST_TOKEN_TIMEOUT, UpstreamFault.TOTAL_TIMEOUT}:
        assert calls.reads_on(REQUEST, fault(other), 1.0) is None


async def test_the_permit_is_kept_until_the_backend_answers() -> None:
    backend, permits = Backend(), Permits()
    calls = overdue(backend)
    calls.keep(permits.one(), "m", 6.0)
    await wait_until_async(lambda: _now(backend.asked))
    assert (permits.returned, calls.count) == (0, 1)
    assert backend.asked == [pytest.approx(36.0, abs=1.0)], "the rest of the reading, and a first-token deadline"
    backend.answer.set_result(None)
    await wait_until_async(lambda: _now(permits.returned))
    assert (calls.count, backend.hung) == (0, [])


async def test_a_call_given_up_meanwhile_is_asked_for_again() -> None:
    backend, permits = Backend(), Permits()
    calls = overdue(backend)
    calls.keep(permits.one(), "m", 0.0)
    await wait_until_async(lambda: _now(backend.asked))
    calls.keep(permits.one(), "m", 0.0)
    backend.answer.set_result(None)
    await wait_until_async(lambda: _now(permits.returned == 2))
    assert len(backend.asked) == 2


async def test_a_backend_that_does_not_answer_hangs() -> None:
    backend, permits = Backend(), Permits()
    overdue(backend).keep(permits.one(), "m", 0.0)
    await wait_until_async(lambda: _now(backend.asked))
    backend.epoch = 8
    backend.answer.set_exception(fault(UpstreamFault.FIRST_TOKEN_TIMEOUT))
    await wait_until_async(lambda: _now(permits.returned))
    assert backend.hung == [7], "the epoch in which it was asked"


async def test_a_backend_that_is_gone_does_not_hang() -> None:
    backend, permits = Backend(), Permits()
    overdue(backend).keep(permits.one(), "m", 0.0)
    backend.answer.set_exception(fault(UpstreamFault.CONNECT_FAILED))
    await wait_until_async(lambda: _now(permits.returned))
    assert backend.hung == []


async def test_an_unexpected_error_returns_all_permits() -> None:
    backend, permits = Backend(), Permits()
    calls = overdue(backend)
    calls.keep(permits.one(), "m", 0.0)
    await wait_until_async(lambda: _now(backend.asked))
    calls.keep(permits.one(), "m", 0.0)
    backend.answer.set_exception(KeyError("m"))
    await wait_until_async(lambda: _now(permits.returned == 2))
    assert calls.count == 0


async def test_a_worker_that_stops_returns_the_permits() -> None:
    backend, permits = Backend(), Permits()
    calls = overdue(backend)
    calls.keep(permits.one(), "m", 0.0)
    await wait_until_async(lambda: _now(backend.asked))
    await calls.aclose()
    assert (permits.returned, calls.count) == (1, 0)


async def _now(value: object) -> object:
    return value
