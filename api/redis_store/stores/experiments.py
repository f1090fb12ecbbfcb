"""Stores A/B experiments and what was counted for them.

All keys share a slot with the fleet's counters, because each worker adds its counts for an experiment together with
those. A backup does not contain experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from api.ports.experiment import Experiment, FollowedExperiment, Segment, VariantSpec
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import now_ms, script

KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long an experiment is kept after its end, and its figures after the last count."""
MOST: Final = 20
"""Experiments that are kept. The oldest goes first."""
START: Final = "at:"
"""The fields with the starts of experiments."""


class RedisExperiments:
    """The store of one worker. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.experiments)
        self._keys = keys
        self._start = script(redis.client, "stores/experiments", "start")
        self._stop = script(redis.client, "stores/experiments", "stop")

    async def follow(self, known: int) -> FollowedExperiment | None:
        """Returns the running experiment; None if the reader knows this epoch."""
        key = self._keys.experiments
        reply: Any = await self._redis.run("experiments", lambda client: client.hmget(key, ["epoch", "running"]))
        epoch, running = int(reply[0] or 0), (reply[1] or b"").decode()
        if epoch == known:
            return None
        now = await self.now_ms()
        return FollowedExperiment(epoch, now, await self.find(running) if running else None)

    async def start(self, experiment: Experiment, lasts_ms: int, after: int) -> str | None:
        """Starts an experiment, or changes its shares if it is running. `after`: the epoch that the caller knows.

        Returns None, the name of another one that is running, or "" if another epoch is stored.
        """
        name = experiment.name
        keys = [self._keys.experiments, *self._keys.experiment(name)]
        told = (self._keys.experiments_channel, _definition(experiment), experiment.by)
        arguments: list[Any] = [name, after, lasts_ms, KEPT_MS, *told]
        reply: Any = await self._redis.run("experiments", partial(self._start, keys, arguments))
        outcome, *other = (part.decode() for part in reply)
        if outcome != "started":
            return other[0] if other else ""
        await self._drop_oldest()
        return None

    async def _drop_oldest(self) -> None:
        for name in (await self._names())[MOST:]:
            await self._redis.run("experiments", partial(self._drop, name=name))

    async def _drop(self, client: Redis, name: str) -> None:
        async with client.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys.experiments, f"{START}{name}")
            pipe.unlink(*self._keys.experiment(name))
            await pipe.execute()

    async def stop(self, name: str, by: str) -> bool:
        """Stops a running experiment. Returns False if it is not running."""
        keys = [self._keys.experiments, self._keys.experiment(name)[0]]
        arguments: list[Any] = [name, KEPT_MS, self._keys.experiments_channel, by]
        return bool(await self._redis.run("experiments", partial(self._stop, keys, arguments)))

    async def find(self, name: str) -> Experiment | None:
        """Returns an experiment, running or not."""
        key = self._keys.experiment(name)[0]
        fields: Any = await self._redis.run("experiments", lambda client: client.hgetall(key))
        return _read(name, fields)

    async def all(self) -> Sequence[Experiment]:
        """Returns those that are kept, newest first."""
        found = [await self.find(name) for name in (await self._names())[:MOST]]
        return [one for one in found if one is not None]

    async def _names(self) -> list[str]:
        """Returns the names of all experiments, newest first."""
        fields: Any = await self._redis.run("experiments", lambda client: client.hgetall(self._keys.experiments))
        starts = {name.decode(): int(at) for name, at in fields.items() if name.startswith(START.encode())}
        return [name.removeprefix(START) for name in sorted(starts, key=lambda name: -starts[name])]

    async def figures(self, name: str) -> Mapping[str, int]:
        """Returns what was counted for an experiment. The names begin with a variant's."""
        key = self._keys.experiment(name)[1]
        fields: Any = await self._redis.run("experiments", lambda client: client.hgetall(key))
        return {count.decode(): int(number) for count, number in fields.items()}

    async def now_ms(self) -> int:
        """Returns Redis's clock."""
        return await self._redis.run("experiments", now_ms)


def _definition(experiment: Experiment) -> bytes:
    variants = [{"name": one.name, "share": one.share, "settings": one.settings} for one in experiment.variants]
    segments = [[segment.end, segment.variant] for segment in experiment.segments]
    fields = {"unit": experiment.unit, "share_answers": experiment.share_answers}
    return orjson.dumps({**fields, "variants": variants, "segments": segments})


def _read(name: str, fields: Mapping[bytes, bytes]) -> Experiment | None:
    """Returns None for an experiment that is gone, or cannot be read because a later release has written it."""
    with suppress(ValueError, KeyError, TypeError, IndexError):
        said = orjson.loads(fields[b"definition"])
        return Experiment(
            name,
            tuple(VariantSpec(one["name"], one["share"], one["settings"]) for one in said["variants"]),
            tuple(Segment(int(end), int(variant)) for end, variant in said["segments"]),
            said["unit"],
            said["share_answers"],
            int(fields[b"started_ms"]),
            int(fields[b"ends_ms"]),
            int(fields[b"stopped_ms"]),
            fields[b"by"].decode(),
        )
    return None
