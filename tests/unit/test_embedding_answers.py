"""Any response to /api/embed becomes vectors or a classified error, never an internal error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from api.errors import EmbeddingUnavailable, UpstreamError, UpstreamFault
from api.ollama.embedding import OllamaEmbedder, OllamaEmbeddingModel
from api.ollama.models import Pinned
from api.ollama.pool import RetryBudget
from api.values import EmbeddingRequest

NO_VECTORS = [
    b"[]",
    b"{}",
    b'{"embeddings": null}',
    b'{"embeddings": 5}',
    b'{"embeddings": []}',
    b'{"embeddings": [[]]}',
    b'{"embeddings": [null]}',
    b'{"embeddings": [[null]]}',
    b'{"embeddings": [["a"]]}',
    b'{"embeddings": [[1.0], [1.0]]}',
    b'{"embeddings": [[[1.0]]]}',
]


class Pool:
    """Gives every call the same response. It is also the exchange."""

    def __init__(self, answer: bytes) -> None:
        self.retries = RetryBudget()
        self._answer = answer

    @asynccontextmanager
    async def exchange(self, path: str, body: bytes, *, model: str) -> AsyncIterator[Pool]:
        yield self

    async def open(self) -> None: ...

    async def read(self, limit: int) -> bytes:
        return self._answer


@pytest.mark.parametrize("answer", NO_VECTORS)
async def test_an_invalid_vector_is_an_upstream_error(answer: bytes) -> None:
    pool: Any = Pool(answer)
    async with OllamaEmbedder.open(pool, "nomic-embed-text", 1.0) as embedder:
        with pytest.raises(EmbeddingUnavailable) as unavailable:
            await embedder.embed(["a"], tenant="t")
    assert isinstance(unavailable.value.__cause__, UpstreamError)
    with pytest.raises(UpstreamError) as failed:
        await OllamaEmbeddingModel(pool, Pinned()).embed(EmbeddingRequest("nomic-embed-text", ("a",)))
    assert failed.value.fault is unavailable.value.__cause__.fault is UpstreamFault.INVALID_RESPONSE


@pytest.mark.parametrize("answer", [b'{"embeddings": []}', b'{"embeddings": null}'])
async def test_no_texts_give_no_vectors(answer: bytes) -> None:
    pool: Any = Pool(answer)
    found = await OllamaEmbeddingModel(pool, Pinned()).embed(EmbeddingRequest("nomic-embed-text", ()))
    assert found.vectors == []
