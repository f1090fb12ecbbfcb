"""Which weights the models have, over all backends, and what else of the server's makes answers differ."""

from __future__ import annotations

from collections.abc import Mapping

from api.model import model_key


class KnownDigests:
    """See `ports.ModelDigests`. `num_ctx`: the context that all generations have; None: the model's own."""

    def __init__(self, num_ctx: int | None) -> None:
        self._num_ctx = "" if num_ctx is None else str(num_ctx)
        self._by_backend: dict[str, Mapping[str, str]] = {}
        self._by_model: dict[str, str] = {}

    def knows(self, backend: str) -> bool:
        """Whether the models of a backend are known."""
        return backend in self._by_backend

    def learn(self, backend: str, digests: Mapping[str, str]) -> None:
        """The models that a backend has now, by `model_key`. None of them: it did not say, and what is known stays."""
        if digests and digests != self._by_backend.get(backend):
            self._by_backend[backend] = dict(digests)
            self._by_model = self._merged()

    def digest(self, model: str) -> str:
        """See `ports.ModelDigests`. Backends with different weights of a model make one digest together."""
        return f"{self._by_model.get(model_key(model), '')}/{self._num_ctx}"

    def _merged(self) -> dict[str, str]:
        models = {model for digests in self._by_backend.values() for model in digests}
        return {model: self._of_all(model) for model in models}

    def _of_all(self, model: str) -> str:
        return ",".join(sorted({digests[model] for digests in self._by_backend.values() if model in digests}))
