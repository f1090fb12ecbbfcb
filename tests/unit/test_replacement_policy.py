"""The replacement policy: no sequence of events leaves fewer workers than configured."""

from __future__ import annotations

import random

import pytest

from worker_config.rolling_arbiter import Reason, Step, WorkerState, next_step


def worker(age: int, due: Reason | None = None, *, ready: bool = True, replaced: bool = False) -> WorkerState:
    return WorkerState(pid=1000 + age, age=age, ready=ready, replaced=replaced, due=due)


OLD = worker(1, Reason.RELOAD)
WORN = worker(2, Reason.REQUESTS)
FAT = worker(3, Reason.MEMORY)
FINE = worker(4)
STARTING = worker(5, ready=False)
LEAVING = worker(0, Reason.RELOAD, replaced=True)


@pytest.mark.parametrize(
    ("workers", "wanted", "expected"),
    [
        pytest.param([], 2, Step(start=2), id="the start"),
        pytest.param([FINE], 2, Step(start=1), id="one died"),
        pytest.param([FINE, STARTING], 2, Step(), id="its successor starts"),
        pytest.param([FINE, worker(6)], 2, Step(), id="all is well"),
        pytest.param([FINE, WORN], 2, Step(start=1), id="a successor first"),
        pytest.param([FINE, WORN, STARTING], 2, Step(), id="until the successor serves"),
        pytest.param([FINE, WORN, worker(5)], 2, Step(replace=WORN), id="then the worn one leaves"),
        pytest.param([OLD, WORN, FAT, FINE], 3, Step(replace=FAT), id="memory before all"),
        pytest.param([OLD, WORN, FINE], 2, Step(replace=OLD), id="settings before age"),
        pytest.param([LEAVING, WORN, FINE], 2, Step(), id="one at a time for age"),
        pytest.param([LEAVING, FAT, FINE], 2, Step(), id="one at a time for memory"),
        pytest.param([LEAVING, OLD, FINE], 2, Step(start=1), id="new settings wait for no stream"),
        pytest.param([LEAVING, FINE], 2, Step(start=1), id="one that leaves is none of those wanted"),
        pytest.param([FINE, worker(6), worker(7)], 2, Step(replace=FINE), id="one too many: the oldest"),
        pytest.param([OLD, worker(2, Reason.RELOAD)], 1, Step(replace=OLD), id="fewer wanted: no successor"),
    ],
)
def test_the_next_step(workers: list[WorkerState], wanted: int, expected: Step) -> None:
    assert next_step(workers, wanted) == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_there_are_always_enough_serving_workers_and_replacement_settles(seed: int) -> None:
    """Workers become due, start and stop in any order and time, and some are killed."""
    chance, wanted = random.Random(seed), 3
    workers = {age: worker(age) for age in range(wanted)}
    youngest = wanted - 1
    for moment in range(400):
        if moment < 200 and chance.random() < 0.1:
            age = chance.choice(list(workers))
            workers[age] = worker(age, chance.choice(list(Reason)), ready=workers[age].ready)
        if moment < 200 and chance.random() < 0.02:
            del workers[chance.choice(list(workers))]
        step = next_step(list(workers.values()), wanted)
        if step.replace:
            age = step.replace.age
            workers[age] = worker(age, step.replace.due, replaced=True)
            assert serving(workers) >= wanted
        for _ in range(step.start):
            youngest += 1
            workers[youngest] = worker(youngest, ready=False)
        for age, each in list(workers.items()):
            if not each.ready and chance.random() < 0.3:
                workers[age] = worker(age, each.due)
            elif each.replaced and chance.random() < 0.3:
                del workers[age]
    assert [each for each in workers.values() if each.due or each.replaced or not each.ready] == []
    assert len(workers) == wanted


def serving(workers: dict[int, WorkerState]) -> int:
    return sum(each.ready and not each.replaced for each in workers.values())
