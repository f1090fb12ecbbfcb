"""Opens a worker's Redis clients: the main one, and the one for breakers and bulkheads if it is another Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from api.observability.metrics import Metrics
from api.observability.redis_events import RedisEvents
from api.ports.answer_cache import Store, StoreMemory, StoreWarning
from api.redis_store.client import AnyHealthGated, RedisAddress, Tls, open_client
from api.redis_store.diagnostics import RedisCheckup
from api.redis_store.encryption import NO_CIPHER, TextCipher
from api.redis_store.keys import Keys
from api.settings import RedisSettings, Settings


@dataclass(frozen=True, slots=True)
class OpenRedis:
    """One Redis: a server, a primary with its Sentinels, or a cluster."""

    address: RedisAddress
    client: AnyHealthGated
    checkup: RedisCheckup


@dataclass(frozen=True, slots=True)
class WorkerRedis:
    """A worker's Redis clients. `guards` is `main` unless BREAKER_REDIS_URL is set."""

    main: OpenRedis
    guards: OpenRedis

    @property
    def main_is_up(self) -> bool:
        """True if the main Redis is up, as far as this worker knows. No I/O."""
        return self.main.client.is_up

    @property
    def main_shards(self) -> tuple[int, int]:
        """Number of servers of the main Redis that are up, and their total."""
        return self.main.client.shards

    @property
    def breaker_is_up(self) -> bool:
        """True if the Redis for breakers is up, as far as this worker knows. No I/O."""
        return self.guards.client.is_up

    @property
    def warnings(self) -> Sequence[StoreWarning]:
        """The warnings about all of them."""
        return [warning for server in self._servers for warning in server.checkup.warnings]

    @property
    def memory(self) -> Sequence[StoreMemory]:
        """The memory of each that is known."""
        return [known for server in self._servers if (known := server.checkup.memory) is not None]

    @property
    def _servers(self) -> list[OpenRedis]:
        return [self.main] if self.guards is self.main else [self.main, self.guards]

    async def check(self) -> None:
        """Asks each whether it is up. Never raises."""
        for server in self._servers:
            await server.client.check()

    def tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """The tasks that run for as long as the worker."""
        return [task for server in self._servers for task in (server.client.watch, server.checkup.keep_looking)]


@asynccontextmanager
async def open_redis(settings: Settings, metrics: Metrics) -> AsyncIterator[WorkerRedis]:
    """Opens the clients. No I/O. Raises `SettingsError` if ENCRYPTION_KEYS lacks its extra."""
    async with AsyncExitStack() as stack:
        address = redis_address(settings.redis)
        texts = TextCipher(settings.access.encryption_ring(), metrics.undecryptable)
        main = await _open(stack, settings, metrics, address, "main", texts)
        url = settings.breaker_redis.url
        guards = await _open(stack, settings, metrics, replace(address, url=url), "breaker") if url else main
        yield WorkerRedis(main, guards)


def redis_address(redis: RedisSettings) -> RedisAddress:
    """The address in REDIS_URL, with its timeouts and credentials."""
    tls = Tls(redis.ca_file or "", redis.cert_file or "", redis.key_file or "")
    return RedisAddress(
        redis.url,
        redis.timeout,
        redis.connect_timeout,
        redis.max_connections,
        tls,
        redis.sentinel_username or "",
        redis.sentinel_password or "",
    )


async def _open(
    stack: AsyncExitStack,
    settings: Settings,
    metrics: Metrics,
    address: RedisAddress,
    store: Store,
    texts: TextCipher = NO_CIPHER,
) -> OpenRedis:
    events = RedisEvents(metrics, store)
    probe = Keys(*settings.key_layout).probe
    opening = open_client(address, partial(RedisEvents, metrics, store), events.mismatched, probe, texts)
    client = await stack.enter_async_context(opening)
    return OpenRedis(address, client, RedisCheckup(client, store, events.warned))
