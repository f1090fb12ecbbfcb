"""Measures what labels and feedback cost: Redis's processor time, and a worker's.

    .venv/bin/python -m scripts.bench_labels

- A look-up with 10 neighbors, as the policy `verified` makes it, compared with one with 5.
- Comparing two answers: processor time, and the longest time in which the event loop runs nothing else.
- Remembering an answer for feedback, a vote, and a vote with an unknown request ID, compared with an exact hit.

Processor time, unlike latency, hardly depends on what else the machine does. Needs the extras `embedded`, `onnx` and
`dev`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from api.cancellation import Background
from api.embedded.redis_server import embedded_redis
from api.embedders.answer_model import AnswerModel
from api.embedders.onnx import open_onnx
from api.ports.answer_cache import FeedbackVerdict, Vote
from api.ports.answer_quality import QualityState
from api.ports.question import AnswerFinished, Query, Timings
from api.ports.telemetry import Telemetry
from api.quality.answer_facts import AnswerText
from api.quality.comparator import Comparator
from api.quality.evidence import NEIGHBOURS
from api.redis_store.connections import BatchingRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import algorithm_for
from api.redis_store.stores.feedback import RedisFeedback, ServedAnswers
from api.redis_store.stores.label_store import RedisLabels
from api.values import CachedAnswer, CacheMatch, CacheStatus, FlightKey, Usage
from scripts.bench_cache import ANSWER, CALLS, EMBEDDER, HOUR, SCOPE, Bench

SIZES: Final = (1_000, 10_000)
ROUNDS: Final = 5
BATCH: Final = 20
"""Answers per write: 1,000 a second, written every 20 ms."""
PAIRS: Final = Path(__file__).parents[1] / "tests" / "quality" / "answer_pairs.jsonl"
COMPARISONS: Final = 40
LENGTHS: Final = (200, 1_000, 4_000)
"""Characters of both answers."""

Work = Callable[[int], Awaitable[object]]


async def cpu(redis: Redis) -> float:
    """Returns the processor seconds of Redis's main thread."""
    info = await redis.info("cpu")
    return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])


async def micros(redis: Redis, work: Work, calls: int, each: int = 1) -> float:
    """Returns Redis's microseconds for one of the `each` things that a call does."""
    before = await cpu(redis)
    for number in range(calls):
        await work(number)
    return (await cpu(redis) - before) / (calls * each) * 1e6


