"""The documented requests get the same answers through the service as from Ollama, except for the listed fields."""

from __future__ import annotations

import asyncio
from typing import Final

from scripts.compare_with_ollama import cases, compare, variants
from tests.stub_ollama import StubOllama
from tests.support.service import Service

CONTEXT: Final = {"context[0]", "context[1]", "context[2]"}
"""A plain question shares its answer with /api/chat, which has no context. docs/drop-in.md says so."""
DIFFERENT: Final[dict[str, set[str]]] = {"generate": CONTEXT, "generate, streamed": CONTEXT}
"""By request, the fields that differ."""


async def test_the_answers_are_ollama_s(serve: Service, stub: StubOllama) -> None:
    service = await serve()
    url = str(service.base_url).rstrip("/")
    found = await asyncio.to_thread(compare, stub.base_url, url, "llama3.2", "nomic-embed-text")
    assert len(found) == sum(1 for case in cases("m", "e") for _ in variants(case)) > 35
    places = {name: {one.partition(":")[0] for one in fields} for name, fields in found.items() if fields}
    shown = "\n".join(f"{name}: {one}" for name, fields in found.items() for one in fields)
    assert places == DIFFERENT, shown
