"""Sentinels: asked which server is the primary, in the order in which they last answered."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis, Sentinel
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import AuthenticationError, RedisError, ResponseError


class SentinelsRefuse(MasterNotFoundError):
    """No Sentinel names a primary, and one of them does not tell who asks."""


class Sentinels(Sentinel):
    """One that refuses to tell is as good as one that is away: the next is asked.

    redis-py takes its refusal for an answer of the primary, which then seems to be there; and it says but the kind of
    each error.
    """

    def __init__(self, watchers: list[Redis]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self.sentinels = watchers

    async def discover_master(self, service_name: str) -> tuple[Any, Any]:
        """Host and port. Raises `MasterNotFoundError`, which counts as a lost Redis."""
        reasons: list[str] = []
        refused = False
        for sentinel in list(self.sentinels):
            try:
                masters: Any = await sentinel.sentinel_masters()
            except (RedisError, OSError, TimeoutError) as error:
                refused = refused or isinstance(error, AuthenticationError | ResponseError)
                reasons.append(f"{_name(sentinel)}: {error}")
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.sort(key=lambda one, answered=sentinel: one is not answered)  # type: ignore[misc]
                return state["ip"], state["port"]
            reasons.append(f"{_name(sentinel)}: {'it is down' if state else 'not known'}")
        kind = SentinelsRefuse if refused else MasterNotFoundError
        raise kind(f"no primary by the name of {service_name}; {'; '.join(reasons)}")


def _name(sentinel: Redis) -> str:
    options = sentinel.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"
