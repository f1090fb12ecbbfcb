"""Every API refuses text without visible characters before it calls a model."""

from __future__ import annotations

import pytest

from tests.stub_ollama import StubOllama
from tests.support.service import Service

BLANKS = [
    " \t\n",
    "\u200b",
    "\u00ad\ufeff",
    "\u2060 \u200d\u3000",
    "\u202e\u202c",
    "\u3164\u115f\uffa0",
    "\u2800",
    "\ufe0f",
    "\x01\x1b",
    "\U000e0041\U000e0101",
    "\u180e" * 1000,
]
"""White space, zero width, soft hyphen, direction, fillers, Braille's blank, a variation selector, controls, tags."""


async def test_a_question(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    for blank in BLANKS:
        for path, more in (("/query", {}), ("/query", {"stream": True}), ("/api/semantic-cache/explain", {})):
            refused = await client.post(path, json={"question": blank, **more})
            assert (refused.status_code, "question" in refused.json()["detail"]) == (422, True), (path, blank)
    assert (await client.post("/query", json={"question": "\u200bWhy?"})).status_code == 200
    assert stub.stats["requests"].get("/api/chat", 0) == 1


async def test_a_prompt_of_the_other_apis_goes_to_ollama_as_it_came(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    for blank in BLANKS:
        turns = {"model": "llama3.2", "messages": [{"role": "user", "content": blank}]}
        for path, body in (
            ("/api/chat", turns),
            ("/api/generate", {"model": "llama3.2", "prompt": blank}),
            ("/v1/chat/completions", turns),
        ):
            answer = await client.post(path, json={**body, "stream": False})
            assert answer.status_code == 200, (path, blank)
            sent = stub.last_bodies[path]
            assert blank in (sent.get("prompt"), (sent.get("messages") or [{}])[-1].get("content"))
    loaded = await client.post("/api/generate", json={"model": "llama3.2", "prompt": "", "stream": False})
    assert loaded.json()["done_reason"] == "load"


@pytest.mark.parametrize("blank", BLANKS)
async def test_a_document(serve: Service, blank: str) -> None:
    client = await serve()
    for body in ({"title": blank, "text": "Two years."}, {"title": "Handbook", "text": blank}):
        assert (await client.post("/documents", json=body)).status_code == 422
    file = await client.post("/documents", files={"file": ("a.txt", blank.encode())})
    assert (file.status_code, "no text" in file.json()["detail"]) == (422, True)
