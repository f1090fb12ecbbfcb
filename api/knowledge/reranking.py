"""The order of passages by a cross-encoder, which reads question and passage together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from api.errors import RerankingUnavailable
from api.ports.models import Reranker


class RerankingEvents(Protocol):
    """Who is told of questions; of background work nobody is."""

    def reranked(self, seconds: float) -> None: ...

    def reranking_failed(self, error: RerankingUnavailable, seconds: float) -> None: ...


class Reranking:
    """For one worker. `most`: passages that are read for a question; more only where more are asked for."""

    def __init__(self, reranker: Reranker, most: int, events: RerankingEvents) -> None:
        self._reranker = reranker
        self._most = most
        self._events = events

    @property
    def scope(self) -> str:
        """What the order depends on: answers under another are not shared."""
        return f"{self._reranker.fingerprint}/{self._most}"

    def reads(self, top_k: int) -> int:
        """How many passages, the first ones by retrieval. The others are no sources: nothing compares with them."""
        return max(self._most, top_k)

    async def verdicts(self, question: str, texts: Sequence[str]) -> list[float] | None:
        """Of each text, 0 to 1, in order; None where the re-ranker can not judge now."""
        began = time.perf_counter()
        try:
            found = await self._reranker.scores(question, texts)
        except RerankingUnavailable as error:
            self._events.reranking_failed(error, time.perf_counter() - began)
            return None
        self._events.reranked(time.perf_counter() - began)
        return found

    async def verdicts_in_background(self, question: str, texts: Sequence[str]) -> list[float] | None:
        """The same, behind all users."""
        try:
            return await self._reranker.scores(question, texts, background=True)
        except RerankingUnavailable:
            return None
