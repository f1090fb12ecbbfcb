"""Forty questions on twenty notes: each finds the notes in which its answer stands."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx

from tests.integration.test_documents import ONNX, add
from tests.support.service import Service, ask

NOTES: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "data" / "notes.toml").read_text("utf-8"))
COPIES = {"fire-copy": "fire"}
"""A note that says the same as another one: either of them is found, and not both."""


async def found(client: httpx.AsyncClient, question: str) -> list[str]:
    """Returns the notes that the answer is grounded in, best first."""
    answered = await ask(client, question, headers={"Cache-Control": "no-store"})
    return [COPIES.get(source["source"], source["source"]) for source in answered["sources"]]


async def test_what_stands_in_a_note_is_found(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    for source, text in NOTES["notes"].items():
        await add(client, source.split("-")[0].capitalize(), text, source=source)
    missed, twice = defaultdict(list), []
    for one in NOTES["questions"]:
        sources = await found(client, one["ask"])
        if not set(one["in"]) <= set(sources):
            missed[one["kind"]].append((one["ask"], one["in"], sources))
        if len(set(sources)) < len(sources):
            twice.append(one["ask"])
    assert (dict(missed), twice) == ({}, [])
