"""How `ragherd eval` asks: it retries a busy service, keeps to its deadline, and ends early if asking on is useless."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from ragherd.evaluation_cases import Case, is_document, unknown_documents
from ragherd.evaluation_run import Asker, Asking, Evaluation

ANSWER = {"answer": "It is red [1].", "sources": [], "usage": {"completion_tokens": 5}}
Answering = Callable[[httpx.Request], httpx.Response] | Callable[[httpx.Request], Awaitable[httpx.Response]]


async def evaluated(answering: Answering, *, questions: int = 3, **asking: float) -> Evaluation:
    how = Asking(timeout=asking.get("timeout", 5.0), concurrency=int(asking.get("concurrency", 1)))
    transport = httpx.MockTransport(answering)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        run = Evaluation([Case(f"What is {number}?") for number in range(questions)], Asker(http, how), how)
        await run.run()
        return run


def test_a_document_is_unknown_if_no_stored_one_is_it() -> None:
    stored: list[dict[str, str | None]] = [
        {"source": "hr@3f/deep/holiday.md", "id": "a1", "title": "Holiday  Policy"},
        {"source": None, "id": "b2", "title": "canteen.txt"},
    ]
    known = ("hr@3f/deep/holiday.md", "deep/holiday.md", "holiday.md", "a1", "b2", "holiday policy", "CANTEEN.txt")
    unknown = ("oliday.md", "Deep/holiday.md", "hr@3f", "hr@3f/deep", "None", "a")
    assert unknown_documents((*known, *unknown), stored) == list(unknown)
    assert [one for one in (*known, *unknown) if not any(is_document(one, document) for document in stored)] == [
        *unknown
    ]


async def test_no_request_uses_the_cache_and_each_has_a_deadline() -> None:
    seen: list[httpx.Headers] = []

    def answering(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json=ANSWER)

    run = await evaluated(answering)
    assert [one.error for one in run.results] == [""] * 3
    assert {headers["Cache-Control"] for headers in seen} == {"no-store"}
    assert all(0 < float(headers["X-Request-Timeout"]) <= 5 for headers in seen)


async def test_a_busy_service_is_asked_again_while_there_is_time() -> None:
    waits = iter(["0", "0", "60"])

    def answering(_: httpx.Request) -> httpx.Response:
        wait = next(waits, None)
        return httpx.Response(200, json=ANSWER) if wait is None else httpx.Response(503, headers={"Retry-After": wait})

    run = await evaluated(answering, questions=2)
    assert [bool(one.error) for one in run.results] == [True, False]  # a minute is more than the timeout
    assert run.ended is None


async def test_a_question_that_takes_too_long_does_not_end_the_run() -> None:
    async def answering(request: httpx.Request) -> httpx.Response:
        if b"What is 0?" in request.content:
            await asyncio.Event().wait()
        return httpx.Response(200, json=ANSWER)

    run = await evaluated(answering, timeout=0.1)
    assert [one.error for one in run.results] == ["/query: not answered within 0.1 s", "", ""]
    assert run.results[0].measures == {}


@pytest.mark.parametrize(("status", "unreachable"), [(401, False), (0, True)])
async def test_a_wrong_key_or_a_lost_service_ends_the_run(status: int, unreachable: bool) -> None:
    calls = 0

    def answering(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if not status:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, json={"detail": "no"})

    run = await evaluated(answering)
    assert run.ended is not None
    assert (calls, run.ended.unreachable) == (1, unreachable)


async def test_no_more_questions_are_asked_at_a_time_than_allowed() -> None:
    now = most = 0

    async def answering(_: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return httpx.Response(200, json=ANSWER)

    await evaluated(answering, questions=20, concurrency=4)
    assert most == 4
