"""Checks how Redis is set up and how full it is, and warns about settings that are unsafe for Ragherd.

It reads INFO when Redis is found, after each outage, and every minute.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from api.errors import StoreUnavailable
from api.ports.answer_cache import Store, StoreMemory, StoreWarning
from api.redis_store.client import AnyHealthGated
from api.redis_store.health_gated import HealthGatedRedis

OLDEST: Final[Mapping[Store, tuple[int, int]]] = {"main": (7, 4), "breaker": (7, 2)}

WITHOUT_SEARCH: Final = "without_search"
ADVICE: Final = {
    "old": "This Redis is older than the versions that Ragherd is tested with. Use Redis 8 or Redis Stack 7.4.",
    WITHOUT_SEARCH: "This Redis has no search module, so the semantic cache and the knowledge base are off. "
    "Use Redis 8 or Redis Stack 7.4 with its query engine.",
    "evicts_all": "With this maxmemory-policy, Redis may drop any key when memory is short, including documents and "
    "the state of breakers. Set maxmemory-policy to volatile-lfu.",
    "not_persistent": "Redis has no append-only file and has written no snapshot since it started. Documents are lost "
    "when it stops. Set appendonly yes, on a persistent disk.",
    "snapshots_only": "Redis has no append-only file. Documents stored since its last snapshot are lost when it stops. "
    "Set appendonly yes.",
    "disk_fails": "Redis cannot write to its disk. New data is lost when it stops. Check its log.",
    "replica": "This Redis is a replica that accepts writes. They are lost at its next synchronisation. "
    "Use the URL of the primary or of the Sentinels.",
    "read_only": "This Redis is a read-only replica, so Ragherd does not use it. "
    "Use the URL of the primary or of the Sentinels.",
    "unchecked": "The Redis user may not run INFO, so the setup cannot be checked. `ragherd redis-acl` prints the "
    "rights that the user needs.",
}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Fields of INFO. `snapshots`: a snapshot was written, or data was loaded, since the server started.

    `used` and `limit`: bytes; no limit is 0. `evicted`: keys, since the server started.
    """

    version: tuple[int, int]
    has_search: bool
    policy: str
    append_only: bool
    snapshots: bool
    disk_works: bool
    is_replica: bool
    used: int
    limit: int
    evicted: int


def server_facts(info: Mapping[str, Any]) -> ServerFacts:
    """Reads INFO as redis-py parses it. Missing fields count as good."""
    numbers = re.findall(r"\d+", str(info.get("redis_version", ""))) or ["99", "0"]
    states = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
    return ServerFacts(
        version=(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0),
        has_search=any(module.get("name") in {"search", "searchlight"} for module in info.get("modules", ())),
        policy=str(info.get("maxmemory_policy", "")),
        append_only=str(info.get("aof_enabled", 1)) == "1",
        snapshots=int(info.get("rdb_last_bgsave_time_sec", 0)) >= 0
        or int(info.get("rdb_last_load_keys_loaded", 0)) > 0,
        disk_works=all(str(info.get(state, "ok")) == "ok" for state in states),
        # No replica of a cluster accepts writes: a former primary redirects them.
        is_replica=str(info.get("role", "master")) != "master" and not int(info.get("cluster_enabled", 0)),
        used=int(info.get("used_memory", 0)),
        limit=int(info.get("maxmemory", 0)),
        evicted=int(info.get("evicted_keys", 0)),
    )


def warnings_of(facts: ServerFacts, store: Store) -> list[StoreWarning]:
    """Returns what an operator should change, in the order of `ADVICE`."""
    return [warning(store, name) for name in _names(facts, store)]


def memory_of(found: Sequence[ServerFacts], store: Store) -> StoreMemory:
    """Returns the memory of all servers of a Redis."""
    share = max((each.used / each.limit for each in found if each.limit), default=0.0)
    return StoreMemory(store, sum(each.used for each in found), share, sum(each.evicted for each in found))


def warning(store: Store, name: str) -> StoreWarning:
    """Returns the warning of this name."""
    return StoreWarning(store, name, ADVICE[name])


