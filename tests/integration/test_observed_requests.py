"""What a request leaves in the log of a real fleet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis

from api.values import owner_of
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUESTION = {"question": "What is the capital of France?"}
PATIENT = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}
"""A busy test machine does not count as a lost Redis."""


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def start(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[Any]:
    ollama.behaviour()
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with gunicorns("api.asgi:app", tmp_path) as begin:

        def started(**settings: str) -> Gunicorn:
            shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "OLLAMA_WARM_UP": "false"}
            gunicorn: Gunicorn = begin(**{**shared, **PATIENT, **settings})
            return gunicorn

        yield started


def requests(gunicorn: Gunicorn) -> list[dict[str, Any]]:
    """Returns the access log. Every line of the log must be a JSON object."""
    lines = [json.loads(line) for line in gunicorn.lines()]
    return [line for line in lines if line["event"] == "request"]


def ask(gunicorn: Gunicorn, headers: dict[str, str] | None = None, *, stream: bool = False) -> Any:
    return gunicorn.client.post(f"{gunicorn.url()}/query", json={**QUESTION, "stream": stream}, headers=headers)


def test_each_request_leaves_one_line_with_its_outcome(start: Any, ollama: StubProcess) -> None:
    gunicorn = start(API_KEYS="acme=key-1", LLM_MODEL="llama3.2")
    key = {"Authorization": "Bearer key-1"}

    asked = [ask(gunicorn, {**key, "X-Request-ID": name}) for name in ("first", "second")]
    streamed = ask(gunicorn, key, stream=True)
    refused = ask(gunicorn)
    gunicorn.get("/health/live")
    gunicorn.client.delete(f"{gunicorn.url()}/api/nothing%0A%7B%22event%22%3A1%7D?question=secret")
    ollama.behaviour("status", status=400)
    failed = gunicorn.client.post(f"{gunicorn.url()}/query", json={"question": "And of Spain?"}, headers=key)

    wait_until(lambda: len(requests(gunicorn)) >= 6)
    found = {line["request_id"]: line for line in requests(gunicorn)}
    assert len(found) == len(requests(gunicorn)) == 6
    miss, hit = found["first"], found["second"]
    assert (miss["cache"], miss["backend"], miss["status"]) == ("miss", "ollama", 200)
    assert miss["completion_tokens"] == asked[0].json()["usage"]["completion_tokens"] > 0
    assert (hit["cache"], hit["kind"], hit["bytes"]) == ("hit", "exact", len(asked[1].content))
    assert miss["tenant_hash"] == hit["tenant_hash"] == owner_of("acme")
    assert (found[streamed.headers["x-request-id"]]["cache"]) == "hit"
    assert found[refused.headers["x-request-id"]]["error"] == "not-authenticated"
    assert found[failed.headers["x-request-id"]]["status"] == failed.status_code == 502
    assert {line["route"] for line in found.values()} == {"/query", "unmatched"}
    log = "\n".join(line for line in gunicorn.lines() if '"request"' in line)
    assert not [text for text in ("acme", "key-1", "secret", "France", "nothing") if text in log]


def test_the_access_log_can_be_off_or_sampled(start: Any) -> None:
    silent = start(ACCESS_LOG="false")
    sampled = start(ACCESS_LOG_HIT_RATE="0", LOG_QUESTIONS="true")
    assert [ask(silent).json()["cache"]["status"], ask(sampled).json()["cache"]["status"]] == ["miss", "hit"]
    other = sampled.client.post(f"{sampled.url()}/query", json={"question": "And of Spain?"})

    wait_until(lambda: requests(sampled))
    [line] = requests(sampled)
    assert (line["cache"], line["question"]) == ("miss", "And of Spain?")
    assert line["request_id"] == other.headers["x-request-id"]
    assert requests(silent) == []
