"""The vector index answers questions while it is being prepared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from api.errors import StoreUnavailable
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.semantic_index import SemanticIndex, nearest_of
from api.values import EmbedderIdentity

ONE, OTHER = (EmbedderIdentity("model", 4, letter * 10) for letter in "ab")


class ClosedGate:
    """A client that counts Redis as down, with a client behind it that reports every index as complete."""

    def __init__(self) -> None:
        self.client = self
        self.is_up = False
        self.asked: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        self.recover = action

    async def run(self, *_: Any) -> None:
        raise StoreUnavailable("Redis is down")

    async def execute_command(self, command: str, *of: str) -> Any:
        if command == "FT.INFO":
            self.asked += of
            if self.meanwhile is not None:
                await self.meanwhile()
        return {b"num_docs": 0, b"indexing": 0}


async def test_a_question_with_another_embedder_does_not_delay_readiness() -> None:
    gate: Any = ClosedGate()
    index = SemanticIndex(gate, Keys().partition(""))

    async def ask(embedder: EmbedderIdentity) -> None:
        with suppress(StoreUnavailable):
            await index.nearest(embedder, f"{embedder.fingerprint}-scope", b"", 0)

    await ask(ONE)
    gate.meanwhile = lambda: ask(OTHER)
    await gate.recover()
    assert gate.asked == [Keys().partition("").index(ONE.fingerprint, "flat")]


def test_an_entry_that_was_deleted_during_the_search_is_no_result() -> None:
    gone: dict[bytes, Any] = {b"extra_attributes": {}, b"values": []}  # as the search module (2.10) replies
    left = {b"id": b"rag:cache:s:1", b"extra_attributes": {b"d": b"0.25", b"answer": b"Two years."}, b"values": []}
    assert [(one.key, one.similarity) for one in nearest_of({b"results": [gone, left]})] == [("rag:cache:s:1", 0.75)]
