"""What one worker knows of the health of its backends: probed by one worker of the fleet, read by all the others.

Loads the models into memory before the first question needs them: one worker of the fleet for each backend.

Ollama gives up loading a model when the client that asked for it leaves. So the load belongs to a task of its own,
which no request's deadline ends, on a connection of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import orjson
import structlog

from api.cancellation import cancel_and_wait, log_failure
from api.errors import BulkheadFull, StoreUnavailable, UpstreamError
from api.ollama.models import KnownDigests, OllamaModels, Pinned
from api.ollama.pool import OllamaPool
from api.ports.coordination import Bulkhead, HealthStore, LeaderLease
from api.values import BackendHealth


class BackendWatch:
    """`interval`: seconds between two probes. `on_return` is told the name of a backend that answers again.

    What is known only puts the backends in order: whether one may be called is its breaker's to say.
    """

    def __init__(
        self,
        models: Mapping[str, OllamaModels],
        lease: LeaderLease,
        board: HealthStore,
        interval: float,
        on_return: Callable[[str], None],
        digests: KnownDigests,
    ) -> None:
        self._models = models
        self._lease = lease
        self._board = board
        self._interval = interval
        self._on_return = on_return
        self.digests = digests
        self.known: dict[str, BackendHealth] = {}
        """What was last found of each backend."""
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
        else:
            with suppress(StoreUnavailable):  # what was known stays
                self._learn(await self._board.read())
                await self._read_digests()

    async def begin(self) -> None:
        """Learns which weights the models have: from the backends or, where one does not answer, from the fleet.

        Answers are cached by them: workers must agree from their first answer on.
        """
        with suppress(StoreUnavailable):
            await self._read_digests()
        found = await asyncio.gather(*(models.health() for models in self._models.values()))
        for name, health in zip(self._models, found, strict=True):
            if health.reachable:
                self.digests.learn(name, health.digests)
                with suppress(StoreUnavailable):
                    await self._board.publish_digests(name, health.digests)

    async def recall(self) -> None:
        """Redis is back, and nobody is let through yet: a worker that started without either learns the weights."""
        await self._read_digests(early=True)

    async def _read_digests(self, *, early: bool = False) -> None:
        for name in self._models:
            self.digests.learn(name, await self._board.digests(name, early=early))

    async def leave(self) -> None:
        """Looks no more: another worker probes from now on."""
        self._left = True
        await self._lease.release()

    async def keep_looking(self) -> None:
        """For ever, jittered. A task of the worker's."""
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
"""The tenant of loads in the bulkhead's line."""
LOAD_LIMIT: Final = 900.0
"""Seconds. A load that takes longer is given up."""
LEASE: Final = 15.0
"""Seconds. Renewed while the load goes on: when its worker dies, another takes over at the next occasion."""
DONE: Final = 30.0
"""Seconds in which the load, once done, is not repeated by the other workers that start at the same time."""


Kind = Literal["", "-embed"]


@dataclass(frozen=True, slots=True)
class Load:
    """One model to be loaded: the call that Ollama takes as a wish to load it, with the options of all requests.

    `kind` is what its bulkhead's name has after the backend's.
    """

    model: str
    path: str
    body: bytes
    kind: Kind = ""


def load_llm(model: str, pinned: Pinned) -> Load:
    """Of a model for text: a generation without a prompt."""
    fields = {"model": model, "options": dict(pinned.options), **pinned.keep_alive_field}
    return Load(model, "/api/generate", orjson.dumps({**fields, "stream": False}))


def load_embedder(model: str, pinned: Pinned) -> Load:
    """Of an embedding model: the embedding of one word."""
    return Load(
        model, "/api/embed", orjson.dumps({"model": model, "input": ["warm"], **pinned.keep_alive_field}), "-embed"
    )


class WarmUp:
    """`leases` by backend, `bulkheads` by backend and kind. Nothing is ever raised: a model that is not loaded now is
    loaded by its first question.
    """

    def __init__(
        self,
        pools: Mapping[str, OllamaPool],
        bulkheads: Mapping[str, Bulkhead],
        leases: Mapping[str, LeaderLease],
        loads: tuple[Load, ...],
    ) -> None:
        self._pools = pools
        self._bulkheads = bulkheads
        self._leases = leases
        self._loads = loads
        self._running: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("ragherd.warm_up")

    def start(self, backend: str) -> None:
        """Warms a backend in the background, unless that is under way here or elsewhere."""
        running = self._running.get(backend)
        if self._loads and (running is None or running.done()):
            task = self._running[backend] = asyncio.create_task(self._warm(backend), name=f"warm-up-{backend}")
            log_failure(task)

    def start_all(self) -> None:
        """Warms every backend in the background."""
        for backend in self._pools:
            self.start(backend)

    async def aclose(self) -> None:
        """Ends what is under way: a load that goes on is then another worker's to ask for."""
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
        """Whether the model is in memory now."""
        started = time.monotonic()
        try:
            # It waits its turn behind all users. It keeps no permit while it loads: that is no generation, and whoever
            # asks meanwhile joins the load.
            async with self._bulkheads[f"{backend}{load.kind}"].permit(WARM_UP, background=True):
                pass
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
