"""No question, answer, document, key or tenant appears in what the service writes, whatever goes wrong.

The service, with its log at debug and with traces, gets marked texts through every endpoint, while Ollama and Redis
fail, handlers have bugs and bodies are damaged. Nothing that it has written may contain a mark.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from api.embedded.redis_server import EmbeddedRedis
from api.knowledge.document_service import DocumentService
from api.quality.comparator import Comparator
from api.query.condense import Condenser
from api.query.explain import Explainer
from api.query.warm_up import CacheWarmer, Invalidator
from api.redis_store.stores.feedback import RedisFeedback
from tests.stub_ollama import StubOllama
from tests.support.otlp_collector import OtlpCollector, otlp_collector
from tests.support.service import Service
from tests.support.waiting import wait_until_async

BUG: Final = "bug-in-"
"""A text with `bug-in-<method>` makes that method fail."""
MARKS: Final = ("zebraquestion", "zebraanswer", "zebradocument", "zebrakey", "zebratenant", "zebrafile", "zebracomment")
KEY, ADMIN, WRONG = "zebrakey-of-a-user-1234", "zebrakey-of-an-admin-1234", "zebrakey-wrong-1234"
QUESTION, TENANT, DOCUMENT = "When is the zebraquestion asked", "zebratenant", "The zebradocument is read at noon. "
REPORTS = (
    "/metrics",
    "/health",
    "/openapi.json",
    "/api/workers",
    "/api/history",
    "/api/backends",
    "/api/experiments",
    "/api/bulkhead/metrics",
    "/api/connection-pool/metrics",
    "/api/circuit-breaker/metrics",
    "/api/circuit-breaker/history",
    "/api/semantic-cache/metrics",
    "/api/semantic-cache/quality",
)
FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"mode": "ok", "answer": "The zebraanswer is noon."},
    {"mode": "status", "status": 500, "message": "cannot read 'zebraquestion' at all"},
    {"mode": "status", "status": 400, "message": "no such thing: zebraquestion zebradocument"},
    {"mode": "status", "status": 503, "message": "busy with zebraquestion", "retry_after": "1"},
    {"mode": "error_line", "message": "gave up at zebraanswer"},
    {"mode": "bad_json", "answer": "zebraanswer {"},
    {"mode": "cut", "answer": "zebraanswer, and then"},
    {"mode": "no_done", "answer": "zebraanswer, and then"},
    {"mode": "close"},
)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


AT_ONCE: Final = 12


class Caller:
    """Sends requests, and never minds the answers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._waiting: list[Coroutine[Any, Any, None]] = []
        self.sent = 0
        self.statuses: set[int] = set()

    def __call__(self, method: str, path: str, *, key: str | None = KEY, **more: Any) -> None:
        """Sends it with the next `flush`."""
        headers = {**(bearer(key) if key else {}), **more.pop("headers", {})}
        self._waiting.append(self._send(method, path, headers=headers, **more))

    async def _send(self, method: str, path: str, **more: Any) -> None:
        self.sent += 1
        try:
            self.statuses.add((await self._client.request(method, path, **more)).status_code)
        except httpx.TransportError:
            return

    async def flush(self) -> None:
        """Sends what waits, some at once."""
        waiting, self._waiting = self._waiting, []
        while waiting:
            some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            await asyncio.gather(*some)


def questions(number: int) -> list[tuple[str, str, Any]]:
    """Returns a request to each endpoint that takes a question, in its form."""
    text = f"{QUESTION} {number}?"
    said = [{"role": "user", "content": text}]
    history = [{"role": "user", "content": "I like the zebraquestion."}, *said]
    tool = {"name": "ask", "arguments": {"question": text}}
    return [
        ("POST", "/query", {"question": text, "options": {"stop": ["zebraquestion"]}}),
        ("POST", "/query", {"question": f"{text} At all?", "stream": True}),
        ("POST", "/query", {"question": "And when?", "history": history}),
        ("POST", "/api/semantic-cache/explain", {"question": text}),
        ("POST", "/api/chat", {"model": "llama3.2", "messages": said}),
        ("POST", "/api/generate", {"model": "llama3.2", "prompt": text, "system": "zebraquestion", "stream": False}),
        ("POST", "/api/embed", {"model": "nomic-embed-text", "input": [text]}),
        ("POST", "/api/embeddings", {"model": "nomic-embed-text", "prompt": text}),
        ("POST", "/v1/chat/completions", {"model": "llama3.2", "messages": said, "stream": True}),
        ("POST", "/v1/completions", {"model": "llama3.2", "prompt": text}),
        ("POST", "/v1/responses", {"model": "llama3.2", "input": text}),
        ("POST", "/v1/embeddings", {"model": "nomic-embed-text", "input": text}),
        ("POST", "/v1/messages", {"model": "llama3.2", "max_tokens": 9, "messages": said}),
        ("POST", "/v1/messages/count_tokens", {"model": "llama3.2", "messages": said}),
        ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": tool}),
        ("POST", "/api/show", {"model": "zebraquestion"}),
    ]


