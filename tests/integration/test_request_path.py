"""The way of a request through the code stays short; `python -m scripts.trace_request --walk exact` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from redis.asyncio import Redis

from scripts.trace_request import Figures, Walk, walks
from tests.stub_ollama import StubOllama

LIMITS: Final[Mapping[str, Mapping[str, int]]] = {
    "exact": {"files": 21, "changes": 52, "calls": 96},
    "semantic": {"files": 52, "changes": 212},
    "miss": {"files": 53, "changes": 356},
}


def least(of_kind: list[Walk]) -> Figures:
    """The round in which nothing came in between: on a busy machine timers fire and answers arrive in more parts."""
    figures = [walk.figures for walk in of_kind]
    return Figures(min(f.files for f in figures), min(f.changes for f in figures), min(f.calls for f in figures))


async def test_a_request_passes_few_files(redis: Redis, redis_url: str, stub: StubOllama) -> None:
    found = await walks(redis_url, stub.base_url)
    over = {
        f"{kind} {name}": (getattr(least(found[kind]), name), limit)
        for kind, limits in LIMITS.items()
        for name, limit in limits.items()
        if getattr(least(found[kind]), name) > limit
    }
    assert over == {}, "figure and limit"
