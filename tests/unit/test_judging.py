"""The re-ranker's queue: order, deadlines, users before background work. Most tests use a score function that waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.embedders.reranker import PAIRS_PER_BATCH, OnnxReranker, Pair, ScoringQueue
from api.errors import RerankingUnavailable, SettingsError
from tests.support.small_cross_encoder import write_cross_encoder


class GatedJudge:
    """A text's verdict is its length over 100, given only after `gate` is set; `turns` are the texts it was given."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = []
        self.gate = threading.Event()
        self.pause = 0.0
        self._loop = asyncio.get_running_loop()
        self._busy = asyncio.Event()

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        self.turns.append([pair.text for pair in pairs])
        self._loop.call_soon_threadsafe(self._busy.set)
        assert self.gate.wait(10)
        time.sleep(self.pause)
        if any(pair.text == "fail" for pair in pairs):
            raise RuntimeError("out of memory")
        return [len(pair.text) / 100 for pair in pairs]

    async def is_busy(self) -> None:
        """Returns once the thread is in its first turn."""
        await asyncio.wait_for(self._busy.wait(), 10)


@pytest.fixture
async def judge() -> AsyncIterator[GatedJudge]:
    judge = GatedJudge()
    yield judge
    judge.gate.set()


@pytest.fixture
async def line(judge: GatedJudge) -> AsyncIterator[ScoringQueue]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        line = ScoringQueue(judge, thread)
        yield line
        judge.gate.set()
        await line.close()


def pairs(*texts: str) -> list[Pair]:
    return [Pair("question", text) for text in texts]


def asked(line: ScoringQueue, *texts: str, seconds: float = 60, background: bool = False) -> asyncio.Task[list[float]]:
    return asyncio.create_task(line.scores(pairs(*texts), seconds, background=background))


async def in_line(*calls: asyncio.Task[list[float]]) -> None:
    """Lets tasks just made run until they wait."""
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)


async def test_verdicts_come_in_the_order_of_the_texts_a_slice_at_a_time(line: ScoringQueue, judge: GatedJudge) -> None:
    judge.gate.set()
    texts = ["x" * n for n in range(1, PAIRS_PER_BATCH + 3)]
    assert await line.scores(pairs(*texts), 60) == [n / 100 for n in range(1, PAIRS_PER_BATCH + 3)]
    assert judge.turns == [texts[:PAIRS_PER_BATCH], texts[PAIRS_PER_BATCH:]]
    assert await line.scores([], 60) == []


async def test_who_comes_first_is_ready_first(line: ScoringQueue, judge: GatedJudge) -> None:
    """None waits for a part of somebody else's: shared, all would be late."""
    first = asked(line, *(f"a{n}" for n in range(PAIRS_PER_BATCH + 1)))
    await judge.is_busy()
    second = asked(line, "b")
    await in_line(first, second)
    judge.gate.set()
    await asyncio.gather(first, second)
    assert [turn[0] for turn in judge.turns] == ["a0", f"a{PAIRS_PER_BATCH}", "b"]


async def test_users_go_before_background_work(line: ScoringQueue, judge: GatedJudge) -> None:
    background = asked(line, *(f"a{n}" for n in range(2 * PAIRS_PER_BATCH)), background=True)
    await judge.is_busy()
    user = asked(line, "b")
    await in_line(background, user)
    judge.gate.set()
    await asyncio.gather(background, user)
    assert [turn[0] for turn in judge.turns] == ["a0", "b", f"a{PAIRS_PER_BATCH}"]


async def test_past_the_deadline_the_rest_is_not_judged(line: ScoringQueue, judge: GatedJudge) -> None:
    with pytest.raises(RerankingUnavailable, match=r"longer than 0\.01 s"):
        await line.scores(pairs(*(f"a{n}" for n in range(2 * PAIRS_PER_BATCH))), 0.01)
    judge.gate.set()
    assert await line.scores(pairs("b"), 60) == [0.01]
    assert [turn[0] for turn in judge.turns] == ["a0", "b"]


