"""The documented requests get the same answers through the service as from Ollama, except for the listed fields."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

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
    assert {case.name for case in cases("m", "e") if case.differs} == {name.partition(",")[0] for name in DIFFERENT}


RETYPED: Final = {"Name three colours.": "name THREE colours", "One, two,": "one, two,", "Hi.": "hi"}


async def test_the_cache_finds_what_the_page_says(serve: Service, stub: StubOllama) -> None:
    service = await serve()
    for case in cases("llama3.2", "nomic-embed-text"):
        if case.file is not None or case.name.startswith("an unknown"):
            continue  # test_transcriptions.py has the former, and the stub has every model
        stub.behaviour(thinks=bool(case.body.get("think")))
        statuses = []
        for retyped in (False, False, True):
            body = orjson.dumps({**case.body, "stream": False}).decode()
            for before, after in RETYPED.items() if retyped else ():
                body = body.replace(before, after)
            # Each case has a cache to itself: requests of two of them may be alike.
            content = body.replace("llama3.2", f"llama3.2:{case.name.replace(' ', '-').replace(',', '')}")
            answer = await service.request(case.method, case.path, content=None if case.method == "GET" else content)
            statuses.append("hit" in answer.headers.get("cache-status", ""))
        expected = {"meaning": [False, True, True], "letter": [False, True, False], "": [False, False, False]}
        assert (case.name, statuses) == (case.name, expected[case.cached])
