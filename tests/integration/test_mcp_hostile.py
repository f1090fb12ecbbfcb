"""What POST /mcp makes of messages that no client sends, and of a fleet that is stopped in the middle of a call."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from api.embedded.redis_server import EmbeddedRedis
from api.endpoints.mcp_api import McpResponse
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.mcp_client import HEADERS, message
from tests.support.service import Service
from tests.support.waiting import wait_until

MODERN: Final = "2026-07-28"
META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def call(arguments: Any, tool: Any = "ask", **meta: Any) -> str:
    return json.dumps(message("tools/call", name=tool, arguments=arguments, _meta={**META, **meta}))


def many(members: str) -> str:
    """Returns a call that has as many members in one object as the largest body can."""
    flood = ",".join(f'"k{number}":1' for number in range(90_000))
    return members.replace("FLOOD", flood)


BODIES: Final[Mapping[str, tuple[str | bytes, set[int]]]] = {
    "empty": ("", {400}),
    "null": ("null", {400}),
    "a text": ('"x"', {400}),
    "cut off": ('{"jsonrpc":"2.0"', {400}),
    "not UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', {400}),
    "a batch": (json.dumps([message("ping", id=number) for number in range(3)]), {400}),
    "a huge batch": (f"[{','.join(['1'] * 400_000)}]", {422}),
    "nested lists": ("[" * 4000 + "]" * 4000, {422}),
    "nested objects": (call("NESTED").replace('"NESTED"', '{"a":' * 900 + "1" + "}" * 900), {200, 400}),
    "too large": ("x" * 2_000_000, {413}),
    "many arguments": (many('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{FLOOD}}}'), {422}),
    "many members": (many('{"jsonrpc":"2.0","id":1,"method":"tools/list",FLOOD}'), {422}),
    "many tags": (call({"question": "x", "tags": ["x"] * 10_000}), {200}),
    "a huge number": (f'{{"jsonrpc":"2.0","id":{"9" * 5000},"method":"ping"}}', {400}),
    "a huge id": (f'{{"jsonrpc":"2.0","id":"{"i" * 900_000}","method":"ping"}}', {200, 400}),
    "no id": ('{"jsonrpc":"2.0","id":null,"method":"ping"}', {202, 400}),
    "half an id": ('{"jsonrpc":"2.0","id":1.5,"method":"ping"}', {202, 400}),
    "no method": ('{"jsonrpc":"2.0","id":1,"method":null}', {400}),
    "unknown method": (json.dumps(message("tools/delete", _meta=META)), {200, 404, 400}),
    "a response": ('{"jsonrpc":"2.0","id":1,"result":{}}', {202, 400}),
    "not a number": (call({"question": "x", "top_k": float("nan")}), {200}),
    "half a character": (call({"question": "\ud800"}), {200, 400}),
    "a tool of half a character": (call({}, "\ud800"), {200, 400}),
    "no arguments": (call(None), {200}),
    "a list of arguments": (call([1]), {200, 400}),
    "no tool": (call({}, None), {200, 400}),
    "a long tool": (call({}, "n" * 900_000), {200, 400}),
    "an odd progress token": (call({"question": "x"}, progressToken={"a": 1}), {200, 400}),
    "cancel another's call": ('{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}', {202}),
    "subscribe": (json.dumps(message("subscriptions/listen", _meta=META)), {200, 400, 404}),
    "a file": (json.dumps(message("resources/read", uri="file:///etc/passwd", _meta=META)), {200, 400, 404}),
}


@pytest.mark.parametrize("version", [None, "2025-06-18", MODERN, "1999-01-01"])
async def test_hostile_messages_get_a_short_error_and_nothing_else_happens(
    serve: Service, capfd: pytest.CaptureFixture[str], version: str | None
) -> None:
    service = await serve()
    for name, (body, statuses) in BODIES.items():
        headers = dict(HEADERS)
        if version is not None:
            sent = json.loads(body) if '"method": "tools/call"' in str(body) else {}
            tool = sent.get("params", {}).get("name")
            named = {"Mcp-Name": "ask"} if tool == "ask" else {}
            method = {"Mcp-Method": "tools/call"} if sent else {}
            headers |= {"MCP-Protocol-Version": version, **method, **named}
        response = await service.post("/mcp", content=body, headers=headers)
        if version == "1999-01-01" and response.status_code == 400:
            continue
        assert response.status_code in statuses, (name, response.status_code, response.text[:300])
        assert len(response.content) < 1_000_000
        if response.status_code == 200 and name not in {"a huge id", "an odd progress token"}:
            assert '"error"' in response.text or '"isError":true' in response.text, (name, response.text[:300])
    answered = await service.post("/mcp", json=message("tools/list"), headers=HEADERS)
    assert '"explain_cache"' in answered.text
    log = capfd.readouterr()
    assert "Traceback" not in log.out + log.err
    assert '"level":"error"' not in log.err


async def test_a_client_that_does_not_read_ends_its_call() -> None:
    ended = asyncio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"{}"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        finally:
            ended.set()

    async def never(_: Message) -> None:
        await asyncio.Event().wait()

    async def silent() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    await asyncio.wait_for(McpResponse(serve, b"{}", stall=0.05)({"type": "http"}, silent, never), 5)
    assert ended.is_set()


# -- a fleet -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.mark.processes
def test_every_worker_answers_and_a_stop_lets_calls_end(
    ollama: StubProcess, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    redis_server.start()
    settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2"}
    with gunicorns("api.asgi:app", tmp_path) as begin:
        fleet = begin(**settings, LLM_MODEL="llama3.2", OLLAMA_WARM_UP="false", EMBEDDER="ollama")
        workers: set[str] = set()

        def both_have_answered() -> bool:
            listed = fleet.client.post(f"{fleet.url()}/mcp", json=message("tools/list"), headers=HEADERS)
            assert '"get_passage"' in listed.text
            workers.add(listed.headers["X-Worker"])
            return len(workers) == 2

        wait_until(both_have_answered, timeout=20)
        answers: list[str] = []
        ollama.behaviour("ok", delay=2.0, path="/api/chat")
        asking = threading.Thread(target=lambda: answers.append(_asked(fleet)))
        asking.start()
        wait_until(lambda: ollama.stats["in_flight"] == 1)
        fleet.process.send_signal(signal.SIGTERM)
        asking.join(15)
        assert fleet.process.wait(15) == 0
    assert len(answers) == 1
    assert '"isError":false' in answers[0]
    assert "echo: " in answers[0]


def _asked(fleet: Gunicorn) -> str:
    body = message("tools/call", name="ask", arguments={"question": "Does it wait?", "top_k": 0})
    with httpx.Client(trust_env=False, timeout=20) as client:
        return client.post(f"{fleet.url()}/mcp", json=body, headers=HEADERS).text
