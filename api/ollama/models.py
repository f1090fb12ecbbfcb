"""Asks Ollama about its version and models, and defines the options that every request of the fleet shares.

`OllamaModels` asks one backend. `OllamaCatalog` merges the answers of all, for clients that speak Ollama's API.
`KnownDigests` holds the digests of the models' weights. `Pinned` holds the shared options: a request with different
ones would make Ollama reload the model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from api.cancellation import log_failure
from api.errors import UpstreamError, UpstreamFault
from api.ollama.pool import OllamaPool
from api.values import BackendHealth, PassedOn, model_key

PROBE_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as `/api/tags` or `/api/ps` lists it. `expires_at` is Ollama's text, empty in `/api/tags`."""

    name: str
    digest: str
    size: int
    expires_at: str = ""


class OllamaModels:
    """Probes of one backend, over the pool's separate connections. `timeout` is in seconds, for each probe."""

    def __init__(self, pool: OllamaPool, timeout: float = PROBE_TIMEOUT) -> None:
        self._pool = pool
        self._timeout = timeout

    async def reachable(self) -> bool:
        """Returns whether Ollama answers now; never raises."""
        try:
            await self.version()
        except UpstreamError:
            return False
        return True

    async def version(self) -> str:
        """Returns Ollama's version. Raises `UpstreamError`."""
        answer = await self._pool.probe("/api/version", self._timeout)
        version = answer.get("version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, "Ollama answered /api/version without a version.")
        return version

    async def available(self) -> list[ModelInfo]:
        """Returns the models on Ollama's disk. Raises `UpstreamError`."""
        return await self._listed("/api/tags")

    async def find(self, name: str) -> ModelInfo | None:
        """Returns the model on disk that `name` stands for. Raises `UpstreamError`."""
        return _named(name, await self.available())

    async def in_memory(self) -> list[ModelInfo]:
        """Returns the models that are loaded or being loaded. Raises `UpstreamError`."""
        return await self._listed("/api/ps")

    async def resident(self, name: str) -> bool:
        """Returns whether `name` is in memory and has answered since it was loaded. Raises `UpstreamError`.

        Ollama lists a model as soon as its loading begins. Until its first answer is complete it has no expiry time:
        each listing shows the current time plus the keep-alive, so two listings differ.
        """
        first = _named(name, await self.in_memory())
        if first is None:
            return False
        second = _named(name, await self.in_memory())
        return second is not None and second.expires_at == first.expires_at

    async def health(self) -> BackendHealth:
        """Probes the backend; never raises. A model counts as in memory as soon as its loading begins."""
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
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"Ollama's {path} is not a list of models.") from error


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


T = TypeVar("T")

CAPABILITIES_FOR: Final = 60.0
"""Seconds for which a model's capabilities are kept."""
ASK_AGAIN: Final = 5.0
"""Seconds after which a question about capabilities is repeated that no backend answered."""
MAX_MODELS: Final = 1000
"""Models whose capabilities are kept."""
MAX_ASKING: Final = 100
"""Models that are asked about at once. A client may name as many as it likes."""
TIMEOUT: Final = 2.0
"""Seconds that one backend's answer may take; `/api/show` of a large model is the slowest."""


