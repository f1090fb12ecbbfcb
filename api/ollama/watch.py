"""What one worker knows of the health of its backends: probed by one worker of the fleet, read by all the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress

from api.errors import StoreUnavailable
from api.model import BackendHealth
from api.ollama.known_digests import KnownDigests
from api.ollama.models import OllamaModels
from api.ports.fleet import Duty, HealthBoard


class BackendWatch:
    """`interval`: seconds between two probes. `on_return` is told the name of a backend that answers again.

    What is known only puts the backends in order: whether one may be called is its breaker's to say.
    """

    def __init__(
        self,
        models: Mapping[str, OllamaModels],
        duty: Duty,
        board: HealthBoard,
        interval: float,
        on_return: Callable[[str], None],
        digests: KnownDigests,
    ) -> None:
        self._models = models
        self._duty = duty
        self._board = board
        self._interval = interval
        self._on_return = on_return
        self.digests = digests
        self._known: Mapping[str, BackendHealth] = {}
        self._left = False

    def health(self, name: str) -> BackendHealth | None:
        """What was last found; None while nothing is known."""
        return self._known.get(name)

    async def look(self) -> None:
        """Probes, if that is this worker's duty now, and tells the others; else reads what the prober found."""
        if self._left:
            return
        if await self._duty.hold(2 * self._interval + 5):
            found = await asyncio.gather(*(models.health() for models in self._models.values()))
            self._learn(dict(zip(self._models, found, strict=True)))
            with suppress(StoreUnavailable):  # then every worker probes for itself
                await self._board.publish(self._known)
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
        await self._duty.leave()

    async def keep_looking(self) -> None:
        """For ever, jittered. A task of the worker's."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval * random.uniform(0.8, 1.0))  # noqa: S311 - jitter

    def _learn(self, found: Mapping[str, BackendHealth]) -> None:
        before, self._known = self._known, found
        for name, health in found.items():
            self.digests.learn(name, health.digests)
            if health.reachable and name in before and not before[name].reachable:
                self._on_return(name)