def administration(number: int) -> list[tuple[str, str, Any]]:
    text = f"{QUESTION} {number}?"
    document = {"title": f"The zebradocument {number}", "text": DOCUMENT * 3, "tags": ["zebradocument"]}
    return [
        ("POST", "/documents", {**document, "tenant": TENANT, "source": f"https://zebradocument.example/{number}"}),
        ("POST", "/documents", {"title": "zebradocument", "text": "", "language": "zebradocument"}),
        ("POST", "/api/semantic-cache/warm", {"questions": [{"question": text, "tenant": TENANT}]}),
        ("POST", "/api/experiments", {"name": "zebraquestion!", "variants": [{"name": "zebraquestion", "share": 1}]}),
    ]


MCP: Final = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


def ask_everything(call: Caller, number: int) -> None:
    for method, path, body in questions(number):
        call(method, path, json=body, headers=MCP if path == "/mcp" else {})
    for method, path, body in administration(number):
        call(method, path, json=body, key=ADMIN)
    for name, value in {
        "question": QUESTION,
        "tenant": TENANT,
        "tag": "zebradocument",
        "source": "zebradocument",
    }.items():
        call("DELETE", "/api/semantic-cache", params={name: value}, key=ADMIN)
    files = {"file": ("zebrafile.md", f"# zebradocument\n\n{DOCUMENT}".encode())}
    call("POST", "/documents", files=files, data={"tenant": TENANT}, key=ADMIN)


def misuse(call: Caller) -> None:
    """Sends what is refused: damaged bodies, unknown names, wrong keys, texts where they do not belong."""
    text = quote(QUESTION)
    for method, path, body in (*questions(0), *administration(0)):
        key = ADMIN if path in ("/documents", "/api/experiments") or "warm" in path else KEY
        whole = json.dumps(body)
        for damaged in (whole[:-1], f"{whole}zebraquestion", f'"{QUESTION}"'):
            call(method, path, content=damaged, headers={"Content-Type": "application/json", **MCP}, key=key)
        call(method, path, json={**body, "zebraquestion": QUESTION}, key=key)
        call(method, path, json={name: [{"zebraquestion": QUESTION}] for name in body}, key=key)
        call(method, path, content=whole, headers={"Content-Type": f"text/zebraquestion; x={text}"}, key=key)
    for path in (f"/{text}", f"/documents/{text}", f"/api/nothing/{text}", f"/docs/{text}", f"/v1/models/{text}"):
        for method in ("GET", "DELETE", "PUT"):
            call(method, path, params={"zebraquestion": QUESTION, "limit": QUESTION, "cursor": QUESTION}, key=ADMIN)
    headers = ("X-Request-ID", "Cache-Control", "X-Ragherd-Priority", "X-Request-Timeout", "Accept", "Expect", "Range")
    for name in (
        *headers,
        "User-Agent",
        "Referer",
        "Cookie",
        "X-Api-Key",
        "X-Ragherd-Client",
        "traceparent",
        "tracestate",
    ):
        call("POST", "/query", json={"question": QUESTION}, headers={name: "zebraquestion, zebrakey!"})
    call("POST", "/query", json={"question": QUESTION}, headers={"Authorization": "Basic zebrakey"}, key=None)
    call("POST", "/query", json={"question": QUESTION}, key=WRONG)
    call("POST", "/query", json={"question": "zebraquestion " * 2000})
    call("POST", "/query", json={"question": QUESTION, "model": "llama3.2", "tenant": "zebratenant-other"})
    call(
        "POST",
        "/query",
        content=b'{"question": "zebraquestion \xff\xfe"}',
        headers={"Content-Type": "application/json"},
    )
    for name, content in (("zebrafile.pdf", b"%PDF-1.4 zebradocument"), ("zebrafile.docx", b"PK\x03\x04zebradocument")):
        call("POST", "/documents", files={"file": (name, content)}, key=ADMIN)
    call("POST", "/documents", files={"file": ("zebrafile.exe", b"MZ\x90\x00zebradocument")}, key=ADMIN)
    call("POST", "/documents", files={"zebrafile": ("zebrafile.txt", b"zebradocument")}, key=ADMIN)
    call("DELETE", f"/api/tenants/{TENANT}-none", params={"dry_run": QUESTION}, key=ADMIN)


