"""The tracing interface: makes spans of the steps of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from api.ports.answer_cache import AnswerCache
from api.ports.answer_quality import Verifier
from api.ports.coordination import Bulkhead
from api.ports.inference import Embedder, LanguageModel

Step = Callable[[str], AbstractContextManager[object]]
"""Makes a span of a block. `nullcontext` makes none, and costs no call of this project."""
Application = Callable[..., Awaitable[None]]
"""An ASGI application."""


class Tracing:
    """One worker's tracing. This base makes no spans; `observability.tracing` does, if a collector is set.

    The methods wrap the parts that take time, once, when the worker opens them. Without tracing the parts stay as they
    are, so that it costs nothing.
    """

    step: Step = nullcontext
    on_send: Callable[[MutableMapping[str, str]], None] | None = None
    """Adds the trace's context to an HTTP request to Ollama."""

    def answer_cache(self, cache: AnswerCache) -> AnswerCache:
        """Traces look-ups and stores."""
        return cache

    def embedder(self, embedder: Embedder, model: str, *, here: bool) -> Embedder:
        """Traces embeddings of `model`. `here`: in this process, not on Ollama."""
        return embedder

    def verifier(self, verifier: Verifier) -> Verifier:
        """Traces scores."""
        return verifier

    def bulkhead(self, bulkhead: Bulkhead) -> Bulkhead:
        """Traces the wait for a permit."""
        return bulkhead

    def language_model(self, model: LanguageModel, url: str) -> LanguageModel:
        """Traces generations of the Ollama at `url`."""
        return model

    async def serve(
        self,
        app: Application,
        scope: MutableMapping[str, Any],
        receive: Any,
        send: Any,
        route_of: Callable[[MutableMapping[str, Any]], str],
    ) -> None:
        """Serves a request. `route_of` returns the template of its route, once the application has run."""
        await app(scope, receive, send)
