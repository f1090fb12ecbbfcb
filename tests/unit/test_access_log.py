"""The access log: one line for each request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pytest

from api.endpoints.access_log import PROBES, AccessLog
from api.endpoints.middleware import EndedRequest
from api.observability.logs import FrequentEvent
from api.ports.question import AnswerFinished, Query, Timings
from api.values import (
    CachedAnswer,
    CacheMatch,
    CacheStatus,
    CompletedAnswer,
    Generation,
    GenerationEnd,
    Usage,
    owner_of,
)

ENDED = EndedRequest("POST", "/query", 200, 0.0123456, 512)
HOSTILE = 'a"}\n{"event": "request", "status": 200}\r\x1b[31m\u2028\x00'


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    """The level of a service, as `LOG_LEVEL` is by default."""
    caplog.set_level("INFO")


def lines(ended: EndedRequest, state: Mapping[str, Any], **settings: Any) -> list[dict[str, Any]]:
    """Returns the lines that a request leaves, written and read as they are in production."""
    written = BytesIO()
    AccessLog(FrequentEvent("ragherd.access", "request", written), **settings)(ended, state)
    return [json.loads(line) for line in written.getvalue().split(b"\n") if line]


def query(tenant: str = "acme", question: str = "What is Redis?") -> Query:
    return Query(question, tenant, "llama3.2")


def generated() -> AnswerFinished:
    end = GenerationEnd("llama3.2", "stop", Usage(7, 11))
    completed = CompletedAnswer(
        "an answer", "llama3.2", end.usage, generation=Generation("an answer", end, 0.1, backend="ollama-2")
    )
    return AnswerFinished("an answer", "llama3.2", CacheStatus.MISS, Timings(), usage=end.usage, completed=completed)


def hit() -> AnswerFinished:
    found = CachedAnswer("e1", "What is Redis?", "an answer", "llama3.2", (), Usage(7, 11), 1_000, 9_000)
    match = CacheMatch(found, "exact", 1.0, 2_000)
    return AnswerFinished("an answer", "llama3.2", CacheStatus.HIT, Timings(), match=match)


def test_a_generated_answer_names_outcome_tokens_and_backend() -> None:
    [line] = lines(ENDED, {"request_id": "r1", "tenant": "acme", "query": query(), "answered": generated()})

    assert line.pop("timestamp")
    assert line.pop("pid")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "ragherd.access",
        "request_id": "r1",
        "method": "POST",
        "route": "/query",
        "status": 200,
        "ms": 12.346,
        "bytes": 512,
        "tenant_hash": owner_of("acme"),
        "model": "llama3.2",
        "priority": "interactive",
        "cache": "miss",
        "kind": None,
        "prompt_tokens": 7,
        "completion_tokens": 11,
        "backend": "ollama-2",
    }


def test_a_hit_costs_no_tokens() -> None:
    [line] = lines(ENDED, {"query": query(), "answered": hit()})

    assert (line["cache"], line["kind"]) == ("hit", "exact")
    assert not {"prompt_tokens", "completion_tokens", "backend"} & line.keys()


def test_an_error_is_named() -> None:
    [line] = lines(EndedRequest("POST", "/query", 503, 0.1, 90), {"query": query(), "error": "breaker-open"})

    assert (line["status"], line["error"]) == (503, "breaker-open")
    assert "cache" not in line


def test_texts_and_tenants_are_not_logged_unless_allowed() -> None:
    state = {"tenant": "acme", "query": query(question="How much do I owe?"), "answered": generated()}

    [hidden] = lines(ENDED, state)
    [shown] = lines(ENDED, state, questions=True)

    assert not {"acme", "How much do I owe?", "an answer"} & {str(value) for value in hidden.values()}
    assert shown["question"] == "How much do I owe?"
    assert "an answer" not in shown.values()


def test_no_request_can_forge_a_line() -> None:
    state = {"request_id": HOSTILE, "tenant": HOSTILE, "query": Query(HOSTILE, HOSTILE, HOSTILE), "error": HOSTILE}

    [line] = lines(EndedRequest("GET", HOSTILE, 404, 0.1, 0), state, questions=True)

    assert (line["status"], line["model"], line["question"], line["route"]) == (404, HOSTILE, HOSTILE, HOSTILE)


@pytest.mark.parametrize("route", sorted(PROBES))
def test_probes_are_logged_only_if_they_fail(route: str) -> None:
    assert lines(EndedRequest("GET", route, 200, 0.001, 10), {}) == []
    assert [line["status"] for line in lines(EndedRequest("GET", route, 503, 0.001, 10), {})] == [503]


def test_only_hits_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.25)

    assert lines(ENDED, {"answered": hit()}, hits=0.2) == []
    assert len(lines(ENDED, {"answered": hit()}, hits=0.3)) == 1
    assert len(lines(ENDED, {"answered": generated()}, hits=0.0)) == 1
    assert len(lines(EndedRequest("POST", "/query", 499, 0.1, 0), {"answered": hit()}, hits=0.0)) == 1


def test_a_higher_log_level_leaves_the_lines_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    assert lines(ENDED, {"answered": generated()}) == []


def test_a_text_that_is_no_unicode_is_logged_all_the_same() -> None:
    [line] = lines(EndedRequest("GET", "unmatched", 404, 0.1, 0), {"request_id": "\ud800"})
    assert (line["request_id"], line["status"]) == ("\ud800", 404)
