"""Clients of Redis. Short deadlines, no hidden retries: a lost Redis must be noticed in milliseconds."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from api.errors import StoreUnavailable
from api.redis_store.cluster_map import Node, SlotMap


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is, and how long to wait for it (seconds)."""

    url: str
    timeout: float
    connect_timeout: float
    max_connections: int


SENTINEL: Final = "redis+sentinel"
CLUSTER: Final = "redis+cluster"


@asynccontextmanager
async def _opened(address: RedisAddress, **options: Any) -> AsyncIterator[Redis]:
    """A client of the server, or of whichever is the primary now by the word of the Sentinels."""
    options |= {"socket_connect_timeout": address.connect_timeout, "retry": Retry(NoBackoff(), 0)}
    if urlsplit(address.url).scheme != SENTINEL:
        async with Redis.from_url(address.url, **options) as client:
            yield client
        return
    sentinels = _sentinel(address, options)
    try:
        async with sentinels.client as client:
            yield client
    finally:
        for sentinel in sentinels.watchers:
            await sentinel.aclose()


@dataclass(frozen=True, slots=True)
class _Sentinels:
    client: Redis
    watchers: list[Redis]


def _sentinel(address: RedisAddress, options: dict[str, Any]) -> _Sentinels:
    """`redis+sentinel://[user:password@]host:port,host:port/name`; the credentials are the primary's."""
    parts = urlsplit(address.url)
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    watched = {"socket_timeout": address.timeout, "socket_connect_timeout": address.connect_timeout}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(host, int(port)) for host, _, port in hosts], sentinel_kwargs=watched
    )
    credentials = {"username": parts.username, "password": parts.password}
    options |= {name: value for name, value in credentials.items() if value}
    client: Redis = sentinel.master_for(parts.path.strip("/"), **options)
    return _Sentinels(client, sentinel.sentinels)


@asynccontextmanager
async def short_commands(address: RedisAddress) -> AsyncIterator[Redis]:
    """A client for commands that answer at once. Replies are bytes: vectors are not text."""
    # The gate in front bounds the concurrency; the pool's own limit would raise instead of waiting.
    bound = address.max_connections * 2
    async with _opened(address, socket_timeout=address.timeout, max_connections=bound) as client:
        yield client


@asynccontextmanager
async def blocking_reader(address: RedisAddress, block_seconds: float, key: str = "") -> AsyncIterator[Redis]:
    """A client of its own for blocking reads of up to `block_seconds`.

    On a cluster it is one of the shard that has `key`; without one, of any that answers: for messages, which reach all.
    Raises `StoreUnavailable` where there is none.
    """
    timeout = block_seconds + address.timeout + 1.0
    options: dict[str, Any] = {"socket_timeout": timeout, "decode_responses": True, "encoding_errors": "replace"}
    if is_cluster(address):
        async with node_client(address, await _reachable(address, key), **options) as client:
            yield client
        return
    async with _opened(address, **options) as client:
        yield client


# -- of a cluster ------------------------------------------------------------------------------------------------------


def is_cluster(address: RedisAddress) -> bool:
    """Whether the URL names a Redis Cluster."""
    return urlsplit(address.url).scheme == CLUSTER


def seeds(address: RedisAddress) -> list[Node]:
    """The nodes that `redis+cluster://[user:password@]host:port,host:port` names."""
    hosts = [host.rpartition(":") for host in urlsplit(address.url).netloc.rpartition("@")[2].split(",")]
    return [Node(host.strip("[]"), int(port)) for host, _, port in hosts]


def node_client(address: RedisAddress, node: Node, **options: Any) -> Redis:
    """A client of one node, without I/O. As others: short deadlines, no retries."""
    parts = urlsplit(address.url)
    credentials = {"username": parts.username, "password": parts.password}
    given = {name: unquote(value) for name, value in credentials.items() if value}
    fixed = {"socket_timeout": address.timeout, "socket_connect_timeout": address.connect_timeout}
    bound = {"max_connections": address.max_connections * 2}
    return Redis(
        host=node.host, port=node.port, **{**fixed, **bound, "retry": Retry(NoBackoff(), 0), **given, **options}
    )


async def _reachable(address: RedisAddress, key: str) -> Node:
    """The node that has a key; without one, a primary that answers. Raises `StoreUnavailable`."""
    slots = await _slots(address)
    if key:
        owner = slots.owner(key_slot(key.encode()))
        if owner is None:
            raise StoreUnavailable("no shard of the cluster is known to have the key")
        return owner
    for node in random.sample(sorted(slots.nodes), len(slots.nodes)):
        async with node_client(address, node) as client:
            if await _answers(client):
                return node
    raise StoreUnavailable("no shard of the cluster answers")


async def _slots(address: RedisAddress) -> SlotMap:
    """By the first seed that knows them."""
    for node in seeds(address):
        async with node_client(address, node) as client:
            try:
                reply: Any = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError, TimeoutError):
                continue
            if reply:
                return SlotMap.read(reply, node)
    raise StoreUnavailable("no node of the cluster answers")


async def _answers(client: Redis) -> bool:
    try:
        await client.ping()
    except (RedisError, OSError, TimeoutError):
        return False
    return True
