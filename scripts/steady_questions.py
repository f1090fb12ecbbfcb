"""Sends questions to a running service at a constant rate and measures each answer, while other load runs."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import httpx

from scripts import made_documents

MISSES, HITS = 5.0, 10.0
"""Questions per second."""
CACHED: Final = {"question": "What does a question cost that the cache has?", "top_k": 0}
"""A question that retrieves no passages, so that no document changes its answer."""


class SteadyQuestions(threading.Thread):
    """Sends questions until told to end. `seconds` has the durations by kind, `failed` the unanswered questions."""

    def __init__(self, url: str, first: int) -> None:
        super().__init__()
        self._url = url
        self._next = first
        self._ended = threading.Event()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failed: list[str] = []

    def run(self) -> None:
        asyncio.run(self._ask())

    def end(self) -> int:
        """Stops, and returns the number of the next question."""
        self._ended.set()
        self.join()
        return self._next

    async def _ask(self) -> None:
        opened = httpx.AsyncClient(base_url=self._url, timeout=30, trust_env=False)
        async with opened as client, asyncio.TaskGroup() as group:
            group.create_task(self._paced(group, client, MISSES, "miss"))
            group.create_task(self._paced(group, client, HITS, "hit"))

    async def _paced(self, group: asyncio.TaskGroup, client: httpx.AsyncClient, rate: float, kind: str) -> None:
        """Sends questions in an open loop: a slow answer does not delay the next question."""
        while not self._ended.is_set():
            await asyncio.sleep(random.expovariate(rate))
            if kind == "miss":
                self._next += 1
            body = CACHED if kind == "hit" else {"question": made_documents.question(self._next)}
            group.create_task(self._one(client, body, kind))

    async def _one(self, client: httpx.AsyncClient, body: Mapping[str, object], kind: str) -> None:
        began = time.perf_counter()
        try:
            response = await client.post("/query", json=body)
        except httpx.TransportError as error:  # the worker was killed
            self.failed.append(repr(error))
            return
        if not response.is_success:
            self.failed.append(response.text)
        elif response.json()["cache"]["status"] == kind:
            self.seconds[kind].append(time.perf_counter() - began)
