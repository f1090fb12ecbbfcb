"""Protocols of models: language models, embedders, re-rankers, on Ollama or in the worker."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from api.values import (
    EmbedderIdentity,
    Embedding,
    EmbeddingRequest,
    Embeddings,
    GenerationEnd,
    GenerationRequest,
    PassedOn,
    Retry,
    Thought,
    Token,
)


class LanguageModel(Protocol):
    """A language model that streams its answers."""

    def stream(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Token | Thought | GenerationEnd]]:
        """Yields tokens and thoughts, then exactly one `GenerationEnd`.

        Leaving the context early ends the generation. Raises `UpstreamError`, also during the stream. The adapter
        enforces all deadlines.
        """


@dataclass(slots=True)
class CurrentIdentity:
    """The current embedder's identity; None while it is unknown. `Embedder.identity` finds it and sets it."""

    value: EmbedderIdentity | None = None


class Embedder(Protocol):
    """Turns text into unit vectors."""

    @property
    def current(self) -> CurrentIdentity:
        """Always the same object. Its value changes with the model."""

    async def identity(self) -> EmbedderIdentity:
        """The identity of the embedding model. Raises `EmbeddingUnavailable` while it is unknown."""

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """One embedding per text, in order. Raises `EmbeddingUnavailable` on a fault or after its deadline.

        `tenant` owns the texts: no other tenant's calls become faster because of them.
        """


class BackendEmbedder(Protocol):
    """The embedder of one backend; `Embedder` combines several."""

    @property
    def known(self) -> EmbedderIdentity | None:
        """The identity, once the backend has reported it; no I/O."""

    async def identity(self) -> EmbedderIdentity:
        """The identity of the embedding model. Raises `EmbeddingUnavailable` while it is unknown."""

    async def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        timeout: float,  # noqa: ASYNC109
        retry: Retry,
    ) -> list[Embedding]:
        """One embedding per text, in order, within `timeout` seconds.

        Raises `EmbeddingUnavailable`, caused by the `UpstreamError`.
        """


class EmbeddingModel(Protocol):
    """Any model that embeds texts for a client, with its vectors unchanged."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One vector per text, in order. Raises `UpstreamError`."""


class ModelDigests(Protocol):
    """The digests of the language models' weights, as far as this worker knows."""

    @property
    def by_model(self) -> Mapping[str, str]:
        """By `model_key`. A digest stays the same while the weights do."""

    @property
    def unknown(self) -> str:
        """The digest of any other model."""


class Reranker(Protocol):
    """Rates how relevant a text is for a question."""

    @property
    def fingerprint(self) -> str:
        """Identifies the weights of the re-ranker."""

    async def scores(self, question: str, texts: Sequence[str], *, background: bool = False) -> list[float]:
        """The relevance of each text, 0 to 1, in order. `background` work waits behind users.

        Raises `RerankingUnavailable` on a fault or after its deadline: the passages keep their order.
        """


class ModelCatalog(Protocol):
    """The models of all backends, in Ollama's own format. Every method raises `UpstreamError`."""

    async def available(self) -> list[dict[str, Any]]:
        """The models that can be used."""

    async def in_memory(self) -> list[dict[str, Any]]:
        """The models that are loaded."""

    async def version(self) -> str:
        """The version of Ollama."""

    async def show(self, model: str, *, verbose: bool) -> dict[str, Any]:
        """One model's details."""

    def backends(self) -> Sequence[str]:
        """The names of the backends."""

    def pass_on(
        self, backend: str, method: str, path: str, content: bytes | AsyncIterable[bytes]
    ) -> AbstractAsyncContextManager[PassedOn]:
        """Sends an administrator's request to one backend as it came."""

    async def thinks(self, model: str) -> bool:
        """Whether a model thinks unless it is told not to. Never raises: False while no backend says so."""
