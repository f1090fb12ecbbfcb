"""Asks each worker over its own connection, and times how soon all of them show a change."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import httpx

from api.ports.answer_quality import PolicyName, QualityState, Versions
from api.quality.policies import Published, published_as_json, threshold_at
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.quality_store import RedisQuality
from tests.support.waiting import wait_until

KEYS = Keys()
ME = "test"


@contextmanager
def each_worker(urls: Sequence[str], count: int) -> Iterator[Mapping[str, httpx.Client]]:
    """Yields a client with an open connection to each of `count` workers, by the worker's ID."""
    with ExitStack() as stack:
        clients: dict[str, httpx.Client] = {}

        def has_all() -> bool:
            for url in [*urls, *urls, *urls, *urls]:
                client = stack.enter_context(httpx.Client(base_url=url, timeout=10, trust_env=False))
                clients.setdefault(client.get("/health/live").headers["X-Worker"], client)
            return len(clients) == count

        wait_until(has_all, timeout=30)
        yield clients


def seconds_until_all(
    clients: Mapping[str, httpx.Client], shows: Callable[[httpx.Client], bool], change: Callable[[], float]
) -> float:
    """Makes a change, and returns after how many seconds no request was sent any more that did not show it.

    `change` returns when it began. A busy machine answers late, so the time of the answer would say less.
    """
    last, ends = dict[str, float](), dict[str, float]()
    ready = threading.Barrier(len(clients) + 1)

    def watch(worker: str, client: httpx.Client) -> None:
        assert not shows(client)
        ready.wait(30)

        def shown() -> bool:
            sent = time.monotonic()
            if shows(client):
                return True
            last[worker] = sent
            return False

        wait_until(shown, timeout=10, interval=0.005)
        ends[worker] = last.get(worker, 0.0)

    threads = [threading.Thread(target=watch, args=one) for one in clients.items()]
    for thread in threads:
        thread.start()
    ready.wait(30)
    began = change()
    for thread in threads:
        thread.join()
    assert len(ends) == len(clients), "every worker shows it"
    return max(0.0, max(ends.values()) - began)


def level(client: httpx.Client) -> int:
    """Returns how far this worker is tightened."""
    return int(client.get("/api/semantic-cache/quality").json()["level"])


def published(redis_url: str, client: httpx.Client, to_level: int) -> float:
    """Publishes what the worker that learns would: another level. Returns when it began."""
    shown = client.get("/api/semantic-cache/quality").json()
    comparator = shown["comparator"]
    versions = Versions(
        shown["embedder"] or "", shown["verifier"] or "", f"{comparator['name']}-{comparator['version']}"
    )
    state = QualityState(
        policy=PolicyName(shown["policy"]), versions=versions, level=to_level, threshold=threshold_at(0.92, to_level)
    )
    return asyncio.run(_publish(redis_url, published_as_json(Published(state))))


async def _publish(redis_url: str, text: bytes) -> float:
    async with BatchingRedis.from_url(redis_url) as redis:
        gate = HealthGatedRedis(redis, 8)
        assert await gate.check()
        await redis.set(KEYS.quality_lease, ME, px=60_000)
        store = RedisQuality(gate, KEYS, ME)
        after = (await store.read(0)).epoch
        began = time.monotonic()
        assert await store.publish(after, text, {})
        return began


def is_gone(questions: Sequence[str], client: httpx.Client) -> bool:
    """Returns whether this worker serves none of the questions from the cache."""
    headers = {"Cache-Control": "only-if-cached"}
    return all(client.post("/query", json={"question": one}, headers=headers).status_code == 504 for one in questions)


def judged_bad(client: httpx.Client, request_id: str) -> float:
    """Votes, and returns when it began."""
    began = time.monotonic()
    response = client.post("/feedback", json={"request_id": request_id, "verdict": "bad"})
    assert response.status_code == 202, response.text
    return began
