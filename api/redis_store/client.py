"""Opens Redis clients for a URL: a single server, the primary that Sentinels name, or a cluster.

Deadlines are short and there are no hidden retries: an outage must be noticed within milliseconds.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import unquote, urlsplit

import structlog
from redis import __version__ as redis_py_version
from redis.asyncio import ConnectionPool, Redis, Sentinel
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.driver_info import DriverInfo
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from api.cancellation import Background
from api.errors import StoreUnavailable
from api.redis_store.cluster import HealthGatedCluster, Node, SlotMap
from api.redis_store.connections import BatchingRedis, LagTolerantConnection
from api.redis_store.encryption import NO_CIPHER, TextCipher
from api.redis_store.health_gated import HealthGatedRedis, RedisHealthEvents

# -- connections -------------------------------------------------------------------------------------------------------


class TcpConnection(LagTolerantConnection, Connection):
    """A connection to a host and port."""


class UnixConnection(LagTolerantConnection, UnixDomainSocketConnection):
    """A connection to a Unix socket."""


FOLLOW_SECONDS: Final = 1.0
"""Seconds between two questions to the Sentinels for the primary."""


class SentinelTcpConnection(SentinelManagedConnection, TcpConnection):
    """A connection to the primary that the Sentinels name."""


class Tls:
    """The files for TLS, as paths of PEM files; empty: none.

    `ca_file` replaces the system's trusted certificates. `cert_file` and `key_file` identify this worker; the key may
    be in `cert_file`. The server's certificate must be valid for the host name or address in the URL.
    """

    def __init__(self, ca_file: str = "", cert_file: str = "", key_file: str = "") -> None:
        self._files = (ca_file, cert_file, key_file)
        self._context: ssl.SSLContext | None = None
        self._made_of: tuple[int, ...] = ()

    def context(self) -> ssl.SSLContext:
        """Returns the context, made once: reading the system's certificates takes 50 ms, too long for each connection.

        A changed file is read again, so that renewed certificates need no restart. Raises `OSError`.
        """
        stands = tuple(Path(name).stat().st_mtime_ns for name in self._files if name)
        if self._context is None or stands != self._made_of:
            self._context, self._made_of = tls_context(*self._files), stands
        return self._context


def tls_context(ca_file: str = "", cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """Makes a client context that requires and checks certificates. Raises `OSError`, including `SSLError`."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if cert_file:
        # Without a password, OpenSSL asks for that of an encrypted key at the terminal. An empty one is an error.
        context.load_cert_chain(cert_file, key_file or None, password="")
    return context


class TlsConnection(LagTolerantConnection, SSLConnection):
    """A connection under TLS. All connections share the context of `tls`."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super(SSLConnection, self)._connection_arguments(), "ssl": self._tls.context()}


class SentinelTlsConnection(SentinelManagedConnection, TlsConnection):
    """A connection under TLS to the primary that the Sentinels name."""


class SentinelsRefuse(MasterNotFoundError):
    """No Sentinel names a primary, and at least one refused to answer."""


class Sentinels(Sentinel):
    """Asks the Sentinels for the primary, beginning with the one that last answered.

    A Sentinel that refuses to answer counts as unreachable, and the next one is asked. redis-py takes the refusal for
    an answer of the primary, and reports only the type of each error.
    """

    def __init__(self, watchers: list[Redis]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self.sentinels = watchers

    async def discover_master(self, service_name: str) -> tuple[Any, Any]:
        """Returns host and port. Raises `MasterNotFoundError`, which counts as a lost Redis."""
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


async def _follow_primary(pool: SentinelConnectionPool) -> None:
    """Closes the connections to a primary that the Sentinels have replaced: idle ones at once, others after their use.

    The former one may be alive and answer, with what it had, until the Sentinels make it a replica.
    """
    known, log = None, structlog.get_logger("ragherd.redis")
    while True:
        with suppress(RedisError, OSError, TimeoutError):  # without Sentinels, open connections keep working
            primary = await pool.get_master_address()  # type: ignore[no-untyped-call]
            if known not in (None, primary):
                log.info("redis_primary_changed", host=primary[0], port=primary[1])
                await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
            known = primary
        await asyncio.sleep(FOLLOW_SECONDS)


def _name(sentinel: Redis) -> str:
    options = sentinel.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"


# -- clients -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The URL of Redis, and its timeouts in seconds. `tls` applies if the URL's scheme begins with `rediss`.

    `sentinel_username` and `sentinel_password` are for the Sentinels; the URL has the credentials of the primary.
    """

    url: str
    timeout: float
    connect_timeout: float
    max_connections: int
    tls: Tls = field(default_factory=Tls)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)