async def compared(redis: Redis, cases: Mapping[str, tuple[Work, int, int]]) -> dict[str, float]:
    """Returns the median of some rounds for each case. The cases alternate."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (work, calls, each) in cases.items():
            found[name].append(await micros(redis, work, calls, each))
    return {name: statistics.median(values) for name, values in found.items()}


async def neighbours(url: str) -> None:
    print("Redis, microseconds of a search      5 neighbors    10 neighbors    ratio")
    for size in SIZES:
        async with BatchingRedis.from_url(url) as redis:
            await redis.flushall()
            bench = Bench(redis, size, algorithm_for(size))
            await bench.fill()

            def search(count: int, bench: Bench = bench) -> Work:
                async def work(number: int) -> None:
                    vector = bench.asked[number % CALLS].tobytes()
                    found = await bench.cache.find_similar(EMBEDDER, SCOPE, vector, 0, neighbours=count)
                    assert len(found) == count

                return work

            found = await compared(redis, {"5": (search(5), 400, 1), "10": (search(NEIGHBOURS), 400, 1)})
            print(f"  {size:7,} entries {found['5']:32.0f} {found['10']:15.0f} {found['10'] / found['5']:8.2f}")


async def feedback(url: str) -> None:
    async with BatchingRedis.from_url(url) as redis:
        await redis.flushall()
        bench = Bench(redis, 1_000, "hnsw")
        await bench.fill()
        keys, voters = Keys(), itertools.count()
        served = ServedAnswers(bench.gate, keys, HOUR, lambda _: None)
        labels = RedisLabels(bench.gate, keys)
        votes = RedisFeedback(bench.gate, keys, bench.index, served, labels, Telemetry(), QualityState, HOUR)
        ids: list[str] = []

        async def remember(_: int) -> None:
            for _ in range(BATCH):
                ids.append(uuid.uuid4().hex)
                query = Query("Why?", "t", "m", request_id=ids[-1])
                digest = f"{len(ids) % bench.size:032x}"
                cached = CachedAnswer(f"{SCOPE}:{digest}", "Why?", ANSWER, "m", (), Usage(), 1, 2)
                match = CacheMatch(cached, "exact", 1.0, 1)
                done = AnswerFinished(ANSWER, "m", CacheStatus.HIT, Timings(), match=match)
                served.note((ids[-1], query, done, FlightKey(SCOPE, digest)))
            await served.flush()

        async def vote(number: int, *verdicts: FeedbackVerdict) -> None:
            voter = f"v{next(voters)}"
            for verdict in verdicts or ("good",):
                assert await votes.vote("t", Vote(ids[number], verdict, voter, ""), of_any_tenant=False)

        async def bad(number: int) -> None:
            await vote(number, "bad", "good")

        async def unknown(number: int) -> None:
            forms = (f"nobody-{number}", "t")
            assert await served._recalled(*forms, of_any_tenant=False) is None

        cases = {
            "exact hit": (bench.exact, 400, 1),
            "answer remembered, of 20 at once": (remember, 80, BATCH),
            "vote `good`": (vote, 100, 1),
            "vote `bad`, and back to `good`": (bad, 100, 1),
            "unknown request ID, each of two looks": (unknown, 400, 1),
        }
        found = await compared(redis, cases)
        print("\nRedis, microseconds                           each    exact hits")
        for name, value in found.items():
            print(f"  {name:38} {value:8.0f} {value / found['exact hit']:10.2f}")


async def comparing() -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines() if line.strip()]
    texts = [(str(row["one"]), str(row["other"])) for row in rows]
    print("\nA worker, milliseconds of a comparison    process    its event loop    longest without a break")
    async with open_onnx(None, 60.0) as onnx, AnswerModel.open() as model:
        await model.score("What?", "This.", "That.")  # loads it
        for length in LENGTHS:
            comparator = Comparator(onnx.documents, Telemetry(), model=model)
            process, loop = time.process_time(), time.thread_time()
            await several(comparator, texts, length)
            used = [time.process_time() - process, time.thread_time() - loop]
            breaks: list[float] = []
            async with Background() as background:
                background.start(watch, breaks)
                await several(Comparator(onnx.documents, Telemetry(), model=model), texts, length)
            shown = [one / COMPARISONS * 1000 for one in used]
            print(f"  {length:5,} characters {shown[0]:32.1f} {shown[1]:17.1f} {max(breaks) * 1000:26.1f}")


async def several(comparator: Comparator, texts: list[tuple[str, str]], length: int) -> None:
    """Compares pairs of answers that together have this length."""
    for number in range(COMPARISONS):
        one, other = (cut(texts, number, place, length // 2) for place in (0, 1))
        await comparator.compare(AnswerText(f"{number}?", one), AnswerText(f"{number}!", other))


async def watch(breaks: list[float]) -> None:
    """Notes how much processor time the event loop's thread used between two turns."""
    while True:
        before = time.thread_time()
        await asyncio.sleep(0.0005)
        breaks.append(time.thread_time() - before)


def cut(texts: list[tuple[str, str]], number: int, place: int, length: int) -> str:
    """Returns a text of this length, made of several answers."""
    whole = ""
    while len(whole) < length:
        whole += f" {texts[number % len(texts)][place]}"
        number += 1
    return whole[:length]


def main() -> None:
    with embedded_redis(persistent=False) as redis:
        asyncio.run(neighbours(redis.url))
        asyncio.run(feedback(redis.url))
    asyncio.run(comparing())


if __name__ == "__main__":
    main()
