"""Backends agree on the embedder's identity, which the flow reads from an attribute while it is certain."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from api.backends.choice import Backend, Backends, FailoverPolicy
from api.backends.embedder import AgreedIdentity, FailoverEmbedder
from api.errors import EmbeddingUnavailable, UpstreamError, UpstreamFault
from api.values import EmbedderIdentity

OLD, NEW = EmbedderIdentity("m", 4, "old"), EmbedderIdentity("m", 4, "new")


@dataclass
class FakeEmbedder:
    """The embedder of one backend. It never embeds."""

    says: EmbedderIdentity
    known: EmbedderIdentity | None = None
    asked: int = 0

    async def identity(self) -> EmbedderIdentity:
        self.asked += 1
        return self.says

    async def embed(self, *_: Any, **__: Any) -> Any:
        raise EmbeddingUnavailable("no") from UpstreamError(UpstreamFault.MODEL_NOT_FOUND, "no")


@dataclass
class OpenGuard:
    """A bulkhead and a breaker that admit every call."""

    rejects: bool = False
    reported: list[str] = field(default_factory=list)

    def check(self) -> None:
        return

    def ask_early(self, *_: object) -> None: ...

    def permit(self, *_: Any, **__: Any) -> Any:
        return nullcontext()

    def attempt(self) -> Any:
        return nullcontext(self)

    async def failed(self, seconds: float) -> None:
        self.reported.append("failed")


def agreed_of(*services: FakeEmbedder) -> AgreedIdentity:
    members: list[Backend[Any]] = [Backend(str(at), one, OpenGuard(), OpenGuard()) for at, one in enumerate(services)]
    return AgreedIdentity(Backends(members, lambda _: None), "m")


async def test_an_identity_that_a_backend_reported_is_current() -> None:
    agreed = agreed_of(FakeEmbedder(OLD, known=OLD))
    assert agreed.current.value is None
    await agreed.identity()
    assert agreed.current.value == OLD


async def test_a_remembered_identity_is_requested_again() -> None:
    """Ollama was down at the start: every question asks for the identity until Ollama answers."""
    agreed = agreed_of(FakeEmbedder(OLD))
    assert await agreed.identity() == OLD
    assert agreed.current.value is None


async def test_the_backends_agree_again_after_a_failure() -> None:
    service = FakeEmbedder(OLD, known=OLD)
    agreed = agreed_of(service)
    await agreed.identity()
    embedder = FailoverEmbedder(agreed, FailoverPolicy(1.0), None, None)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingUnavailable):
        await embedder.embed(["x"], tenant="t")
    assert embedder.current.value is None
    service.says = service.known = NEW
    assert await embedder.identity() == NEW
    assert embedder.current.value == NEW
