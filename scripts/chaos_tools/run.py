"""One run: load, a plan of faults, and a verdict."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.chaos_tools import linearizability
from scripts.chaos_tools.fleet import Fleet, pause, running_fleet
from scripts.chaos_tools.inject import CUTS, INJECTIONS
from scripts.chaos_tools.linearizability import NEVER, Operation
from scripts.chaos_tools.plan import CALM, FILL, Fault
from scripts.chaos_tools.soak_start import SETTLING, renew_labels
from scripts.chaos_tools.traffic import PAUSE, Request, Traffic, running_traffic
from scripts.chaos_tools.watch import Sample, Watch

AFTER_CUT: Final = 3.0
"""Seconds after a fault in which a connection that it cut may still show."""
FORCED: Final = 3.0
"""Seconds for which an override may show after it began."""
BETWEEN: Final = 1.0
"""Fewest seconds between two faults."""
SAMPLE_SECONDS: Final = 2.0
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that was injected: from when to when (s)."""

    fault: Fault
    begin: float
    end: float


@dataclass
class Verdict:
    """What came of a run. A run fails if anything is wrong, lost or hung."""

    seed: int
    seconds: float
    injected: Sequence[Injected]
    requests: Sequence[Request]
    wrong: list[str]
    lost: list[str]
    hung: list[str]
    recoveries: dict[str, list[float]]
    operations: dict[str, int]
    samples: Sequence[Sample]

    @property
    def failed(self) -> bool:
        """Whether an invariant was broken."""
        return bool(self.wrong or self.lost or self.hung)

    @property
    def outcomes(self) -> Counter[str]:
        """Requests by their end."""
        return Counter(request.outcome for request in self.requests)


def run(
    seed: int,
    plan: Sequence[Fault],
    seconds: float,
    say: Report = lambda line: None,
    defect: str | None = None,
    logs: Path | None = None,
    rush: float = 0.0,
) -> Verdict:
    """Runs a plan on a new fleet. Only the main thread may do that: Redis is started again in it.

    `logs`: where the replicas' logs go if it fails. `rush`: seconds of load without pauses before, which are followed
    by those that keys of answers live. No samples are kept of either.
    """
    kinds = frozenset(fault.kind for fault in plan)
    with (
        tempfile.TemporaryDirectory(prefix="ragherd-chaos-") as folder,
        running_fleet(Path(folder), defect, kinds) as fleet,
    ):
        verdict = _driven(fleet, seed, plan, seconds, say, rush)
        if verdict.failed and logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            for log in Path(folder).glob("*.log"):
                shutil.copy(log, logs)
        return verdict


def _driven(fleet: Fleet, seed: int, plan: Sequence[Fault], seconds: float, say: Report, rush: float) -> Verdict:
    traffic, watch = Traffic(seed), Watch(fleet)
    injected: list[Injected] = []
    with running_traffic(traffic, fleet.url), _watching(watch):
        if rush:
            _rush(fleet, traffic, rush)
            watch.samples.clear()
        began = time.monotonic()
        for fault in plan:
            # A fault may take longer than planned. Those that no longer fit are left out.
            at = max(began + fault.at, time.monotonic() + BETWEEN)
            if injected and at + fault.seconds > began + seconds - CALM:
                continue
            pause(at - time.monotonic())
            at = time.monotonic()
            INJECTIONS[fault.kind](fleet, fault)
            injected.append(Injected(fault, at, time.monotonic()))
            if fault.kind == "redis emptied":
                _note_emptied(traffic, injected[-1])
            say(f"seed {seed}: {at - began:5.1f} s  {fault.kind}, {injected[-1].end - at:.1f} s")
        pause(max(CALM, began + seconds - time.monotonic()))
    verdict = judged(seed, began, injected, traffic, watch)
    if verdict.lost:
        verdict.lost += [f"load balancer at {at - began:.1f} s: {why}" for at, why in fleet.balancer.failures]
    return verdict


