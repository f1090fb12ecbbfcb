"""The rollout of docs/rollout.md on a fleet of processes: a good release, then a release and settings that the criteria
of `ragherd report` catch, and the way back from each.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from redis import Redis

from api.embedded.redis_server import embedded_redis
from api.redis_store.acl import acl_line
from tests.stub_ollama import StubProcess, stub_process
from tests.support.rollout_fleet import ROOT, Patch, RolloutFleet, release, rollout_fleet
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

SCENARIO: Final = ROOT / "k8s" / "overlays" / "staging" / "settings.env"
KEY: Final = "0123456789abcdef02"
REQUESTS: Final = 200
SOME: Final = 10
LABELS: Final = 26
"""Answers compared with fresh ones, all the same: the interval then ends at 17 %."""
LOAD: Final = ("--requests", str(REQUESTS), "--topics", "40", "--concurrency", "6", "--shared-cache")
SEARCH: Final = "        if condenser is not None:\n"
ERRORS: Final[tuple[Patch, ...]] = (
    (
        "api/query/service.py",
        SEARCH,
        f"        if random.random() < 0.5:\n            raise RuntimeError\n{SEARCH}",
    ),
)
"""Half of the questions that a worker sees for the first time get 500. Repeated ones take the short way."""
CACHE: Final = "api/redis_store/stores/cache/answers.py"
BROKEN_CACHE: Final[tuple[Patch, ...]] = (
    (CACHE, "        if values[0] is None:\n            return None\n", "        if True:\n            return None\n"),
    (CACHE, "        answer = self._decoded(key, values)\n", "        answer = None\n"),
    (CACHE, "        return [CacheMatch(answer, ", "        return [] and [CacheMatch(answer, "),
    (CACHE, '"answer": answer.answer,', '"answer": answer.answer[::-1],'),
)
"""It finds nothing in the cache, and stores answers backwards over the good ones."""


@pytest.fixture
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        stub.behaviour(delay=0.1, path="/api/chat", answer="Open the settings and choose a new one.")
        yield stub


@pytest.fixture
def durable() -> Iterator[tuple[str, Redis]]:
    """Runs a Redis as staging needs it. Returns the URL of the service's user, and a client with all rights."""
    least = acl_line("main", user="ragherd", prefix="rag:", password="secret").split()
    arguments = ("--maxmemory", "256mb", "--maxmemory-policy", "volatile-lfu", "--user", *least[1:])
    with embedded_redis(arguments=arguments) as server, Redis.from_url(server.url) as client:
        yield f"redis://ragherd:secret@{server.url.removeprefix('redis://')}", client


@pytest.fixture
def fleet(ollama: StubProcess, durable: tuple[str, Redis], tmp_path: Path) -> Iterator[RolloutFleet]:
    """Returns a fleet with the settings of the staging scenario, without replicas."""
    settings = {
        "REDIS_URL": durable[0],
        "OLLAMA_BASE_URL": ollama.base_url,
        "EMBEDDER": "ollama",
        "OLLAMA_WARM_UP": "false",
        "API_KEYS": "acme=0123456789abcdef01",
        "ADMIN_KEYS": KEY,
        "RAGHERD_API_KEY": KEY,
        "GRACEFUL_TIMEOUT": "10",
        "SEMANTIC_CACHE_SHADOW_RATE": "1",
        "SEMANTIC_CACHE_SHADOW_PER_MINUTE": "10000",
        "SEMANTIC_CACHE_MAX_ERROR_RATE": "0.2",  # so that few labels decide
    }
    shutil.copy(SCENARIO, tmp_path / ".env")
    with rollout_fleet(tmp_path, settings) as fleet:
        yield fleet


class Watch:
    """What the fleet did since the start of a phase. A phase of this test takes seconds, a point of history a minute:
    so a new phase begins with an empty history.
    """

    def __init__(self, fleet: RolloutFleet, redis: Redis) -> None:
        self._fleet = fleet
        self._redis = redis
        self._began = ""

    def begin(self) -> None:
        """Begins a phase."""
        self._redis.delete(*self._redis.scan_iter("rag:history:*"))
        self._began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:00Z")

    def load(self, code: int = 0) -> Any:
        """Sends the load, and waits until the history has it."""
        found = self._fleet.document("load-test", *LOAD, code=code)
        wait_until(lambda: self._counted() >= REQUESTS)
        return found

    def report(self, code: int = 0) -> tuple[str, set[str]]:
        """Returns the recommendation for the phase, and the names of the criteria that it misses."""
        found = self._fleet.document("report", "--from", self._began, "--at-least", "1s", code=code)
        missed = {one["name"] for one in found["criteria"] if one["met"] is False}
        return found["recommendation"]["verdict"], missed

    def wait_for_labels(self) -> None:
        """Waits until the error of the cache is known well enough for a decision."""
        wait_until(lambda: self._get("/api/semantic-cache/quality")["false_hit_rate"]["samples"] >= LABELS, timeout=30)

    def _counted(self) -> int:
        points = self._get("/api/history", **{"from": self._began})["points"]
        return sum(sum(one.get("queries", {}).values()) for one in points)

    def _get(self, path: str, **params: str) -> Any:
        return httpx.get(f"{self._fleet.balancer.url}{path}", params=params).raise_for_status().json()