DRIVER: Final = DriverInfo(lib_version=redis_py_version)
"""For all connections. By itself each one reads its version from the package's metadata, which takes 2 ms."""
SENTINEL: Final = ("redis+sentinel", "rediss+sentinel")
CLUSTER: Final = ("redis+cluster", "rediss+cluster")


def connection_options(address: RedisAddress) -> dict[str, Any]:
    """The options that all connections to the address share, for `redis.asyncio.ConnectionPool`."""
    options: dict[str, Any] = {
        "connection_class": _connection_class(address),
        "socket_connect_timeout": address.connect_timeout,
        "retry": Retry(NoBackoff(), 0),
        # With these notifications on, redis-py may return a connection with an unread reply, which the next command
        # then takes for its own. They also extend timeouts.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": DRIVER,
    }
    return options | tls_options(address)


def _connection_class(address: RedisAddress) -> type[AbstractConnection]:
    """A class of `connections`, whose timeouts ignore this worker's own lag."""
    scheme = urlsplit(address.url).scheme
    if scheme.startswith("rediss"):
        return SentinelTlsConnection if scheme in SENTINEL else TlsConnection
    if scheme == "unix":
        return UnixConnection
    return SentinelTcpConnection if scheme in SENTINEL else TcpConnection


def tls_options(address: RedisAddress) -> dict[str, Any]:
    """The TLS options; empty unless the scheme begins with `rediss`."""
    return {"tls": address.tls} if urlsplit(address.url).scheme.startswith("rediss") else {}


Kind = TypeVar("Kind", bound=Redis)


def _of_pool(kind: type[Kind], **options: Any) -> Kind:
    return cast(Kind, kind.from_pool(ConnectionPool(**options)))  # redis-py's annotation says a plain `Redis`


@asynccontextmanager
async def _opened(address: RedisAddress, kind: type[Kind], **options: Any) -> AsyncIterator[Kind]:
    """A client for the server, or for the current primary according to the Sentinels."""
    options |= connection_options(address)
    if urlsplit(address.url).scheme not in SENTINEL:
        async with _of_pool(kind, **{**parse_url(address.url), **options}) as client:
            yield client
        return
    async with (
        _sentinels(address) as sentinels,
        _primary(address, sentinels, kind, options) as client,
        Background() as background,
    ):
        background.start(_follow_primary, cast(SentinelConnectionPool, client.connection_pool))
        yield client


def _sentinels(address: RedisAddress) -> Sentinels:
    return Sentinels([_watcher(address, host) for host in urlsplit(address.url).netloc.rpartition("@")[2].split(",")])


def _primary(address: RedisAddress, sentinels: Sentinel, kind: type[Kind], options: dict[str, Any]) -> Kind:
    """Parses `redis+sentinel://[user:password@]host:port,host:port/name`. The credentials are for the primary.

    With `rediss+sentinel`, connections to both the Sentinels and the servers use TLS.
    """
    parts = urlsplit(address.url)
    credentials = {"username": parts.username, "password": parts.password}
    options |= {name: unquote(value) for name, value in credentials.items() if value}
    client: Kind = sentinels.master_for(parts.path.strip("/"), redis_class=kind, **options)
    return client


def _watcher(address: RedisAddress, sentinel: str) -> Redis:
    host, _, port = sentinel.rpartition(":")
    where = {"host": host.strip("[]"), "port": int(port), "socket_timeout": address.timeout}
    credentials = {"username": address.sentinel_username, "password": address.sentinel_password}
    options = connection_options(address) | where | {name: value for name, value in credentials.items() if value}
    options["connection_class"] = TlsConnection if "tls" in options else TcpConnection
    return Redis.from_pool(ConnectionPool(**options))


@asynccontextmanager
async def short_commands(address: RedisAddress) -> AsyncIterator[BatchingRedis]:
    """A client for commands that Redis answers at once, in batches. Replies are bytes, since vectors are not text."""
    # The health-gated client limits concurrency. The pool's own limit would raise instead of waiting.
    bound = address.max_connections * 2
    opening = _opened(address, BatchingRedis, socket_timeout=address.timeout, max_connections=bound)
    async with opening as client:
        yield client


@asynccontextmanager
async def blocking_reader(address: RedisAddress, block_seconds: float, key: str = "") -> AsyncIterator[Redis]:
    """A separate client for reads that block for up to `block_seconds`.

    On a cluster it connects to the shard that has `key`, or without a key to any primary: messages reach all of them.
    Raises `StoreUnavailable` if there is none.
    """
    timeout = block_seconds + address.timeout + 1.0
    options: dict[str, Any] = {"socket_timeout": timeout, "decode_responses": True, "encoding_errors": "replace"}
    if is_cluster(address):
        async with node_client(address, await _reachable(address, key), Redis, **options) as client:
            yield client
        return
    async with _opened(address, Redis, **options) as client:
        yield client