def _rush(fleet: Fleet, traffic: Traffic, seconds: float) -> None:
    for worker in (one for replica in fleet.replicas for one in replica.workers()):
        os.kill(worker, FILL)
    traffic.pause = 0.0
    with fleet.client() as client:
        renew_labels(client, seconds)
    traffic.pause = PAUSE
    pause(SETTLING)


@contextmanager
def _watching(watch: Watch) -> Iterator[None]:
    done = threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            watch.look()

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(look)
        try:
            yield
        finally:
            done.set()
        looking.result()


def _note_emptied(traffic: Traffic, injected: Injected) -> None:
    """FLUSHALL forgets overrides and documents."""
    begin, end = injected.begin, injected.end
    traffic.overrides.append(Operation("forced", "write", None, begin, end))
    traffic.documents += [Operation(tenant, "write", None, begin, end) for tenant in traffic.versions]


def judged(seed: int, began: float, injected: Sequence[Injected], traffic: Traffic, watch: Watch) -> Verdict:
    """Judges what clients and the watch have seen since `began`."""
    wrong = [*traffic.wrong, *dict.fromkeys(watch.wrong)]
    histories = {
        "answers": (with_unseen_stores(traffic.answers), linearizability.cache),
        "documents": (traffic.documents, linearizability.register),
        "overrides": (traffic.overrides, linearizability.register),
    }
    for name, (history, specification) in histories.items():
        wrong += [f"{name}: no order explains {key}" for key in linearizability.faults(history, specification)]
    lost = [one for one in traffic.requests if one.outcome == "lost" or _is_cut_without_reason(one, injected)]
    hung = [one for one in traffic.requests if one.outcome == "hung"]
    return Verdict(
        seed,
        time.monotonic() - began,
        injected,
        traffic.requests,
        wrong,
        [f"{one.end - began:.1f} s, {one.kind}: {one.outcome} {one.detail}" for one in lost],
        [f"{one.end - began:.1f} s, {one.kind}: {one.end - one.begin:.1f} s" for one in hung],
        recoveries(injected, _unforced(traffic.requests, traffic.overrides)),
        {name: len(history) for name, (history, _) in histories.items()},
        watch.samples,
    )


def with_unseen_stores(history: Sequence[Operation]) -> list[Operation]:
    """Adds the stores of answers that were found, but whose first caller did not get them."""
    stored = {(one.key, one.value) for one in history if one.name == "store"}
    found = dict.fromkeys((one.key, one.value) for one in history if one.name == "find")
    unseen = [(key, value) for key, value in found if (key, value) not in stored]
    return [*history, *(Operation(key, "store", value, 0.0, NEVER) for key, value in unseen)]


def _is_cut_without_reason(request: Request, injected: Sequence[Injected]) -> bool:
    if request.outcome != "cut":
        return False
    reasons = (one for one in injected if one.fault.kind in CUTS)
    return not any(one.begin <= request.end and request.begin <= one.end + AFTER_CUT for one in reasons)


def _unforced(requests: Sequence[Request], overrides: Sequence[Operation]) -> list[Request]:
    """Returns the requests during which the breaker cannot have been forced open."""
    opened = sorted(one.begin for one in overrides if one.name == "write" and one.value == "OPEN")
    return [one for one in requests if _between(opened, one.begin - FORCED, one.end) == 0]


def _between(times: Sequence[float], low: float, high: float) -> int:
    return bisect_right(times, high) - bisect_left(times, low)


def recoveries(injected: Sequence[Injected], requests: Sequence[Request]) -> dict[str, list[float]]:
    """Returns by kind, for each fault, the seconds from its end to the last request that failed before the next one."""
    found: dict[str, list[float]] = {}
    for number, one in enumerate(injected):
        until = injected[number + 1].begin if number + 1 < len(injected) else float("inf")
        failed = [request.end for request in requests if request.outcome != "ok" and one.end < request.end < until]
        found.setdefault(one.fault.kind, []).append(max(failed, default=one.end) - one.end)
    return found
