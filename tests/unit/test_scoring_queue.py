"""The re-ranker's queue: order, deadlines, users before background work. Most tests use a score function that waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.embedders.reranker import PAIRS_PER_BATCH, OnnxReranker, ScoringQueue, TextPair
from api.errors import RerankingUnavailable, SettingsError
from tests.support.small_cross_encoder import write_cross_encoder


class GatedScorer:
    """Scores a text by its length over 100, once `gate` is set. `turns` has the texts of each batch."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = []
        self.gate = threading.Event()
        self.pause = 0.0
        self._loop = asyncio.get_running_loop()
        self._busy = asyncio.Event()

    def __call__(self, pairs: Sequence[TextPair]) -> list[float]:
        self.turns.append([pair.text for pair in pairs])
        self._loop.call_soon_threadsafe(self._busy.set)
        assert self.gate.wait(10)
        time.sleep(self.pause)
        if any(pair.text == "fail" for pair in pairs):
            raise RuntimeError("out of memory")
        return [len(pair.text) / 100 for pair in pairs]

    async def is_busy(self) -> None:
        """Returns once the thread is in its first batch."""
        await asyncio.wait_for(self._busy.wait(), 10)


@pytest.fixture
async def scorer() -> AsyncIterator[GatedScorer]:
    scorer = GatedScorer()
    yield scorer
    scorer.gate.set()


@pytest.fixture
async def queue(scorer: GatedScorer) -> AsyncIterator[ScoringQueue]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        queue = ScoringQueue(scorer, thread)
        yield queue
        scorer.gate.set()
        await queue.close()


def pairs(*texts: str) -> list[TextPair]:
    return [TextPair("question", text) for text in texts]


def asked(queue: ScoringQueue, *texts: str, seconds: float = 60, background: bool = False) -> asyncio.Task[list[float]]:
    return asyncio.create_task(queue.scores(pairs(*texts), seconds, background=background))


async def in_line(*calls: asyncio.Task[list[float]]) -> None:
    """Lets new tasks run until they wait."""
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)


async def test_scores_arrive_in_order_one_slice_at_a_time(queue: ScoringQueue, scorer: GatedScorer) -> None:
    scorer.gate.set()
    texts = ["x" * n for n in range(1, PAIRS_PER_BATCH + 3)]
    assert await queue.scores(pairs(*texts), 60) == [n / 100 for n in range(1, PAIRS_PER_BATCH + 3)]
    assert scorer.turns == [texts[:PAIRS_PER_BATCH], texts[PAIRS_PER_BATCH:]]
    assert await queue.scores([], 60) == []


async def test_requests_are_served_in_order(queue: ScoringQueue, scorer: GatedScorer) -> None:
    """Callers run one after the other: in parallel all would be late."""
    first = asked(queue, *(f"a{n}" for n in range(PAIRS_PER_BATCH + 1)))
    await scorer.is_busy()
    second = asked(queue, "b")
    await in_line(first, second)
    scorer.gate.set()
    await asyncio.gather(first, second)
    assert [turn[0] for turn in scorer.turns] == ["a0", f"a{PAIRS_PER_BATCH}", "b"]


async def test_users_go_before_background_work(queue: ScoringQueue, scorer: GatedScorer) -> None:
    background = asked(queue, *(f"a{n}" for n in range(2 * PAIRS_PER_BATCH)), background=True)
    await scorer.is_busy()
    user = asked(queue, "b")
    await in_line(background, user)
    scorer.gate.set()
    await asyncio.gather(background, user)
    assert [turn[0] for turn in scorer.turns] == ["a0", "b", f"a{PAIRS_PER_BATCH}"]


async def test_texts_past_the_deadline_are_not_scored(queue: ScoringQueue, scorer: GatedScorer) -> None:
    with pytest.raises(RerankingUnavailable, match=r"longer than 0\.01 s"):
        await queue.scores(pairs(*(f"a{n}" for n in range(2 * PAIRS_PER_BATCH))), 0.01)
    scorer.gate.set()
    assert await queue.scores(pairs("b"), 60) == [0.01]
    assert [turn[0] for turn in scorer.turns] == ["a0", "b"]


