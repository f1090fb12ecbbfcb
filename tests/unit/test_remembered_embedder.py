"""Vectors are kept, bounded, and never outlive their model."""

from __future__ import annotations

from collections.abc import Sequence

from api.embedders.remembered import RememberedEmbedder
from api.model import EmbedderIdentity


class Counting:
    """Embeds a text as its model's name and itself."""

    def __init__(self) -> None:
        self.model = "a"
        self.embedded: list[str] = []

    async def identity(self) -> EmbedderIdentity:
        return EmbedderIdentity(self.model, 1, self.model)

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        self.embedded += texts
        return [f"{self.model}:{text}".encode() for text in texts]


async def test_a_text_is_embedded_once() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner)
    assert await embedder.embed(["x", "y", "x"]) == [b"a:x", b"a:y", b"a:x"]
    assert await embedder.embed(["y", "z"]) == [b"a:y", b"a:z"]
    assert inner.embedded == ["x", "y", "z"]


async def test_the_least_recently_used_is_forgotten() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner, kept=2)
    for text in ("x", "y", "x", "z", "x", "y"):
        await embedder.embed([text])
    assert inner.embedded == ["x", "y", "z", "y"]


async def test_another_model_begins_anew() -> None:
    inner = Counting()
    embedder = RememberedEmbedder(inner)
    await embedder.identity()
    await embedder.embed(["x"])
    inner.model = "b"
    await embedder.identity()
    assert await embedder.embed(["x"]) == [b"b:x"]