def run_into_bugs(call: Caller) -> None:
    """Meets every bug of the application that runs here."""

    def text(method: str) -> str:
        return f"{QUESTION} {BUG}{method}"

    history = [{"role": "user", "content": "The zebraquestion."}]
    for stream in (False, True):
        call("POST", "/query", json={"question": text("standalone"), "history": history, "stream": stream})
    call("POST", "/v1/chat/completions", json={"model": "llama3.2", "messages": [*history, *history], "stream": True})
    call("POST", "/api/semantic-cache/explain", json={"question": text("explain")})
    tool = {"name": "explain_cache", "arguments": {"question": text("explain")}}
    call("POST", "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": tool}, headers=MCP)
    call("POST", "/documents", json={"title": "zebradocument", "text": text("add")}, key=ADMIN)
    call("GET", f"/documents/{quote(text('find'))}", key=ADMIN)
    call("POST", "/api/semantic-cache/warm", json={"questions": [text("warm")]}, key=ADMIN)
    call("DELETE", "/api/semantic-cache", params={"question": text("invalidate")}, key=ADMIN)
    comment = {"request_id": "r", "verdict": "bad", "comment": f"zebracomment {BUG}vote"}
    call("POST", "/feedback", json=comment)
    for number in range(3):  # answers that are compared in the background
        call("POST", "/query", json={"question": f"{text('compare')}, number {number}?"})


@pytest.fixture(autouse=True)
def bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets methods fail, with a cause, on a text that names their bug, at any depth of an argument."""

    def with_bug(kind: type, method: str) -> None:
        right: Callable[..., Any] = getattr(kind, method)

        def wrong(self: Any, *given: Any, **named: Any) -> Any:
            text = repr((given, named))
            if f"{BUG}{method}" in text:
                try:
                    raise KeyError(text)
                except KeyError as error:
                    raise ValueError(f"cannot handle {text}") from error
            return right(self, *given, **named)

        monkeypatch.setattr(kind, method, wrong)

    with_bug(Condenser, "standalone")
    with_bug(Comparator, "compare")
    with_bug(DocumentService, "add")
    with_bug(DocumentService, "find")
    with_bug(Explainer, "explain")
    with_bug(CacheWarmer, "warm")
    with_bug(Invalidator, "invalidate")
    with_bug(RedisFeedback, "vote")


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with otlp_collector() as made:
        yield made


def marks_in(text: str) -> set[str]:
    """Returns the lines with a mark, shortened around it."""
    found = set()
    for line in text.splitlines():
        at = min((line.lower().find(mark) for mark in MARKS if mark in line.lower()), default=-1)
        if at >= 0:
            found.add(f"{line[:120]} ... {line[max(0, at - 60) : at + 60]}")
    return found


@pytest.mark.once(reason="the same lines are written on every version")
async def test_no_marked_text_is_written_anywhere(
    collector: OtlpCollector,  # first, so that it outlives the service
    serve: Service,
    redis_server: EmbeddedRedis,
    stub: StubOllama,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # settings of OpenTelemetry go there
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    client = await serve(
        access={"api_keys": f"{TENANT}={KEY},other=other-key-1234567890", "admin_keys": ADMIN},
        server={"log_level": "debug"},
        cache={"shadow_rate": 1.0, "condense": True, "keep_pairs": True},
        breaker={"timeout": 0.2},
        documents={"ingest_wait": 0.1},
        tracing={"otel_exporter_otlp_endpoint": collector.url},
    )
    call = Caller(client)
    for number, fault in enumerate(FAULTS):
        stub.behaviour(**fault)
        ask_everything(call, number)
        await call.flush()
        call("POST", "/api/circuit-breaker/reset", key=ADMIN)
        await call.flush()
    stub.behaviour(answer="The zebraanswer is noon.")
    ask_everything(call, 0)
    misuse(call)
    run_into_bugs(call)
    await call.flush()
    redis_server.kill()
    ask_everything(call, 100)
    await call.flush()
    redis_server.start()
    await wait_until_async(lambda: is_up(client))
    ask_everything(call, 101)
    await call.flush()
    stub.behaviour("ok")
    foreign = ""
    for path in REPORTS:
        report = await client.get(path)
        assert report.status_code == 200, path
        foreign += f"\n{report.text}"
    headers = bearer("other-key-1234567890")
    foreign += (await client.post("/query", json={"question": "When is it asked?"}, headers=headers)).text
    await wait_until_async(lambda: has_spans(collector))
    log = "".join(capfd.readouterr())
    assert call.sent > 400
    assert {200, 201, 202, 401, 403, 404, 415, 422, 500, 502, 503} <= call.statuses
    logged = ("unhandled_error", "tool_failed", "request", "admin_action", "label_failed", "redis_lost")
    assert [event for event in logged if f'"{event}"' not in log] == []
    traces = b"\n".join(collector.bodies).decode("utf-8", "replace")
    assert {"log": marks_in(log), "traces": marks_in(traces), "others": marks_in(foreign)} == {
        "log": set(),
        "traces": set(),
        "others": set(),
    }


async def is_up(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health")).json()["database"])


async def has_spans(collector: OtlpCollector) -> bool:
    return len(collector.spans) > 100
