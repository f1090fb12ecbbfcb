"""Cached embeddings are separate per tenant, bounded, and cleared when the model changes."""

from __future__ import annotations

from collections.abc import Sequence

from api.backends.embedder import RememberedEmbedder
from api.ports.inference import CurrentIdentity
from api.values import EmbedderIdentity, Embedding


class Counting:
    """Embeds a text as its model's name and the text."""

    def __init__(self) -> None:
        self.current = CurrentIdentity()
        self.model = "a"
        self.embedded: list[str] = []

    async def identity(self) -> EmbedderIdentity:
        return EmbedderIdentity(self.model, 1, self.model)

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        self.embedded += texts
        return [Embedding(f"{self.model}:{text}".encode(), (text,)) for text in texts]


async def vectors(embedder: RememberedEmbedder, *texts: str, tenant: str = "t") -> list[bytes]:
    return [one.vector for one in await embedder.embed(texts, tenant=tenant)]


async def test_a_text_is_embedded_once() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner)
    assert await vectors(embedder, "x", "y", "x") == [b"a:x", b"a:y", b"a:x"]
    assert await vectors(embedder, "y", "z") == [b"a:y", b"a:z"]
    assert inner.embedded == ["x", "y", "z"]
    assert await embedder.embed(["x"], tenant="t") == [Embedding(b"a:x", ("x",))], "what was not read is kept with it"


async def test_the_least_recently_used_embedding_is_evicted() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner, max_entries=2)
    for text in ("x", "y", "x", "z", "x", "y"):
        await vectors(embedder, text)
    assert inner.embedded == ["x", "y", "z", "y"]


async def test_another_model_empties_the_cache() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner)
    await embedder.identity()
    await vectors(embedder, "x")
    inner.model = "b"
    await embedder.identity()
    assert await vectors(embedder, "x") == [b"b:x"]


async def test_a_model_change_is_noticed_without_a_query_for_it() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner)
    inner.current.value = await embedder.identity()
    await vectors(embedder, "x")
    inner.model = "b"
    inner.current.value = EmbedderIdentity("b", 1, "b")
    assert await vectors(embedder, "x") == [b"b:x"]


async def test_tenants_share_no_embeddings() -> None:
    """A short response time would reveal that another tenant asked the same question."""
    inner = Counting()
    embedder = RememberedEmbedder(inner)
    questions = [f"question {n}" for n in range(25)]
    for tenant in ("a", "b"):
        for question in questions:
            await vectors(embedder, question, tenant=tenant)
    assert inner.embedded == questions * 2


async def test_a_tenant_cannot_evict_the_embeddings_of_another() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner, max_entries=10)
    own = [f"own {n}" for n in range(5)]
    await vectors(embedder, *own, tenant="quiet")
    for number in range(100):
        await vectors(embedder, f"flood {number}", tenant="loud")
    inner.embedded.clear()
    await vectors(embedder, *own, tenant="quiet")
    assert inner.embedded == []
    await vectors(embedder, *(f"flood {number}" for number in range(95, 100)), tenant="loud")
    assert inner.embedded == []
    await vectors(embedder, "flood 94", tenant="loud")
    assert inner.embedded == ["flood 94"]
