"""Opens the way to Redis that a URL names: one server, whichever is the primary, or the shards of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import cache, partial
from typing import Final, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from api.errors import StoreUnavailable
from api.redis_store.client import RedisAddress, is_cluster, node_client, seeds, short_commands
from api.redis_store.cluster_gate import ClusterGate
from api.redis_store.gate import GateEvents, RedisGate

AnyGate: TypeAlias = RedisGate | ClusterGate

NOT_A_CLUSTER: Final = "The URL says redis+cluster://, and this Redis is not a cluster: use redis://."
A_CLUSTER: Final = "This Redis is a cluster, of which a redis:// URL reaches only a part: use redis+cluster://."


@asynccontextmanager
async def opened_gate(
    address: RedisAddress,
    events: Callable[[str], GateEvents],
    mismatch: Callable[[str], None],
    probe: str,
) -> AsyncIterator[AnyGate]:
    """Closed again at the end. Nothing is asked of Redis before `check`.

    `events` makes what is told of a server, by its name: that of a shard, else empty. `mismatch` is told in a line
    that the URL is of another kind than the Redis. `probe`: see `RedisGate`; shards say themselves what they are.
    """
    if is_cluster(address):
        opened = partial(node_client, address)
        cluster = ClusterGate(opened, seeds(address), address.max_connections, events, lambda: mismatch(NOT_A_CLUSTER))
        async with aclosing(cluster):
            yield cluster
        return
    async with short_commands(address) as client:
        gate = RedisGate(client, address.max_connections, events(""), probe=probe)
        gate.on_recovery(partial(_check_alone, client, cache(mismatch)))
        yield gate


async def _check_alone(client: Redis, tell_once: Callable[[str], None]) -> None:
    """Raises `StoreUnavailable` for a part of a cluster: it would refuse most of what it is asked."""
    try:
        found = await client.info("cluster")
    except NoPermissionError:
        return
    if found.get("cluster_enabled"):
        tell_once(A_CLUSTER)
        raise StoreUnavailable(A_CLUSTER)