# -- of a cluster ------------------------------------------------------------------------------------------------------


def is_cluster(address: RedisAddress) -> bool:
    """Returns whether the URL names a Redis Cluster."""
    return urlsplit(address.url).scheme in CLUSTER


def is_single(address: RedisAddress) -> bool:
    """Returns whether the URL names one server. Behind Sentinels and in a cluster, a key moves from one to another."""
    return urlsplit(address.url).scheme not in (*SENTINEL, *CLUSTER)


def seeds(address: RedisAddress) -> list[Node]:
    """The nodes in `redis+cluster://[user:password@]host:port,host:port`. `rediss+cluster` uses TLS."""
    hosts = [host.rpartition(":") for host in urlsplit(address.url).netloc.rpartition("@")[2].split(",")]
    return [Node(host.strip("[]"), int(port)) for host, _, port in hosts]


def node_client(address: RedisAddress, node: Node, kind: type[Kind], **options: Any) -> Kind:
    """A client for one node of a cluster, without I/O."""
    parts = urlsplit(address.url)
    credentials = {"username": parts.username, "password": parts.password}
    given = {name: unquote(value) for name, value in credentials.items() if value}
    fixed = {"socket_timeout": address.timeout, "max_connections": address.max_connections * 2}
    where = {"host": node.host, "port": node.port}
    return _of_pool(kind, **{**connection_options(address), **fixed, **where, **given, **options})


async def _reachable(address: RedisAddress, key: str) -> Node:
    """The node that has the key; without a key, a primary that answers. Raises `StoreUnavailable`."""
    slots = await _slots(address)
    if key:
        owner = slots.owner(key_slot(key.encode()))
        if owner is None:
            raise StoreUnavailable("No shard of the Redis Cluster has the key.")
        return owner
    for node in random.sample(sorted(slots.nodes), len(slots.nodes)):
        async with node_client(address, node, Redis) as client:
            if await _answers(client):
                return node
    raise StoreUnavailable("No shard of the Redis Cluster answers.")


async def _slots(address: RedisAddress) -> SlotMap:
    """The layout that the first answering seed reports."""
    for node in seeds(address):
        async with node_client(address, node, Redis) as client:
            try:
                reply: Any = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError, TimeoutError):
                continue
            if reply:
                return SlotMap.read(reply, node)
    raise StoreUnavailable("No node of the Redis Cluster answers.")


async def _answers(client: Redis) -> bool:
    try:
        await client.ping()
    except (RedisError, OSError, TimeoutError):
        return False
    return True


AnyHealthGated: TypeAlias = HealthGatedRedis | HealthGatedCluster

NOT_A_CLUSTER: Final = "The URL says redis+cluster://, but this Redis is not a cluster. Use redis://."
A_CLUSTER: Final = "This Redis is a cluster, and a redis:// URL reaches only one of its nodes. Use redis+cluster://."


@asynccontextmanager
async def open_client(
    address: RedisAddress,
    events: Callable[[str], RedisHealthEvents],
    mismatch: Callable[[str], None],
    probe: str,
    texts: TextCipher = NO_CIPHER,
) -> AsyncIterator[AnyHealthGated]:
    """Opens the health-gated client for an address, and closes it at the end. No I/O before `check`.

    `events` returns the events of a server, by the name of its shard, or '' without a cluster. `mismatch` is called
    with a message if the URL is for another kind of Redis. `probe`: see `HealthGatedRedis`; a cluster's shards do not
    need it. `texts` encrypts the texts that are stored there.
    """
    if is_cluster(address):
        opened = partial(node_client, address, kind=BatchingRedis)
        cluster = HealthGatedCluster(
            opened, seeds(address), address.max_connections, events, lambda: mismatch(NOT_A_CLUSTER)
        )
        cluster.texts = texts
        async with aclosing(cluster):
            yield cluster
        return
    async with short_commands(address) as client:
        redis = HealthGatedRedis(client, address.max_connections, events(""), probe=probe)
        redis.texts = texts
        redis.on_recovery(partial(_check_alone, client, cache(mismatch)))
        yield redis


async def _check_alone(client: Redis, report_once: Callable[[str], None]) -> None:
    """Raises `StoreUnavailable` if the server is part of a cluster: it would refuse most commands."""
    try:
        found = await client.info("cluster")
    except NoPermissionError:
        return
    if found.get("cluster_enabled"):
        report_once(A_CLUSTER)
        raise StoreUnavailable(A_CLUSTER)