@pytest.fixture
def watch(fleet: RolloutFleet, durable: tuple[str, Redis]) -> Watch:
    return Watch(fleet, durable[1])


# -- A release, and the way back ---------------------------------------------------------------------------------------


def test_a_good_release_goes_and_a_bad_one_comes_back(fleet: RolloutFleet, watch: Watch, tmp_path: Path) -> None:
    good = release(tmp_path / "0.1.0", "0.1.0")
    fleet.current = good
    assert fleet.document("preflight", "--scenario", "staging")["ok"]
    fleet.roll(good)
    assert fleet.document("smoke")["ok"]
    watch.begin()
    watch.load()

    better = release(tmp_path / "0.2.0", "0.2.0")
    with requests_without_a_failure(fleet):
        fleet.roll(better, surge=1)
    assert fleet.versions() == ["0.2.0", "0.2.0"]
    watch.begin()
    watch.load()
    watch.wait_for_labels()
    assert watch.report() == ("go", set())

    fleet.roll(release(tmp_path / "0.3.0", "0.3.0", ERRORS))
    watch.begin()
    assert watch.load(code=1)["failed"] > REQUESTS / 10
    assert watch.report(code=1) == ("roll back", {"error_rate"})
    fleet.roll(better)
    watch.begin()
    watch.load()
    assert watch.report() == ("go", set())


def test_a_broken_cache_is_caught_and_its_answers_go(fleet: RolloutFleet, watch: Watch, tmp_path: Path) -> None:
    good = release(tmp_path / "0.1.0", "0.1.0")
    fleet.roll(good, count=1)
    watch.begin()
    watch.load()
    saved = str(tmp_path / "before.backup")
    answers = fleet.document("backup", saved)["answers"]

    fleet.roll(release(tmp_path / "0.2.0", "0.2.0", BROKEN_CACHE), count=1)
    watch.begin()
    watch.load()
    verdict, missed = watch.report(code=1)
    assert verdict != "go"
    assert missed >= {"hit_rate", "cost_saved"}

    fleet.roll(good, count=1)
    broken = fleet.document("invalidate", "--release", "0.2.0", "--dry-run")["matched"]
    assert broken >= answers
    assert restored(fleet, saved, "--dry-run") == restored(fleet, saved) == (broken, answers)
    assert fleet.document("invalidate", "--release", "0.2.0", "--dry-run")["matched"] == 0
    watch.begin()
    assert watch.load()["hit_rate"] == 1.0
    assert watch.report()[1] == set()


def test_bad_settings_are_caught_and_the_old_file_takes_them_back(
    fleet: RolloutFleet, watch: Watch, tmp_path: Path
) -> None:
    fleet.roll(release(tmp_path / "0.1.0", "0.1.0"), count=1)
    with (tmp_path / ".env").open("a") as settings:
        settings.write("SEMANTIC_CACHE_ENABLED=false\n")
    with requests_without_a_failure(fleet):
        fleet.reload()
    watch.begin()
    watch.load()
    assert "cost_saved" in watch.report(code=1)[1]
    shutil.copy(SCENARIO, tmp_path / ".env")
    fleet.reload()
    watch.begin()
    watch.load()
    assert watch.report()[1] == set()


def restored(fleet: RolloutFleet, file: str, *options: str) -> tuple[int, int]:
    """Puts the cache back. Returns how many newer answers were deleted, and how many were restored."""
    found = fleet.document("restore", file, "--cache", "--rewind", *options)
    return found["newer_deleted"], found["answers"]["restored"]


@contextmanager
def requests_without_a_failure(fleet: RolloutFleet) -> Iterator[None]:
    """Asks questions all the while, and waits for some answers before and after. Each must get 200."""
    over, statuses = threading.Event(), list[int | str]()

    def ask() -> None:
        with httpx.Client(base_url=fleet.balancer.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            while not over.is_set():
                try:
                    question = {"question": f"What is {len(statuses) % 20}?"}
                    statuses.append(client.post("/query", json=question).status_code)
                except httpx.TransportError as error:
                    statuses.append(repr(error))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        wait_until(lambda: len(statuses) >= SOME, timeout=20)
        yield
        answered = len(statuses)
        wait_until(lambda: len(statuses) >= answered + SOME, timeout=20)
    finally:
        over.set()
        for thread in asking:
            thread.join(20)
    assert set(statuses) == {200}