class OllamaCatalog:
    """The models of all backends that are not drained, or of all if all are.

    Asks each backend one question at a time; health probes need its other connection.
    """

    def __init__(
        self,
        pools: Mapping[str, OllamaPool],
        timeout: float = TIMEOUT,
        is_drained: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._all = {name: (pool, asyncio.Semaphore(1)) for name, pool in pools.items()}
        self._timeout = timeout
        self._thinking: dict[str, tuple[float, bool | None]] = {}  # by model: when to ask again, and the last answer
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._is_drained = is_drained

    @property
    def _backends(self) -> list[tuple[OllamaPool, asyncio.Semaphore]]:
        in_use = [backend for name, backend in self._all.items() if not self._is_drained(name)]
        return in_use or list(self._all.values())

    async def available(self) -> list[dict[str, Any]]:
        """Returns the rows of `/api/tags`, each name once. Raises `UpstreamError` if no backend answers."""
        return await self._merged("/api/tags")

    async def in_memory(self) -> list[dict[str, Any]]:
        """Returns the rows of `/api/ps`, each name once. Raises `UpstreamError` if no backend answers."""
        return await self._merged("/api/ps")

    async def version(self) -> str:
        """Returns the version of the first backend that answers. Raises `UpstreamError`."""
        return await self._first(lambda pool: OllamaModels(pool, self._timeout).version())

    async def show(self, model: str, *, verbose: bool) -> dict[str, Any]:
        """Returns a model's details from the first backend that has it. Raises `UpstreamError`."""
        body = orjson.dumps({"model": model, "verbose": verbose})
        answer = await self._first(lambda pool: pool.ask("/api/show", body, model, self._timeout))
        if not isinstance(answer, dict):
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, "Ollama's /api/show is not an object.")
        return answer

    def backends(self) -> Sequence[str]:
        """Returns the names of all backends, drained ones too: they come back."""
        return list(self._all)

    def pass_on(
        self, backend: str, method: str, path: str, content: bytes | AsyncIterable[bytes]
    ) -> AbstractAsyncContextManager[PassedOn]:
        """Sends an administrator's request to one backend as it came. Raises `UpstreamError`."""
        pool, _ = self._all[backend]
        return pool.pass_on(method, path, content)

    async def thinks(self, model: str) -> bool:
        """Returns whether a model thinks unless it is told not to; False while no backend has said so. Never raises.

        The answer is kept for a minute, and then until there is a newer one. Only a caller who asks about an unknown
        model waits, for at most a second. Concurrent callers share one question to Ollama.
        """
        key = model_key(model)
        until, thinking = self._thinking.get(key, (0.0, None))
        if time.monotonic() < until:
            return bool(thinking)
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= MAX_ASKING:
                return bool(thinking)
            task = self._asking[key] = asyncio.create_task(self._learn_thinking(model, key, last=thinking))
            log_failure(task)
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        if thinking is not None:
            return thinking
        await asyncio.wait([task], timeout=PROBE_TIMEOUT)
        return task.done() and not task.cancelled() and task.result()

    async def _learn_thinking(self, model: str, key: str, *, last: bool | None) -> bool:
        seconds = ASK_AGAIN
        try:
            capabilities = (await self.show(model, verbose=False)).get("capabilities")
            last = isinstance(capabilities, list) and "thinking" in capabilities
            seconds = CAPABILITIES_FOR
        except UpstreamError:
            pass  # as before, and asked again soon
        self._thinking.pop(key, None)
        while len(self._thinking) >= MAX_MODELS:
            del self._thinking[next(iter(self._thinking))]
        self._thinking[key] = time.monotonic() + seconds, last
        return bool(last)

    async def _first(self, question: Callable[[OllamaPool], Awaitable[T]]) -> T:
        failures: list[UpstreamError] = []
        try:
            for pool, turn in self._backends:
                try:
                    return await self._asked(pool, turn, question)
                except UpstreamError as error:
                    failures.append(error)
            raise min(failures, key=lambda error: error.fault is UpstreamFault.MODEL_NOT_FOUND)
        finally:
            del failures

    async def _merged(self, path: str) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(self._listed(path, *backend) for backend in self._backends))
        failures = [answer for answer in answers if isinstance(answer, UpstreamError)]
        if len(failures) == len(answers):
            try:
                raise failures[0]
            finally:
                del failures, answers
        merged: dict[str, dict[str, Any]] = {}
        for answer in answers:
            for row in () if isinstance(answer, UpstreamError) else answer:
                merged.setdefault(str(row.get("name") or row.get("model")), row)
        return list(merged.values())

    async def _listed(
        self, path: str, pool: OllamaPool, turn: asyncio.Semaphore
    ) -> list[dict[str, Any]] | UpstreamError:
        try:
            return _rows(await self._asked(pool, turn, lambda asked: asked.probe(path, self._timeout)), path)
        except UpstreamError as error:
            return error

    async def _asked(
        self, pool: OllamaPool, turn: asyncio.Semaphore, question: Callable[[OllamaPool], Awaitable[T]]
    ) -> T:
        """Asks one backend, waiting for its turn for no longer than two answers may take."""
        try:
            async with asyncio.timeout(2 * self._timeout), turn:
                return await question(pool)
        except TimeoutError as error:
            raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, "Ollama has too many questions to answer.") from error


def _rows(answer: Any, path: str) -> list[dict[str, Any]]:
    rows = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(rows, list | None) or not all(isinstance(row, dict) for row in rows or ()):
        raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"Ollama's {path} is not a list of models.")
    return rows or []


class KnownDigests:
    """The digests of the language models' weights, as far as this worker knows.

    `num_ctx`: the context length of all generations; None: the model's default.
    """

    def __init__(self, num_ctx: int | None) -> None:
        self.unknown = "/" if num_ctx is None else f"/{num_ctx}"
        self.by_model: Mapping[str, str] = {}
        self._by_backend: dict[str, Mapping[str, str]] = {}

    def knows(self, backend: str) -> bool:
        """Returns whether the models of a backend are known."""
        return backend in self._by_backend

    def had(self, backend: str, model: str) -> bool:
        """Returns whether a backend had a model, by `model_key`, when it last answered."""
        return model in self._by_backend.get(backend, ())

    def learn(self, backend: str, digests: Mapping[str, str]) -> None:
        """Sets a backend's digests, by `model_key`. An empty mapping changes nothing: the backend gave no answer."""
        if digests and digests != self._by_backend.get(backend):
            self._by_backend[backend] = dict(digests)
            self.by_model = self._merged()

    def _merged(self) -> dict[str, str]:
        models = {model for digests in self._by_backend.values() for model in digests}
        return {model: self._of_all(model) for model in models}

    def _of_all(self, model: str) -> str:
        """Joins the different digests that backends have of one model."""
        known = {digests[model] for digests in self._by_backend.values() if model in digests}
        return f"{','.join(sorted(known))}{self.unknown}"


@dataclass(frozen=True, slots=True)
class Pinned:
    """The options that every request of the fleet sends alike.

    `keep_alive`: how long Ollama keeps a model in memory after its last use, in Ollama's format (`5m`; `-1` for
    forever); empty: Ollama's default. `num_ctx`: the context length in tokens; None: the model's default.
    """

    keep_alive: str = ""
    num_ctx: int | None = None

    @property
    def options(self) -> Mapping[str, Any]:
        """The `options` of a generation."""
        return {} if self.num_ctx is None else {"num_ctx": self.num_ctx}

    @property
    def keep_alive_field(self) -> Mapping[str, Any]:
        """The `keep_alive` field as Ollama accepts it: a duration with a unit, or seconds as a number."""
        if not self.keep_alive:
            return {}
        plain = self.keep_alive.removeprefix("-").isdigit()
        return {"keep_alive": int(self.keep_alive) if plain else self.keep_alive}
