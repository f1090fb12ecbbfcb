"""The complete service: gunicorn, real workers, a real Redis, a model server."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.each_worker import each_worker, seconds_until_all
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.load import constant_load
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"
Fleet = Callable[..., Gunicorn]


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def fleet(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas of the service on one Redis, with two workers each by default."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    ollama.behaviour()
    with gunicorns("api.asgi:app", tmp_path) as begin:

        def replica(**settings: str) -> Gunicorn:
            patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
            shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2", **patient}
            return begin(**{**shared, "METRICS_PORT": free_port(), **settings})

        yield replica


def ask(gunicorn: Gunicorn, question: str, **headers: str) -> httpx.Response:
    return gunicorn.client.post(
        f"{gunicorn.url()}/query", json={"question": question}, headers={"Connection": "close", **headers}
    )


def on_both(gunicorn: Gunicorn, question: str) -> dict[str, dict[str, Any]]:
    """Returns an answer from each of both workers."""
    seen: dict[str, dict[str, Any]] = {}

    def both() -> bool:
        # Several at once: the system gives an idle service's connections to one worker again and again.
        threads = [threading.Thread(target=note) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(seen) == 2

    def note() -> None:
        response = ask(gunicorn, question)
        seen[response.headers["X-Worker"]] = response.raise_for_status().json()

    wait_until(both, timeout=30)
    return seen


def test_the_question_on_one_worker_its_paraphrase_on_the_other(fleet: Fleet) -> None:
    gunicorn = fleet()
    first = ask(gunicorn, QUESTION).json()
    assert first["cache"]["status"] == "miss"
    answers = on_both(gunicorn, PARAPHRASE)
    for answered in answers.values():
        assert (answered["cache"]["status"], answered["cache"]["kind"]) == ("hit", "semantic")
        assert answered["answer"] == first["answer"]
        assert answered["cache"]["entry"] == first["cache"]["entry"]
    judged = {"request_id": next(iter(answers.values()))["request_id"], "verdict": "bad"}
    client = gunicorn.client
    wait_until(lambda: client.post(f"{gunicorn.url()}/feedback", json=judged).status_code == 202)
    for _ in range(20):  # on either worker
        asked = {"question": PARAPHRASE}
        headers = {"Connection": "close", "Cache-Control": "only-if-cached"}
        assert client.post(f"{gunicorn.url()}/query", json=asked, headers=headers).status_code == 504
    refused = gunicorn.client.request("BREW", f"{gunicorn.url()}/query")  # no application sees such a method
    assert (refused.status_code, refused.headers["X-Worker"] in answers) == (400, True)


def test_replicas_share_cache_breaker_and_workers(fleet: Fleet, ollama: StubProcess) -> None:
    one, other = fleet(), fleet()
    ask(one, QUESTION)
    assert ask(other, QUESTION).json()["cache"]["status"] == "hit"
    wait_until(lambda: len(one.get("/api/workers").json()["workers"]) == 4)
    ollama.behaviour("status", status=500, path="/api/chat")
    failed = [ask(one, f"{number}th question", **{"Cache-Control": "no-store"}).status_code for number in range(5)]
    assert failed == [502] * 5
    states = {replica.get("/api/circuit-breaker/metrics").json()["state"] for replica in (one, other, one, other)}
    assert states == {"OPEN"}
    assert ask(other, "something new").status_code == 503
    assert ask(other, QUESTION).json()["cache"]["status"] == "hit"


def test_a_killed_worker_takes_no_other_request_with_it_and_its_successor_joins(fleet: Fleet) -> None:
    gunicorn = fleet()
    assert "numpy" in Path(f"/proc/{gunicorn.pid}/maps").read_text(), "workers share the modules of their master"
    ask(gunicorn, QUESTION)
    failures: list[str] = []
    done = threading.Event()

    def traffic() -> None:
        while not done.is_set():
            try:
                if ask(gunicorn, QUESTION).status_code != 200:
                    failures.append("status")
            except httpx.HTTPError as error:
                failures.append(type(error).__name__)

    def workers() -> set[int]:
        return {worker["pid"] for worker in gunicorn.get("/api/workers").json()["workers"]}

    def misses() -> int:
        return int(gunicorn.get("/api/semantic-cache/metrics").json()["misses"])

    wait_until(lambda: len(workers()) == 2 and misses() == 1)
    before = workers()
    victim = min(before)
    callers = [threading.Thread(target=traffic) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: _joined(workers, before, victim), timeout=30)
    finally:
        done.set()
        for caller in callers:
            caller.join()
    assert len(failures) <= len(callers), failures  # at most the one that each had in flight
    for answered in on_both(gunicorn, PARAPHRASE).values():
        assert answered["cache"]["status"] == "hit"
    assert misses() == 1
    assert 'ragherd_queries_total{kind="none",status="miss"} 1.0' in gunicorn.metrics()


def _joined(workers: Callable[[], set[int]], before: set[int], victim: int) -> bool:
    try:
        now = workers()
    except httpx.HTTPError:
        return False
    return victim not in now and len(now) == 2 and bool(now - before)


def test_a_clean_stop_leaves_no_worker_behind_in_redis(fleet: Fleet, redis_url: str) -> None:
    gunicorn = fleet()
    with sync_redis.Redis.from_url(redis_url, decode_responses=True) as client:
        wait_until(lambda: client.zcard("rag:workers") == 2)
        gunicorn.process.send_signal(signal.SIGTERM)
        gunicorn.process.wait(15)
        assert client.zcard("rag:workers") == 0
        assert list(client.scan_iter("rag:worker:*")) == []


def test_a_reload_takes_new_settings_loses_no_request_and_leaves_nothing_behind(
    fleet: Fleet, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("LLM_MODEL=llama3.2\n")
    gunicorn = fleet(working_directory=tmp_path)

    def workers() -> set[str]:
        return {worker["id"] for worker in gunicorn.get("/api/workers").json()["workers"]}

    wait_until(lambda: len(workers()) == 2)
    before = workers()
    (tmp_path / ".env").write_text("LLM_MODEL=qwen2.5\n")
    url = f"{gunicorn.url()}/query"

    def fresh(client: httpx.Client) -> httpx.Response:
        return client.post(url, json={"question": "Why?"}, headers={"Cache-Control": "no-store"})

    def streamed(client: httpx.Client) -> httpx.Response:
        response = client.post(url, json={"question": "How?", "stream": True})
        assert "event: done" in response.text
        return response

    with (
        constant_load(fresh, 2) as answers,
        constant_load(streamed, 2) as streams,
        sync_redis.Redis.from_url(redis_url, decode_responses=True) as client,
    ):
        gunicorn.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & (now := set(client.zrange("rag:workers", 0, -1))) and len(now) == 2, 60)
        assert {key.removeprefix("rag:worker:") for key in client.scan_iter("rag:worker:*")} & before == set()
    assert (answers.failures, streams.failures) == ([], [])
    assert ask(gunicorn, "What?").json()["model"].startswith("qwen2.5")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
def test_a_client_that_leaves_stops_the_generation(fleet: Fleet, ollama: StubProcess, stream: bool) -> None:
    replica = fleet(WORKERS="1")
    ollama.behaviour("hang_between", path="/api/chat")
    before = ollama.stats
    url = httpx.URL(replica.url())
    body = json.dumps({"question": QUESTION, "stream": stream}).encode()
    head = f"POST /query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: ollama.stats["requests"].get("/api/chat", 0) > before["requests"].get("/api/chat", 0))
    wait_until(lambda: ollama.stats["cancelled"] > before["cancelled"] and ollama.stats["in_flight"] == 0, timeout=5)
    breaker = replica.get("/api/circuit-breaker/metrics").json()
    assert (breaker["ignored_calls"], breaker["failure_count"]) == (1, 0)
    assert not any("Traceback" in line or "ASGI" in line for line in replica.lines())


def test_every_process_counts_the_same_requests_and_refuses_a_revoked_key_within_a_second(fleet: Fleet) -> None:
    admin = {"Authorization": "Bearer the-admin-key"}
    settings = {"REQUIRE_KEYS": "true", "ADMIN_KEYS": "the-admin-key"}
    replicas = [fleet(**settings), fleet(**settings)]
    with each_worker([replica.url() for replica in replicas], 4) as clients:
        client = next(iter(clients.values()))

        def new_key(**limits: int) -> Any:
            return client.post("/api/keys", json={"tenant": "acme", **limits}, headers=admin).raise_for_status().json()

        def status(worker: httpx.Client, key: Any) -> int:
            headers = {"Authorization": f"Bearer {key['secret']}"}
            return worker.post("/query", json={"question": QUESTION}, headers=headers).status_code

        limited, revoked = new_key(requests_per_minute=6), new_key()
        assert [status(worker, revoked) for worker in clients.values()] == [200] * 4
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda worker: [status(worker, limited) for _ in range(15)], clients.values())
            counts = Counter(code for codes in found for code in codes)
        assert counts == {200: 6, 429: 54}, "one more each 10 s"

        def revoke() -> float:
            began = time.monotonic()
            assert client.delete(f"/api/keys/{revoked['id']}", headers=admin).status_code == 200
            return began

        assert seconds_until_all(clients, lambda worker: status(worker, revoked) == 401, revoke) < 1
