"""Loads the models into memory before the first question needs them: one worker of the fleet for each backend.

Ollama gives up loading a model when the client that asked for it leaves. So the load belongs to a task of its own,
which no request's deadline ends, on a connection of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import orjson
import structlog

from api.background import cancelled, let_go
from api.errors import BulkheadFull, UpstreamError
from api.ollama.pinned import Pinned
from api.ollama.pool import OllamaPool
from api.ports.fleet import Duty
from api.ports.resilience import Bulkhead

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
    """`duties` by backend, `bulkheads` by backend and kind. Nothing is ever raised: a model that is not loaded now is
    loaded by its first question.
    """

    def __init__(
        self,
        pools: Mapping[str, OllamaPool],
        bulkheads: Mapping[str, Bulkhead],
        duties: Mapping[str, Duty],
        loads: tuple[Load, ...],
    ) -> None:
        self._pools = pools
        self._bulkheads = bulkheads
        self._duties = duties
        self._loads = loads
        self._running: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("ragherd.warm_up")

    def start(self, backend: str) -> None:
        """Warms a backend in the background, unless that is under way here or elsewhere."""
        running = self._running.get(backend)
        if self._loads and (running is None or running.done()):
            task = self._running[backend] = asyncio.create_task(self._warm(backend), name=f"warm-up-{backend}")
            let_go(task)

    def start_all(self) -> None:
        """Warms every backend in the background."""
        for backend in self._pools:
            self.start(backend)

    async def aclose(self) -> None:
        """Ends what is under way: a load that goes on is then another worker's to ask for."""
        await cancelled(self._running.values())

    async def _warm(self, backend: str) -> None:
        duty = self._duties[backend]
        if not await duty.hold(LEASE):
            return
        renewal = asyncio.create_task(_keep(duty))
        loaded = [False]
        try:
            loaded = [await self._load(backend, load) for load in self._loads]
        finally:
            await cancelled([renewal])
            await (duty.hold(DONE) if all(loaded) else duty.leave())

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


async def _keep(duty: Duty) -> None:
    while True:
        await asyncio.sleep(LEASE / 3)
        await duty.hold(LEASE)
