"""The asyncio tasks that a question makes. One more must be a decision, not an oversight."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.support.service import Service, ask

QUESTION: Final = "What is the capital of France?"
TIMES: Final = 20
"""Questions of each kind. A task that fewer of them make is in the background."""
OF_THE_SERVER: Final = "RequestResponseCycle.run_asgi"
WATCH: Final = "_watch"
"""Waits for the client's disconnect."""
FLIGHT: Final = "FleetFlights._run"
"""Goes on when a caller leaves and others stay."""
PERMIT: Final = "FleetBulkhead._take_shared"
"""Asked for while Redis decides who leads. Its ticket must not be lost."""
LOOK_UP: Final = "RedisAnswerCache.find_exact"
SEARCH: Final = "RedisAnswerCache.find_similar"
STORE: Final = "RedisAnswerCache.store"
"""Each command of the cache goes on after the question's budget: it finds a lost Redis, and stores the answer."""
EMBEDDING: Final = "OllamaEmbedder._called"
"""Goes on after its deadline, so that the model gets loaded."""

MISS: Final = dict.fromkeys((OF_THE_SERVER, WATCH, LOOK_UP, SEARCH, FLIGHT, PERMIT, STORE), 1)
FULL: Final = {"X-Ragherd-Priority": "interactive"}
"""The default, said aloud: the request takes the full path."""


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the tasks of the block by their coroutine, without those of the stub."""
    loop, made = asyncio.get_running_loop(), Counter[str]()

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        frame = getattr(work, "cr_frame", None)
        if frame is None or "tests" not in str(frame.f_globals["__name__"]):
            made[work.__qualname__] += 1
        return asyncio.Task(work, loop=loop, **more)

    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        yield made
    finally:
        loop.set_task_factory(before)


async def tasks_of(one: Callable[[int], Awaitable[Any]]) -> dict[str, int]:
    """How many tasks one such question makes, by their coroutine."""
    await one(-1)
    with counted() as made:
        for number in range(TIMES):
            await one(number)
    return {name: round(count / TIMES) for name, count in made.items() if count >= TIMES}


async def test_a_miss_makes_seven_tasks(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)

    async def miss(number: int) -> None:
        answered = await ask(client, QUESTION, options={"seed": number})
        assert answered["cache"]["status"] == "miss"

    assert await tasks_of(miss) == MISS


async def test_a_new_question_makes_two_more_to_be_embedded(serve: Service) -> None:
    client = await serve()

    async def miss(number: int) -> None:
        answered = await ask(client, f"How tall are the {number + 2} towers of Laon?", options={"seed": number})
        assert answered["cache"]["status"] == "miss"

    assert await tasks_of(miss) == MISS | {PERMIT: 2, EMBEDDING: 1}


async def test_a_streamed_miss_makes_no_more(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)

    async def miss(number: int) -> None:
        body = {"question": QUESTION, "stream": True, "options": {"seed": number}}
        assert '"status":"miss"' in (await client.post("/query", json=body)).text

    assert await tasks_of(miss) == MISS


async def test_a_hit_on_the_full_path_makes_three(serve: Service) -> None:
    client = await serve(cache={"near_bytes": 0})
    await ask(client, QUESTION)

    async def hit(_: int) -> None:
        assert (await ask(client, QUESTION, headers=FULL))["cache"]["kind"] == "exact"

    assert await tasks_of(hit) == {OF_THE_SERVER: 1, WATCH: 1, LOOK_UP: 1}
