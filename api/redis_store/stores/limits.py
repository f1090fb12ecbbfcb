"""Counts requests and tokens of keys and tenants for the whole fleet, by Redis's clock."""

from __future__ import annotations

from functools import partial
from typing import Any

from api.ports.limits import Charge, Decision, Left
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script


class RedisLimits:
    """The store of one worker. Every method but `command` and `decide` raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._admit = script(redis.client, "stores/limits", "admit")
        self._spend = script(redis.client, "stores/limits", "spend")

    def command(self, charge: Charge) -> tuple[Any, ...] | None:
        """Returns the command that charges a request, to send it along with another one.

        None on a cluster: the other command has another slot.
        """
        if self._keys.cluster:
            return None
        keys = self._of(charge)
        return ("EVALSHA", self._admit.sha, len(keys), *keys, *_limits(charge))

    async def admit(self, charge: Charge) -> None:
        """Charges a request, and sets the decision."""
        keys = self._of(charge)
        reply = await self._redis.of(keys[0]).run("limit", partial(self._admit, keys, _limits(charge)))
        decide(charge, reply)

    async def spend(self, charge: Charge, tokens: int, generated: int) -> None:
        """Charges the tokens of an answer: all of them, and those that were generated."""
        keys = self._of(charge)
        each = [part for _, limits in charge.subjects for part in (limits.tokens_per_minute, limits.tokens_per_day)]
        await self._redis.of(keys[0]).run("limit", partial(self._spend, keys, [tokens, generated, *each]))

    def _of(self, charge: Charge) -> list[str]:
        return [self._keys.limit(charge.owner, name) for name, _ in charge.subjects]


def _limits(charge: Charge) -> list[int]:
    return [
        part
        for _, limits in charge.subjects
        for part in (limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day)
    ]


def decide(charge: Charge, reply: Any) -> None:
    """Sets the decision that a reply of the script contains."""
    wait_us, *numbers = map(int, reply)
    left = tuple(Left(remaining, reset) for remaining, reset in zip(numbers[::2], numbers[1::2], strict=True))
    charge.decision = Decision(wait_us == 0, wait_us / 1_000_000, left)
