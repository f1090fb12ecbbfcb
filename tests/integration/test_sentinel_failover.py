"""The primary is killed under load: no question fails, and cache, index and documents survive.

`pytest -s tests/integration/test_sentinel_failover.py` prints the figures.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.redis_sentinel import Failover, sentinel_failover
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUESTIONS = [
    "How do I reset my password?",
    "What does the warranty cover?",
    "When does the office open?",
    "Where is the nearest branch?",
]
PARAPHRASE = "My password, how do I reset?"
DOCUMENT = {"title": "Opening hours", "text": "The office opens at nine and closes at five, on weekdays."}
CALLERS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """Times in seconds: when it was asked and how long it took. `failed` is the error, if any."""

    asked: float
    took: float
    cache: str


@dataclass
class Load:
    """Clients that repeat the same few questions until stopped."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _callers: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._callers = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(CALLERS)]
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.join()

    def _ask_on(self, first: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as client:
            for question in itertools.islice(itertools.cycle(QUESTIONS), first, None):
                if self._stop.is_set():
                    return
                asked = time.monotonic()
                cache = self._ask(client, question)
                self.answers.append(Answer(asked, time.monotonic() - asked, cache))

    def _ask(self, client: httpx.Client, question: str) -> str:
        try:
            response = client.post("/query", json={"question": question})
        except httpx.HTTPError as error:
            return f"failed: {type(error).__name__}"
        return response.json()["cache"]["status"] if response.is_success else f"failed: {response.status_code}"

    def since(self, moment: float) -> list[Answer]:
        return [answer for answer in self.answers if answer.asked >= moment]


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[Failover]:
    with sentinel_failover(tmp_path) as running:
        yield running


@pytest.fixture
def service(failover: Failover, ollama: StubProcess, tmp_path: Path) -> Iterator[Gunicorn]:
    """Two workers."""
    with gunicorns("api.asgi:app", tmp_path) as begin:
        patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
        shared = {"REDIS_URL": failover.url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2", **patient}
        yield begin(METRICS_PORT=free_port(), **shared)


def test_nobody_s_question_fails_and_what_was_known_is_known(service: Gunicorn, failover: Failover) -> None:
    client = service.client
    for question in QUESTIONS:
        client.post(f"{service.url()}/query", json={"question": question}).raise_for_status()
    stored = client.post(f"{service.url()}/documents", json=DOCUMENT).raise_for_status().json()
    before = failover.primary_port()
    with redis.Redis(port=before) as primary:
        primary.wait(1, 5_000)
    with Load(service.url()) as load:
        wait_until(lambda: [answer for answer in list(load.answers) if answer.cache == "hit"][50:], timeout=30)
        killed = time.monotonic()
        failover.primary.kill()
        wait_until(lambda: failover.primary_port() != before, timeout=60)  # their votes may split, twice
        promoted = time.monotonic()
        wait_until(lambda: _hits_on_both(service), timeout=30)
        resumed = time.monotonic()
        wait_until(lambda: len(load.since(resumed)) > 50, timeout=30)
    report(load, killed, promoted)

    assert [answer for answer in load.answers if answer.cache.startswith("failed")] == []
    assert Counter(answer.cache for answer in load.since(resumed)).keys() == {"hit"}
    paraphrased = client.post(f"{service.url()}/query", json={"question": PARAPHRASE}).json()["cache"]
    assert (paraphrased["status"], paraphrased["kind"]) == ("hit", "semantic")
    assert client.get(f"{service.url()}/documents/{stored['id']}").json()["status"] == "ready"
    assert client.get(f"{service.url()}/api/circuit-breaker/metrics").json()["store"] == "shared"
    with redis.Redis(port=failover.primary_port(), decode_responses=True) as after:
        assert len(after.execute_command("FT._LIST")) == 2
        errors: Any = after.info("errorstats")
        assert errors["errorstat_NOSCRIPT"]["count"] > 0  # scripts are not replicated: they were loaded again


def _hits_on_both(service: Gunicorn) -> bool:
    """Returns whether each worker answers from the cache."""
    served: dict[str, str] = {}
    for _ in range(8):
        response = service.client.post(f"{service.url()}/query", json={"question": QUESTIONS[0]})
        served[response.headers["X-Worker"]] = response.json()["cache"]["status"]
    return len(served) == 2 and set(served.values()) == {"hit"}


def report(load: Load, killed: float, promoted: float) -> None:
    """Prints the figures."""
    after = load.since(killed)
    without = [answer.asked for answer in after if answer.cache != "hit"]
    counts = Counter(answer.cache for answer in load.answers)
    print(
        f"\nfailover: {len(load.answers)} requests, {dict(counts)}; a new primary after {promoted - killed:.1f} s, "
        f"the last answer without the cache asked {max(without, default=killed) - killed:.1f} s after the kill; "
        f"slowest answer {max(answer.took for answer in after):.2f} s"
    )
