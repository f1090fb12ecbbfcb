"""Counts requests, tokens and streams of keys and tenants for the whole fleet, by Redis's clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from api.ports.limits import Charge, LimitPlan
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

LEASE_US: Final = 15_000_000
"""How long a stream counts after its worker has died."""


class RedisLimits:
    """The store of one worker. Every method but `command` and `decide` raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        made = partial(script, redis.client, "stores/limits")
        self._admit, self._spend = made("admit"), made("spend")
        self._open, self._renew = made("open_stream"), made("renew_streams")

    def command(self, charge: Charge) -> tuple[Any, ...] | None:
        """Returns the command that charges a request, to send it along with another one.

        None on a cluster: the other command has another slot.
        """
        if self._keys.cluster:
            return None
        keys = self._of(charge.plan)
        return ("EVALSHA", self._admit.sha, len(keys), *keys, *charge.plan.rates)

    async def admit(self, charge: Charge) -> None:
        """Charges a request, and sets the decision."""
        keys = self._of(charge.plan)
        reply = await self._redis.of(keys[0]).run("limit", partial(self._admit, keys, charge.plan.rates))
        decide(charge, reply)

    async def spend(self, plan: LimitPlan, tokens: int, generated: int) -> None:
        """Charges the tokens of an answer: all of them, and those that were generated."""
        keys = self._of(plan)
        await self._redis.of(keys[0]).run("limit", partial(self._spend, keys, [tokens, generated, *plan.rates]))

    async def open_stream(self, plan: LimitPlan, stream: str) -> str | None:
        """Gives a stream a lease. Returns the name of the subject that has too many streams, or None."""
        keys, most = self._streams_of(plan), [most for _, most in plan.streams]
        opening = partial(self._open, keys, [stream, LEASE_US, *most])
        full: Any = await self._redis.of(keys[0]).run("limit", opening)
        return plan.streams[int(full) - 1][0] if full else None

    async def renew_streams(self, owner: str, subject: str, streams: Sequence[str]) -> None:
        """Renews the leases of streams."""
        key = self._keys.limit_streams(owner, subject)
        await self._redis.of(key).run("limit", partial(self._renew, [key], [LEASE_US, *streams]))

    async def close_stream(self, plan: LimitPlan, stream: str) -> None:
        """Returns the lease of a stream."""
        for key in self._streams_of(plan):
            await self._redis.of(key).run("limit", lambda client, key=key: client.zrem(key, stream))  # type: ignore[misc]

    def _of(self, plan: LimitPlan) -> list[str]:
        return [self._keys.limit(plan.owner, name) for name, _ in plan.subjects]

    def _streams_of(self, plan: LimitPlan) -> list[str]:
        return [self._keys.limit_streams(plan.owner, name) for name, _ in plan.streams]


def decide(charge: Charge, reply: Any) -> None:
    """Sets the decision that a reply of the script contains."""
    charge.decide(reply[0] / 1_000_000, reply[1:])
