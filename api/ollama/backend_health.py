"""Health checks of the backends, and warm-up: loading the models before the first question needs them.

One worker of the fleet probes the backends (`BackendWatch`); the others read its results. One worker per backend loads
its models (`WarmUp`). Ollama stops loading a model when the client disconnects, so a separate task loads it over a
separate connection, which no request's deadline ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import orjson
import structlog

from api.cancellation import cancel_and_wait, log_failure
from api.errors import BulkheadFull, StoreUnavailable, UpstreamError
from api.ollama.models import KnownDigests, OllamaModels, Pinned
from api.ollama.pool import OllamaPool
from api.ports.coordination import Bulkhead, HealthStore, LeaderLease
from api.values import BackendHealth, Priority, QueuePlace


class SharedSpeeds(Protocol):
    """How fast one backend reads prompts, as far as this worker knows: seconds per token by model."""

    def take_unsent(self) -> Mapping[str, float]:
        """What was learned since the last call."""

    def adopt(self, shared: Mapping[str, float]) -> None:
        """Takes over what other workers know."""


class BackendWatch:
    """One worker's knowledge of the backends' health.

    `interval`: seconds between two probes. `on_return` is called with the name of a backend that answers again,
    `on_probe` with what a probe of this worker found. The health only orders the backends; a backend's breaker decides
    whether it may be called.
    """

    def __init__(
        self,
        models: Mapping[str, OllamaModels],
        lease: LeaderLease,
        board: HealthStore,
        interval: float,
        on_return: Callable[[str], None],
        digests: KnownDigests,
        on_probe: Callable[[Mapping[str, BackendHealth]], Awaitable[None]] | None = None,
    ) -> None:
        self._models = models
        self._lease = lease
        self._board = board
        self._interval = interval
        self._on_return = on_return
        self._on_probe = on_probe
        self.digests = digests
        self.known: dict[str, BackendHealth] = {}
        """The last known health of each backend."""
        self.speeds: Mapping[str, SharedSpeeds] = {}
        """How fast each backend reads prompts. The fleet shares them."""
        self._left = False

    async def look(self) -> None:
        """Probes and publishes the result if this worker has the lease; otherwise reads what the prober found."""
        if self._left:
            return
        if await self._lease.acquire(2 * self._interval + 5):
            found = await asyncio.gather(*(models.health() for models in self._models.values()))
            self._learn(dict(zip(self._models, found, strict=True)))
            with suppress(StoreUnavailable):  # then every worker probes for itself
                await self._board.publish(self.known)
            if self._on_probe is not None:
                await self._on_probe(self.known)
        else:
            with suppress(StoreUnavailable):  # keep what is known
                self._learn(await self._board.read())
                await self._read_digests()
        with suppress(StoreUnavailable):
            await self._share_speeds()

    async def begin(self) -> None:
        """Learns the digests of the models' weights from the backends or, if one does not answer, from the fleet.

        They are part of the cache key, so workers must agree from their first answer on.
        """
        with suppress(StoreUnavailable):
            await self._read_digests()
            await self._share_speeds()
        found = await asyncio.gather(*(models.health() for models in self._models.values()))
        for name, health in zip(self._models, found, strict=True):
            if health.reachable:
                self.digests.learn(name, health.digests)
                with suppress(StoreUnavailable):
                    await self._board.publish_digests(name, health.digests)

    async def recall(self) -> None:
        """Learns the digests when Redis is back, in case the worker started without it. Runs before other uses."""
        await self._read_digests(early=True)

    async def _read_digests(self, *, early: bool = False) -> None:
        for name in self._models:
            self.digests.learn(name, await self._board.digests(name, early=early))

    async def _share_speeds(self) -> None:
        shared = await self._board.share_speeds({name: one.take_unsent() for name, one in self.speeds.items()})
        for name, speeds in self.speeds.items():
            speeds.adopt(shared.get(name, {}))

    async def leave(self) -> None:
        """Stops probing and releases the lease, so that another worker probes."""
        self._left = True
        await self._lease.release()

    async def keep_looking(self) -> None:
        """Probes forever, with jitter. A background task of the worker."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval * random.uniform(0.8, 1.0))  # noqa: S311 - jitter

    def _learn(self, found: Mapping[str, BackendHealth]) -> None:
        before = dict(self.known)
        self.known.clear()
        self.known.update(found)
        for name, health in found.items():
            self.digests.learn(name, health.digests)
            if health.reachable and name in before and not before[name].reachable:
                self._on_return(name)


