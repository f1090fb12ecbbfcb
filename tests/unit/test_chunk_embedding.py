"""Batched embedding of documents: isolates a text that cannot be embedded, and stops if the embedder fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from api.errors import EmbeddingUnavailable, TextNotEmbedded
from api.knowledge import chunk_embedding
from api.knowledge.chunk_embedding import ChunkEmbedding, NotEmbedded
from api.ports.inference import CurrentIdentity
from api.values import BatchSize, EmbedderIdentity, Embedding

Failing = Callable[[int, Sequence[str]], Exception | None]
"""Returns the error that a call raises, by its number and texts."""


class Scripted:
    """An embedder whose calls take `seconds` per text on its own clock."""

    def __init__(self, failing: Failing = lambda _, __: None, seconds: float = 0.01) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.tenants: set[str] = set()
        self.now = 0.0
        self._failing = failing
        self._seconds = seconds

    current = CurrentIdentity()

    async def identity(self) -> EmbedderIdentity:
        return EmbedderIdentity("e", 1, "e")

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        self.calls.append(tuple(texts))
        self.tenants.add(tenant)
        self.now += len(texts) * self._seconds
        if (error := self._failing(len(self.calls), texts)) is not None:
            raise error
        return [Embedding(text.encode()) for text in texts]

    def embedding(self) -> ChunkEmbedding:
        return ChunkEmbedding(self, BatchSize(), lambda: self.now)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_embedding, "PAUSES", (0.0, 0.0))


def bad(*words: str) -> Failing:
    return lambda _, texts: TextNotEmbedded("not a number") if set(words) & set(texts) else None


async def test_halving_finds_the_text_that_cannot_be_embedded() -> None:
    texts = [f"text {number}" for number in range(16)]
    for number in range(16):
        embedder = Scripted(bad(texts[number]))
        found = await embedder.embedding().embed(texts, "acme")
        assert found[number] == NotEmbedded("not a number")
        assert [one.vector for one in found if isinstance(one, Embedding)] == [
            text.encode() for text in texts if text != texts[number]
        ]
        assert len(embedder.calls) == 1 + 2 * 4 + 1, "two for each halving, and one to be sure"
        assert embedder.tenants == {"acme"}


async def test_several_such_texts_are_found() -> None:
    found = await Scripted(bad("b", "d")).embedding().embed(["a", "b", "c", "d"], "t")
    assert [isinstance(one, NotEmbedded) for one in found] == [False, True, False, True]


async def test_a_text_that_fails_only_once_is_embedded() -> None:
    embedder = Scripted(lambda call, _: TextNotEmbedded("flaky") if call == 1 else None)
    assert await embedder.embedding().embed(["a"], "t") == [Embedding(b"a")]


async def test_an_embedder_that_fails_a_few_times_is_retried_with_smaller_batches() -> None:
    embedder = Scripted(lambda call, _: EmbeddingUnavailable("busy") if call <= 2 else None)
    embedding = embedder.embedding()
    assert await embedding.embed(["a", "b", "c", "d"], "t") == [Embedding(text) for text in (b"a", b"b", b"c", b"d")]
    assert [len(call) for call in embedder.calls] == [4, 2, 1, 1, 2]


async def test_an_embedder_that_keeps_failing_is_given_up() -> None:
    embedder = Scripted(lambda _, __: EmbeddingUnavailable("gone"))
    with pytest.raises(EmbeddingUnavailable, match="gone"):
        await embedder.embedding().embed(["a", "b", "c", "d"], "t")
    assert len(embedder.calls) == 3


async def test_batch_sizes_follow_the_measured_times() -> None:
    for seconds, expected in ((0.01, 8), (0.1, 4), (0.3, 1)):
        embedding = Scripted(seconds=seconds).embedding()
        await embedding.embed(["text"] * embedding.batch, "t")
        assert embedding.batch == expected
