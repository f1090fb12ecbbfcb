"""Changing documents with real workers of two replicas: cached answers never become stale."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

HOLIDAY, CANTEEN = "Who approves my holiday?", "On which floor is the canteen?"
ONLY_CACHED = {"Cache-Control": "only-if-cached", "Connection": "close"}
WORKERS = 4


@pytest.fixture
def replicas(redis_url: str, tmp_path: Path) -> Iterator[list[Gunicorn]]:
    """Two replicas of two workers each, two documents, and an answer from each."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with stub_process() as stub, gunicorns("api.asgi:app", tmp_path) as begin:
        fleet = [begin(**settings_of(redis_url, stub)) for _ in range(2)]
        store(fleet[0], "holiday", "The team lead approves my holiday.")
        store(fleet[0], "canteen", "The canteen is on the third floor.")
        for question in (HOLIDAY, CANTEEN):
            assert fleet[1].client.post(f"{fleet[1].url()}/query", json={"question": question}).json()["sources"]
        yield fleet


def settings_of(redis_url: str, stub: StubProcess) -> dict[str, str]:
    patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
    return {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": stub.base_url, "WORKERS": "2", **patient}


def store(gunicorn: Gunicorn, source: str, text: str) -> None:
    response = gunicorn.client.post(
        f"{gunicorn.url()}/documents", json={"title": source, "text": text, "source": source}, timeout=20
    )
    assert response.status_code == 201, response.text


@dataclass(frozen=True)
class Seen:
    """What a worker said to a question that only the cache may answer."""

    question: str
    worker: str
    begun: float
    status: int


class Watch:
    """Asks both replicas for both questions, all the time, until it is left."""

    def __init__(self, fleet: list[Gunicorn]) -> None:
        self.seen: list[Seen] = []
        self._ended = threading.Event()
        asked = [(gunicorn, question) for gunicorn in fleet for question in (HOLIDAY, CANTEEN)] * 2
        self._threads = [threading.Thread(target=self._ask, args=one) for one in asked]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, gunicorn: Gunicorn, question: str) -> None:
        with httpx.Client(base_url=gunicorn.url(), timeout=20) as client:
            while not self._ended.is_set():
                begun = time.monotonic()
                response = client.post("/query", json={"question": question}, headers=ONLY_CACHED)
                self.seen.append(Seen(question, response.headers["X-Worker"], begun, response.status_code))

    def statuses(self, question: str, since: float) -> set[int]:
        return {seen.status for seen in self.seen if seen.question == question and seen.begun > since}

    def wait_for_all_workers(self, since: float = 0.0) -> None:
        """Until every worker has answered both questions, asked after `since`."""

        def heard() -> bool:
            pairs = {(seen.worker, seen.question) for seen in list(self.seen) if seen.begun > since}
            return len(pairs) == 2 * WORKERS

        wait_until(heard, timeout=40)


def watched(fleet: list[Gunicorn], change: Callable[[], object]) -> tuple[Watch, float]:
    """The questions before, while and after a change; when it was answered."""
    with Watch(fleet) as watch:
        watch.wait_for_all_workers()
        assert watch.statuses(HOLIDAY, 0) == watch.statuses(CANTEEN, 0) == {200}
        change()
        answered = time.monotonic()
        watch.wait_for_all_workers(answered)
    return watch, answered


def test_once_an_update_is_answered_no_worker_serves_an_answer_from_before(replicas: list[Gunicorn]) -> None:
    watch, answered = watched(replicas, lambda: store(replicas[0], "holiday", "The office approves my holiday."))
    assert watch.statuses(HOLIDAY, answered) == {504}
    assert watch.statuses(CANTEEN, 0) == {200}


def test_once_a_better_document_is_stored_its_question_is_asked_anew_everywhere(replicas: list[Gunicorn]) -> None:
    better = "Holiday of more than a month: who approves my holiday is the office."
    watch, answered = watched(replicas, lambda: store(replicas[1], "long holiday", better))
    assert watch.statuses(HOLIDAY, answered) == {504}
    assert watch.statuses(CANTEEN, 0) == {200}
    afresh = replicas[0].client.post(f"{replicas[0].url()}/query", json={"question": HOLIDAY}).json()
    assert better in [source["text"] for source in afresh["sources"]]
