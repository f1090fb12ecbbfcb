"""A seed always gives the same plan, a failing plan is made as small as it can be, and histories are completed."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from scripts.chaos_tools import __main__ as command
from scripts.chaos_tools.fleet import DEFECTS, MOVED_CLOCK, clock_library, moved_by
from scripts.chaos_tools.inject import CUTS, INJECTIONS
from scripts.chaos_tools.linearizability import NEVER, Operation, cache, is_linearizable
from scripts.chaos_tools.plan import (
    CALM,
    CLOCK,
    FAILOVER,
    FIRST,
    ISOLATED,
    KINDS,
    OFTEN,
    Fault,
    as_json,
    from_json,
    kinds_of,
    made,
    minimized,
)
from scripts.chaos_tools.report import slopes
from scripts.chaos_tools.run import Injected, Verdict, judged, recoveries, with_unseen_stores
from scripts.chaos_tools.traffic import (
    Client,
    Request,
    Traffic,
    asks,
    asks_documents,
    asks_exactly,
    reads_breaker,
    streams,
    writes_documents,
)
from scripts.chaos_tools.watch import Sample, Watch
from tests.support.needed_tools import not_here
from tests.support.rollout_fleet import ROOT


def test_a_seed_gives_the_same_plan_each_time_and_another_seed_another() -> None:
    assert made(7, 60) == made(7, 60) != made(8, 60)
    assert from_json(as_json(made(7, 60))) == made(7, 60)


def test_a_plan_fits_its_time_and_uses_every_kind() -> None:
    plan = made(3, 600)
    assert {fault.kind for fault in plan} == set(KINDS)
    assert plan[0].at == FIRST
    assert plan[-1].at + plan[-1].seconds <= 600 - CALM
    for one, following in pairwise(plan):
        assert following.at > one.at + one.seconds


def test_every_kind_can_be_injected() -> None:
    assert set(INJECTIONS) == set(KINDS)
    assert set(KINDS) > CUTS | ISOLATED
    assert set(KINDS) - set(command.possible(KINDS)) <= ISOLATED | {CLOCK}


def test_a_fleet_with_sentinels_has_no_other_faults_of_redis() -> None:
    single, with_sentinels = kinds_of(1, KINDS), kinds_of(OFTEN, KINDS)
    assert set(single) == set(KINDS) - {FAILOVER}
    assert [kind for kind in with_sentinels if kind.startswith("redis ")] == [FAILOVER]
    assert set(with_sentinels) | set(single) == set(KINDS)
    assert kinds_of(1, [FAILOVER, CLOCK]) == [CLOCK, FAILOVER]


def test_a_plan_is_minimized_to_the_faults_that_it_needs() -> None:
    plan = made(1, 120)
    needed = {plan[2], plan[-1]}
    tried: list[int] = []

    def fails(part: Sequence[Fault]) -> bool:
        tried.append(len(part))
        return needed <= set(part)

    assert minimized(plan, fails) == [plan[2], plan[-1]]
    assert len(tried) < 2 * len(plan)


def test_a_plan_that_needs_all_of_it_stays_as_it_is() -> None:
    plan = made(1, 30)
    assert minimized(plan, lambda part: len(part) == len(plan)) == plan


def test_an_answer_that_only_others_have_seen_was_stored_at_some_time() -> None:
    found = Operation("question", "find", 5, 3.0, 4.0)
    deleted = Operation("question", "delete", None, 5.0, 6.0)
    back = Operation("question", "find", 5, 7.0, 8.0)
    assert is_linearizable(with_unseen_stores([found, deleted]), cache)
    assert not is_linearizable(with_unseen_stores([found, deleted, back]), cache)
    assert with_unseen_stores([found])[-1].end == NEVER


def test_recovery_lasts_until_the_last_failure_before_the_next_fault() -> None:
    one, following = (Injected(Fault("redis killed", at, 1.0, 0), at, at + 1) for at in (10.0, 20.0))
    ends = [(10.5, "refused"), (12.0, "refused"), (12.5, "ok"), (13.0, "cut"), (14.0, "ok"), (20.5, "refused")]
    requests = [Request("/query", end - 0.1, end, outcome, "") for end, outcome in ends]
    assert recoveries([one, following], requests) == {"redis killed": [2.0, 0.0]}


def test_a_slope_has_an_interval_that_contains_what_is_flat() -> None:
    noise = [0, 3, -3, 1, -1, 2, -2, 0] * 4
    samples = [Sample(at * 60.0, 1 << 20, 50 + noise[at], 1 << 20, 100 + at, 30) for at in range(32)]
    memory, descriptors, tasks, _, keys, served = slopes(samples)
    for flat in (memory, tasks, served):
        assert flat.low == flat.value == flat.high == 0
    assert descriptors.low < 0 < descriptors.high
    assert 59 < keys.low <= keys.value <= keys.high < 61


def test_samples_that_hardly_change_from_one_to_the_next_do_not_narrow_the_interval() -> None:
    waves = [math.sin(at / 40) for at in range(900)]  # a period of 8 minutes
    samples = [Sample(at * 2.0, 0, 50 + waves[at], 0, 0, 0) for at in range(900)]
    descriptors = slopes(samples)[1]
    assert descriptors.low < 0 < descriptors.high


@pytest.mark.parametrize(
    ("client", "reply", "fault"),
    [
        (asks, {"answer": "echo: What is the code of shelf 4711 in birch?"}, "asked about shelf"),
        (
            asks_exactly,
            {"answer": "echo: Tell me the code of shelf 1 in elm.", "cache": {"status": "hit"}},
            "asked about shelf",
        ),
        (asks_documents, {"answer": "The handbook of elm has version 9 [1]."}, "from the document of elm"),
        (asks_documents, {"answer": "The handbook of {tenant} has version 2 [1]."}, "from version 2 after 3"),
        (reads_breaker, {"probes_in_flight": 3, "store": "shared", "forced": None}, "3 probes at a time"),
    ],
)
async def test_a_wrong_reply_is_noticed(client: Client, reply: dict[str, Any], fault: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        tenant = request.headers["authorization"].rpartition("-")[2]
        if "answer" in reply:
            return httpx.Response(200, json={**reply, "answer": reply["answer"].replace("{tenant}", tenant)})
        return httpx.Response(200, json=reply)

    traffic = Traffic(1, confirmed={"birch": 3, "cedar": 3})
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://fleet") as service:
        await client(traffic, service)
    assert fault in "".join(traffic.wrong)


async def test_a_stream_without_an_end_is_lost_and_an_unknown_status_too() -> None:
    replies = iter([httpx.Response(200, text='event: token\ndata: {"text": "echo"}\n\n'), httpx.Response(500)])
    traffic = Traffic(1)
    transport = httpx.MockTransport(lambda request: next(replies))
    async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as service:
        await streams(traffic, service)
        await streams(traffic, service)
    assert [request.outcome for request in traffic.requests] == ["lost", "lost"]


@pytest.mark.parametrize("lost_at", ["POST", "GET"])
async def test_only_what_was_stored_may_be_not_found(lost_at: str) -> None:
    """404 to an upload would say that the path is wrong."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == lost_at:
            return httpx.Response(404)
        return httpx.Response(202, json={"id": "1", "revision": 1, "status": "processing"})

    traffic = Traffic(1)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://fleet") as service:
        await writes_documents(traffic, service)
    assert traffic.requests[-1].outcome == {"POST": "lost", "GET": "refused"}[lost_at]