async def test_a_cancelled_caller_harms_no_other(line: ScoringQueue, judge: GatedJudge) -> None:
    computing = asked(line, "a")
    await judge.is_busy()
    waiting, other = asked(line, "b"), asked(line, "c")
    await in_line(waiting, other)
    computing.cancel()
    waiting.cancel()
    judge.gate.set()
    assert await other == [0.01]
    assert (computing.cancelled(), waiting.cancelled()) == (True, True)
    assert judge.turns == [["a"], ["c"]]


async def test_a_fault_is_told_to_its_caller_only(line: ScoringQueue, judge: GatedJudge) -> None:
    failing = asked(line, *["x"] * PAIRS_PER_BATCH, "fail", "y")
    await judge.is_busy()
    other = asked(line, "b")
    await in_line(failing, other)
    judge.gate.set()
    with pytest.raises(RerankingUnavailable, match="out of memory"):
        await failing
    assert await other == [0.01]


async def test_who_would_not_be_ready_in_time_is_told_at_once(line: ScoringQueue, judge: GatedJudge) -> None:
    judge.pause = 0.02
    judge.gate.set()
    await line.scores(pairs("how long a pair takes is known from now on"), 60)
    judge.gate.clear()
    first = asked(line, *["a"] * 100)
    await in_line(first)
    with pytest.raises(RerankingUnavailable, match="cannot finish within 1 s"):
        await line.scores(pairs("b"), 1.0)
    patient = asked(line, "b", seconds=60)
    await in_line(first, patient)
    first.cancel()
    judge.gate.set()
    assert await patient == [0.01]


async def test_background_work_does_not_turn_a_user_away(line: ScoringQueue, judge: GatedJudge) -> None:
    judge.pause = 0.02
    judge.gate.set()
    await line.scores(pairs("known"), 60)
    judge.gate.clear()
    background = asked(line, *["a"] * 1000, background=True)
    await in_line(background)
    with pytest.raises(RerankingUnavailable, match="cannot finish"):
        await line.scores(pairs("c"), 10, background=True)
    user = asked(line, "b", seconds=10)
    await in_line(background, user)
    judge.gate.set()
    assert await user == [0.01]
    background.cancel()


async def test_with_nobody_ahead_it_is_always_tried(line: ScoringQueue, judge: GatedJudge) -> None:
    """A line that was slow once, because the machine was, must find out that it no longer is."""
    judge.pause = 0.05
    judge.gate.set()
    await line.scores(pairs("slow"), 60)
    judge.pause = 0.0
    assert await line.scores(pairs(*["a"] * 1000), 40) == [0.01] * 1000


async def test_closing_fails_who_still_waits(line: ScoringQueue, judge: GatedJudge) -> None:
    computing = asked(line, "a")
    await judge.is_busy()
    waiting, background = asked(line, "b"), asked(line, "c", background=True)
    await in_line(waiting, background)
    await line.close()
    for call in (computing, waiting, background, line.scores(pairs("late"), 60)):
        with pytest.raises(RerankingUnavailable, match="closed"):
            await call


async def test_a_model_judges_and_says_which_it_is(tmp_path: Path) -> None:
    async with OnnxReranker.open(write_cross_encoder(tmp_path), timeout=30) as reranker:
        assert len(reranker.fingerprint) == 12
        worse, better = await reranker.scores("what", ["it dislikes", "it likes"])
        assert 0 < worse < 0.5 < better < 1
        with pytest.raises(RerankingUnavailable, match="failed"):
            await reranker.scores("what", ["breaks"])
        assert await reranker.scores("what", ["likes"], background=True) == [better]
    with pytest.raises(RerankingUnavailable, match="closed"):
        await reranker.scores("too late", ["text"])


async def test_a_model_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="RERANK_MODEL_PATH"):
        async with OnnxReranker.open("no/such/folder", timeout=1):
            pass