WARM_UP: Final = "warm-up"
"""The tenant of loads in the bulkhead's queue."""
LOAD_LIMIT: Final = 900.0
"""Seconds after which a load is abandoned."""
LEASE: Final = 15.0
"""Seconds of the lease, which is renewed during the load. If the worker dies, another can take over."""
DONE: Final = 30.0
"""Seconds in which other workers that start at the same time do not repeat a completed load."""


Kind = Literal["", "-embed"]


@dataclass(frozen=True, slots=True)
class Load:
    """A request that makes Ollama load one model, with the options of all other requests.

    `kind` is the suffix of its bulkhead's name.
    """

    model: str
    path: str
    body: bytes
    kind: Kind = ""


def load_llm(model: str, pinned: Pinned) -> Load:
    """Returns the load of a language model: a generation without a prompt."""
    fields = {"model": model, "options": dict(pinned.options), **pinned.keep_alive_field}
    return Load(model, "/api/generate", orjson.dumps({**fields, "stream": False}))


def load_embedder(model: str, pinned: Pinned) -> Load:
    """Returns the load of an embedding model: the embedding of one word."""
    return Load(
        model, "/api/embed", orjson.dumps({"model": model, "input": ["warm"], **pinned.keep_alive_field}), "-embed"
    )


class WarmUp:
    """Loads the backends' models into memory. Never raises: otherwise the first question loads the model.

    `leases` are by backend, `bulkheads` by backend and kind. A drained backend loads nothing until it is resumed.
    """

    def __init__(
        self,
        pools: Mapping[str, OllamaPool],
        bulkheads: Mapping[str, Bulkhead],
        leases: Mapping[str, LeaderLease],
        loads: tuple[Load, ...],
        is_drained: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._pools = pools
        self._bulkheads = bulkheads
        self._leases = leases
        self._loads = loads
        self._is_drained = is_drained
        self._running: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("ragherd.warm_up")

    def start(self, backend: str) -> None:
        """Loads a backend's models in the background, unless this or another worker is doing so."""
        running = self._running.get(backend)
        if self._loads and not self._is_drained(backend) and (running is None or running.done()):
            task = self._running[backend] = asyncio.create_task(self._warm(backend), name=f"warm-up-{backend}")
            log_failure(task)

    def start_all(self) -> None:
        """Loads every backend's models in the background."""
        for backend in self._pools:
            self.start(backend)

    async def aclose(self) -> None:
        """Cancels the loads in progress; another worker may request them again."""
        await cancel_and_wait(self._running.values())

    async def _warm(self, backend: str) -> None:
        lease = self._leases[backend]
        if not await lease.acquire(LEASE):
            return
        renewal = asyncio.create_task(_keep(lease))
        loaded = [False]
        try:
            loaded = [await self._load(backend, load) for load in self._loads]
        finally:
            await cancel_and_wait([renewal])
            await (lease.acquire(DONE) if all(loaded) else lease.release())

    async def _load(self, backend: str, load: Load) -> bool:
        """Returns whether the model is in memory now."""
        started = time.monotonic()
        try:
            # It queues behind all users. It holds no permit during the load: loading is not a generation, and
            # questions that arrive meanwhile wait for the same load.
            place = QueuePlace(Priority.BACKGROUND)
            async with self._bulkheads[f"{backend}{load.kind}"].permit(WARM_UP, place=place):
                pass
            if self._is_drained(backend):  # drained while it waited, or while another model was loaded
                return False
            await self._pools[backend].load(load.path, load.body, load.model, LOAD_LIMIT)
        except (BulkheadFull, UpstreamError) as error:
            self._log.warning("warm_up_failed", backend=backend, model=load.model, error=str(error), **error.members)
            return False
        seconds = round(time.monotonic() - started, 3)
        self._log.info("model_loaded", backend=backend, model=load.model, seconds=seconds)
        return True


async def _keep(lease: LeaderLease) -> None:
    while True:
        await asyncio.sleep(LEASE / 3)
        await lease.acquire(LEASE)