def test_a_connection_may_be_cut_only_by_a_fault_that_kills() -> None:
    killed = Injected(Fault("worker killed", 10.0, 1.0, 0), 10.0, 11.0)
    emptied = Injected(Fault("redis emptied", 20.0, 1.0, 0), 20.0, 21.0)
    traffic = Traffic(1, [Request("/query", at, at + 0.5, "cut", "") for at in (9.8, 20.1)])
    verdict = judged(1, 0.0, [killed, emptied], traffic, Watch(cast(Any, None)))
    assert verdict.failed
    assert verdict.lost == ["20.6 s, /query: cut "]


def _verdict(seed: int, plan: Sequence[Fault], wrong: list[str]) -> Verdict:
    injected = [Injected(fault, fault.at, fault.at + fault.seconds) for fault in plan]
    return Verdict(seed, 30.0, injected, [], wrong, [], [], {}, {}, [])


def test_a_failing_seed_is_minimized_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet is not real here: docs/chaos.md has a run of the command on a real one with a defect."""
    runs: list[list[str]] = []

    def run(
        seed: int, plan: Sequence[Fault], seconds: float, say: Any = None, defect: str | None = None, *_: object
    ) -> Verdict:
        runs.append([fault.kind for fault in plan])
        is_found = defect is not None and {"ollama hangs", "redis slow"} <= set(runs[-1])
        return _verdict(seed, plan, ["3 probes at a time; 2 are permitted"] if is_found else [])

    def ended(*options: str) -> object:
        with pytest.raises(SystemExit) as end:
            command.main(["--seconds", "120", "--out", str(tmp_path), *options])
        return end.value.code

    monkeypatch.setattr(command, "run", run)
    assert ended("--seeds", "1", "--defect", "flights without a lifetime")
    replay = ("--plan", str(tmp_path / "plan.json"))
    assert ended(*replay, "--no-minimize", "--defect", "flights without a lifetime")
    assert sorted(runs[-1]) == ["ollama hangs", "redis slow"]
    assert "3 probes at a time" in (tmp_path / "report.md").read_text()
    assert not ended(*replay)
    assert runs[-1] == runs[-2]


def test_defects_are_in_the_source() -> None:
    for file, old, new in DEFECTS.values():
        assert (ROOT / file).read_text().count(old) == 1
        assert new != old


def test_a_process_with_a_moved_clock_sleeps_as_long_as_it_wants(tmp_path: Path) -> None:
    if clock_library() is None:
        not_here("libfaketime is not installed (as root: scripts/install-test-tools)")
    clock = tmp_path / "clock"
    clock.write_text("+86400")
    told = "import time; began = time.monotonic(); time.sleep(0.1); print(time.time(), time.monotonic() - began)"
    environment = {**moved_by(clock), "PYTHONPATH": str(MOVED_CLOCK)}
    run = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    now, slept = map(float, run.stdout.split())
    assert now - time.time() == pytest.approx(86_400, abs=60)
    assert 0.1 <= slept < 1
