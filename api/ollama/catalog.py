"""What all backends say of their models, in Ollama's own words: for clients that speak its API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import orjson

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.ollama.models import OllamaModels
from api.ollama.pool import OllamaPool

T = TypeVar("T")

TIMEOUT: Final = 2.0
"""Seconds for one backend's answer; `/api/show` of a large model is the slowest."""


class OllamaCatalog:
    """One question at a time to each backend: the health probes need the other connection for such."""

    def __init__(self, pools: Mapping[str, OllamaPool], timeout: float = TIMEOUT) -> None:
        self._backends = [(pool, asyncio.Semaphore(1)) for pool in pools.values()]
        self._timeout = timeout

    async def available(self) -> list[dict[str, Any]]:
        """The rows of `/api/tags`, each name once. Raises `UpstreamError` where no backend answers."""
        return await self._merged("/api/tags")

    async def in_memory(self) -> list[dict[str, Any]]:
        """The rows of `/api/ps`, as above."""
        return await self._merged("/api/ps")

    async def version(self) -> str:
        """Of the first backend that answers. Raises `UpstreamError`."""
        return await self._first(lambda pool: OllamaModels(pool, self._timeout).version())

    async def show(self, model: str, *, verbose: bool) -> dict[str, Any]:
        """A model in detail, by the first backend that has it. Raises `UpstreamError`."""
        body = orjson.dumps({"model": model, "verbose": verbose})
        answer = await self._first(lambda pool: pool.ask("/api/show", body, model, self._timeout))
        if not isinstance(answer, dict):
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, "Ollama's /api/show is no object.")
        return answer

    async def _first(self, question: Callable[[OllamaPool], Awaitable[T]]) -> T:
        failures: list[UpstreamError] = []
        for pool, turn in self._backends:
            try:
                return await self._asked(pool, turn, question)
            except UpstreamError as error:
                failures.append(error)
        raise min(failures, key=lambda error: error.fault is UpstreamFault.MODEL_NOT_FOUND)

    async def _merged(self, path: str) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(self._listed(path, *backend) for backend in self._backends))
        failures = [answer for answer in answers if isinstance(answer, UpstreamError)]
        if len(failures) == len(answers):
            raise failures[0]
        merged: dict[str, dict[str, Any]] = {}
        for answer in answers:
            for row in () if isinstance(answer, UpstreamError) else answer:
                merged.setdefault(str(row.get("name") or row.get("model")), row)
        return list(merged.values())

    async def _listed(
        self, path: str, pool: OllamaPool, turn: asyncio.Semaphore
    ) -> list[dict[str, Any]] | UpstreamError:
        try:
            return _rows(await self._asked(pool, turn, lambda asked: asked.probe(path, self._timeout)), path)
        except UpstreamError as error:
            return error

    async def _asked(
        self, pool: OllamaPool, turn: asyncio.Semaphore, question: Callable[[OllamaPool], Awaitable[T]]
    ) -> T:
        """Waiting for the turn included, no longer than two answers may take."""
        try:
            async with asyncio.timeout(2 * self._timeout), turn:
                return await question(pool)
        except TimeoutError as error:
            raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, "Ollama has too many questions to answer.") from error


def _rows(answer: Any, path: str) -> list[dict[str, Any]]:
    rows = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(rows, list | None) or not all(isinstance(row, dict) for row in rows or ()):
        raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"Ollama's {path} is no list of models.")
    return rows or []
