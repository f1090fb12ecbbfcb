"""What Ollama says about itself: whether it answers, which models it has, which are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import BackendHealth, model_key
from api.ollama.pool import OllamaPool

PROBE_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as `/api/tags` or `/api/ps` lists it. `expires_at` is Ollama's text, empty in `/api/tags`."""

    name: str
    digest: str
    size: int
    expires_at: str = ""


class OllamaModels:
    """Short questions, over the pool's own connections for them. `timeout` is seconds for each."""

    def __init__(self, pool: OllamaPool, timeout: float = PROBE_TIMEOUT) -> None:
        self._pool = pool
        self._timeout = timeout

    async def reachable(self) -> bool:
        """Whether Ollama answers now; never raises."""
        try:
            await self.version()
        except UpstreamError:
            return False
        return True

    async def version(self) -> str:
        """Ollama's version. Raises `UpstreamError`."""
        answer = await self._pool.probe("/api/version", self._timeout)
        version = answer.get("version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, "Ollama answered /api/version without a version.")
        return version

    async def available(self) -> list[ModelInfo]:
        """The models on Ollama's disk. Raises `UpstreamError`."""
        return await self._listed("/api/tags")

    async def find(self, name: str) -> ModelInfo | None:
        """The model on disk that Ollama means by `name`. Raises `UpstreamError`."""
        return _named(name, await self.available())

    async def in_memory(self) -> list[ModelInfo]:
        """The models loaded or being loaded. Raises `UpstreamError`."""
        return await self._listed("/api/ps")

    async def resident(self, name: str) -> bool:
        """Whether `name` is in memory and has answered since it was loaded. Raises `UpstreamError`.

        Ollama lists a model from the moment its loading begins. Until its first answer is complete it has no time
        of expiry, and each listing shows now plus its keep-alive instead: two listings then differ.
        """
        first = _named(name, await self.in_memory())
        if first is None:
            return False
        second = _named(name, await self.in_memory())
        return second is not None and second.expires_at == first.expires_at

    async def health(self) -> BackendHealth:
        """What a probe finds; never raises. A model counts as in memory from the moment its loading begins."""
        try:
            available = await self.available()
            digests = {model_key(model.name): model.digest for model in available}
            return BackendHealth(True, frozenset(digests), _names(await self.in_memory()), digests)
        except UpstreamError:
            return BackendHealth(reachable=False)

    async def _listed(self, path: str) -> list[ModelInfo]:
        answer = await self._pool.probe(path, self._timeout)
        try:
            return list(_models(answer["models"] or ()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"Ollama's {path} is no list of models.") from error


def _named(name: str, models: list[ModelInfo]) -> ModelInfo | None:
    wanted = model_key(name)
    return next((model for model in models if model_key(model.name) == wanted), None)


def _names(models: Iterable[ModelInfo]) -> frozenset[str]:
    return frozenset(model_key(model.name) for model in models)


def _models(rows: Iterable[dict[str, Any]]) -> Iterator[ModelInfo]:
    for row in rows:
        yield ModelInfo(
            name=str(row.get("name") or row["model"]),
            digest=str(row.get("digest", "")),
            size=int(row.get("size") or 0),
            expires_at=str(row.get("expires_at", "")),
        )
