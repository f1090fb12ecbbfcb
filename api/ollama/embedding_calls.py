"""Ollama's /api/embed as a client calls it: any model, its vectors as they are."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import orjson

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import EmbeddingRequest, Embeddings
from api.ollama.embedding import ANSWER_LIMIT, NOT_ONE_A_TEXT, as_rows
from api.ollama.pinned import Pinned
from api.ollama.pool import OllamaPool
from api.ollama.retries import with_one_retry

_NANOSECONDS: Final = 1_000_000_000


class OllamaEmbeddingModel:
    """Implements `ports.EmbeddingModel` over one Ollama."""

    def __init__(self, pool: OllamaPool, pinned: Pinned) -> None:
        self._pool = pool
        self._keep_alive = pinned.keep_alive_field

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `ports.EmbeddingModel`. One retry inside, where the request allows it."""
        fields = {**request.extra, "model": request.model, "input": request.texts, **self._keep_alive}
        call = partial(self._call, orjson.dumps(fields), request.model)
        deadline = asyncio.timeout(request.timeout)
        try:
            async with deadline:
                answer = await with_one_retry(call, self._pool.retries, request.retry)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, "Ollama did not embed in time.") from error
        try:
            return _embeddings(orjson.loads(answer), len(request.texts))
        except (ValueError, KeyError, TypeError) as error:
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, NOT_ONE_A_TEXT) from error

    async def _call(self, body: bytes, model: str) -> bytes:
        async with self._pool.exchange("/api/embed", body, model=model) as exchange:
            await exchange.open()
            return await exchange.read(ANSWER_LIMIT)


def _embeddings(fields: dict[str, Any], count: int) -> Embeddings:
    vectors = fields["embeddings"] or []  # null stands for an empty list: of no texts, it is right
    rows = as_rows(vectors, count) if count or vectors else ()
    return Embeddings(
        [row.tobytes() for row in rows],
        int(fields.get("prompt_eval_count", 0)),
        fields.get("total_duration", 0) / _NANOSECONDS,
        fields.get("load_duration", 0) / _NANOSECONDS,
    )