def _names(facts: ServerFacts, store: Store) -> Iterator[str]:
    if facts.version < OLDEST[store]:
        yield "old"
    if store == "main" and not facts.has_search:
        yield WITHOUT_SEARCH
    if facts.policy.startswith("allkeys-"):
        yield "evicts_all"
    if store == "main" and not facts.append_only:  # a lost breaker starts closed and learns again
        yield "snapshots_only" if facts.snapshots else "not_persistent"
    if not facts.disk_works:
        yield "disk_fails"
    if facts.is_replica:
        yield "replica"


LOOK_SECONDS: Final = 60.0

Heard = Callable[[StoreWarning, bool], None]
"""Called with a warning when it begins (True) and when it ends (False)."""


class RedisCheckup:
    """Checks the setup of a Redis; of a cluster, of all shards, with each warning once."""

    def __init__(self, redis: AnyHealthGated, store: Store, heard: Heard = lambda warning, begins: None) -> None:
        self._redis = redis
        self._store: Store = store
        self._heard = heard
        self._found: dict[HealthGatedRedis, ServerFacts | None] = {}
        """What each server last reported; None if its user may not run INFO."""
        redis.after_each_recovery(self.look)

    @property
    def warnings(self) -> Sequence[StoreWarning]:
        """The warnings of the last check. A Redis that refuses writes has only that warning."""
        return [warning(self._store, "read_only")] if self._redis.is_read_only else self._known()

    @property
    def memory(self) -> StoreMemory | None:
        """The memory at the last check; None if it is not known."""
        facts = [found for found in self._found.values() if found is not None]
        return memory_of(facts, self._store) if facts else None

    async def look(self) -> None:
        """Checks all servers that are up. Raises `StoreUnavailable` if none can be asked."""
        servers = self._redis.servers
        ends = await asyncio.gather(*(server.run("info", self._ask) for server in servers), return_exceptions=True)
        before = self._known()
        self._found = {server: found for server, found in self._found.items() if server in servers}
        faults: list[BaseException] = []
        for server, end in zip(servers, ends, strict=True):
            if isinstance(end, BaseException):
                faults.append(end)
            else:
                self._found[server] = end
        self._tell(before, self._known())
        if faults and len(faults) == len(servers):
            try:
                raise faults[0]
            finally:
                del faults, ends, end

    def _known(self) -> list[StoreWarning]:
        """The warnings of all servers, each once. Servers that are down keep their last warnings."""
        each = (
            [warning(self._store, "unchecked")] if found is None else warnings_of(found, self._store)
            for found in self._found.values()
        )
        return list(dict.fromkeys(one for warnings in each for one in warnings))

    def _tell(self, before: Sequence[StoreWarning], now: Sequence[StoreWarning]) -> None:
        for old in before:
            if old not in now:
                self._heard(old, False)
        for new in now:
            if new not in before:
                self._heard(new, True)

    async def _ask(self, client: Redis) -> ServerFacts | None:
        try:
            info: Any = await client.info()
        except NoPermissionError:
            return None
        return server_facts(info)

    async def keep_looking(self) -> None:
        """Checks forever, with jitter, since settings can change. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            try:
                await self.look()
            except StoreUnavailable:
                continue  # checked again once Redis is up


MOST_ARGUMENTS: Final = 8
"""Of a command's shortest form."""


async def denied_commands(client: Redis, commands: Sequence[str], key: str) -> list[str]:
    """Returns those that the user may not run on `key`. Runs none: inside MULTI, Redis checks rights and only queues.

    The connection is closed instead of EXEC. Each command is sent with more and more arguments until Redis accepts
    their number. Commands that MULTI refuses, such as SUBSCRIBE, cannot be checked.
    """
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    denied, unknown = [], list(commands)
    try:
        await connection.send_command("MULTI")
        await connection.read_response()
        for count in range(MOST_ARGUMENTS + 1):
            for command in unknown:
                await connection.send_command(*command.split("|"), *[key] * count)
            replies = [await _error_of(connection) for _ in unknown]
            denied += [command for command, reply in zip(unknown, replies, strict=True) if reply.startswith("NOPERM")]
            unknown = [name for name, reply in zip(unknown, replies, strict=True) if "number of arguments" in reply]
    finally:
        await connection.disconnect()
        await pool.release(connection)
    return sorted(denied)


async def _error_of(connection: Any) -> str:
    """Returns the error that Redis replies, or ''."""
    try:
        await connection.read_response()
    except NoPermissionError as error:
        return f"NOPERM {error}"
    except ResponseError as error:
        return str(error)
    return ""