async def test_a_cancelled_caller_does_not_affect_others(queue: ScoringQueue, scorer: GatedScorer) -> None:
    computing = asked(queue, "a")
    await scorer.is_busy()
    waiting, other = asked(queue, "b"), asked(queue, "c")
    await in_line(waiting, other)
    computing.cancel()
    waiting.cancel()
    scorer.gate.set()
    assert await other == [0.01]
    assert (computing.cancelled(), waiting.cancelled()) == (True, True)
    assert scorer.turns == [["a"], ["c"]]


async def test_an_error_reaches_only_its_caller(queue: ScoringQueue, scorer: GatedScorer) -> None:
    failing = asked(queue, *["x"] * PAIRS_PER_BATCH, "fail", "y")
    await scorer.is_busy()
    other = asked(queue, "b")
    await in_line(failing, other)
    scorer.gate.set()
    with pytest.raises(RerankingUnavailable, match="out of memory"):
        await failing
    assert await other == [0.01]


async def test_a_request_that_would_miss_its_deadline_fails_immediately(
    queue: ScoringQueue, scorer: GatedScorer
) -> None:
    scorer.pause = 0.02
    scorer.gate.set()
    await queue.scores(pairs("how long a pair takes is known from now on"), 60)
    scorer.gate.clear()
    first = asked(queue, *["a"] * 100)
    await in_line(first)
    with pytest.raises(RerankingUnavailable, match="cannot finish within 1 s"):
        await queue.scores(pairs("b"), 1.0)
    patient = asked(queue, "b", seconds=60)
    await in_line(first, patient)
    first.cancel()
    scorer.gate.set()
    assert await patient == [0.01]


async def test_background_work_does_not_reject_users(queue: ScoringQueue, scorer: GatedScorer) -> None:
    scorer.pause = 0.02
    scorer.gate.set()
    await queue.scores(pairs("known"), 60)
    scorer.gate.clear()
    background = asked(queue, *["a"] * 1000, background=True)
    await in_line(background)
    with pytest.raises(RerankingUnavailable, match="cannot finish"):
        await queue.scores(pairs("c"), 10, background=True)
    user = asked(queue, "b", seconds=10)
    await in_line(background, user)
    scorer.gate.set()
    assert await user == [0.01]
    background.cancel()


async def test_a_request_with_an_empty_queue_is_always_tried(queue: ScoringQueue, scorer: GatedScorer) -> None:
    """After a slow phase of the machine the estimate must recover."""
    scorer.pause = 0.05
    scorer.gate.set()
    await queue.scores(pairs("slow"), 60)
    scorer.pause = 0.0
    assert await queue.scores(pairs(*["a"] * 1000), 40) == [0.01] * 1000


async def test_closing_fails_waiting_callers(queue: ScoringQueue, scorer: GatedScorer) -> None:
    computing = asked(queue, "a")
    await scorer.is_busy()
    waiting, background = asked(queue, "b"), asked(queue, "c", background=True)
    await in_line(waiting, background)
    await queue.close()
    for call in (computing, waiting, background, queue.scores(pairs("late"), 60)):
        with pytest.raises(RerankingUnavailable, match="closed"):
            await call


async def test_a_real_model_scores_and_reports_its_identity(tmp_path: Path) -> None:
    async with OnnxReranker.open(write_cross_encoder(tmp_path), timeout=30) as reranker:
        assert len(reranker.fingerprint) == 12
        worse, better = await reranker.scores("what", ["it dislikes", "it likes"])
        assert 0 < worse < 0.5 < better < 1
        with pytest.raises(RerankingUnavailable, match="failed"):
            await reranker.scores("what", ["breaks"])
        assert await reranker.scores("what", ["likes"], background=True) == [better]
    with pytest.raises(RerankingUnavailable, match="closed"):
        await reranker.scores("too late", ["text"])


async def test_a_missing_model_fails_the_startup() -> None:
    with pytest.raises(SettingsError, match="RERANK_MODEL_PATH"):
        async with OnnxReranker.open("no/such/folder", timeout=1):
            pass
