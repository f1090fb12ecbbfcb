"""A Redis Cluster of three primaries with the search module and without replicas, so a dead shard's data is
unavailable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise

import redis
from redis.crc import key_slot

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.embedded.service_plan import free_port
from tests.support.waiting import wait_until

SLOTS = 16384
REFUSALS = {"CROSSSLOT", "MOVED", "ASK", "TRYAGAIN"}


@dataclass(frozen=True)
class Cluster:
    """The servers in the order of their slots. A killed server can be restarted with `start`."""

    servers: list[EmbeddedRedis]

    @property
    def url(self) -> str:
        """The value for REDIS_URL."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def owner(self, key: str) -> EmbeddedRedis:
        """Returns the server that has a key. Slots must not move in the test."""
        ranges = _ranges(len(self.servers))
        at = key_slot(key.encode())
        return next(server for server, (first, last) in zip(self.servers, ranges, strict=True) if first <= at <= last)

    def start(self) -> None:
        """Starts all servers, and returns when each sees a healthy cluster."""
        for server in self.servers:
            server.start()
        wait_until(lambda: all(_is_joined(server.port, len(self.servers)) for server in self.servers), timeout=30)

    def flush(self) -> None:
        """Deletes all keys and indexes, and resets the error counts."""
        for server in self.servers:
            with redis.Redis(port=server.port) as client:
                client.flushall()
                client.config_resetstat()

    def refused(self) -> dict[str, int]:
        """Returns refused commands and scripts with keys in several slots, by error, since the last `flush`."""
        found: dict[str, int] = {}
        for server in self.servers:
            with redis.Redis(port=server.port) as client, suppress(redis.ConnectionError):
                for name, counted in client.info("errorstats").items():
                    if name.removeprefix("errorstat_") in REFUSALS:
                        found[name] = found.get(name, 0) + int(counted["count"])
        return found

    def forget_denied(self) -> None:
        """Resets what the ACL denied so far."""
        for server in self.servers:
            with redis.Redis(port=server.port) as client:
                client.acl_log_reset()

    def denied(self, user: str) -> list[str]:
        """Returns what living servers denied a user since then."""
        found: list[str] = []
        for server in self.servers:
            with redis.Redis(port=server.port) as client, suppress(redis.ConnectionError):
                found += [entry["object"] for entry in client.acl_log() if entry["username"] == user]
        return found


@contextmanager
def running_cluster(size: int = 3, *, persistent: bool = False, arguments: Sequence[str] = ()) -> Iterator[Cluster]:
    """Runs a cluster until the context ends. If `persistent`, a killed server keeps its data for a restart.

    `arguments` are added for each server.
    """
    with ExitStack() as stack:
        buses = [free_port() for _ in range(size)]
        servers = [
            stack.enter_context(embedded_redis(persistent=persistent, arguments=[*_options(bus), *arguments]))
            for bus in buses
        ]
        for epoch, (server, (first, last)) in enumerate(zip(servers, _ranges(size), strict=True), start=1):
            with redis.Redis(port=server.port) as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        with redis.Redis(port=servers[0].port) as client:
            for server, bus in zip(servers[1:], buses[1:], strict=True):
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        cluster = Cluster(servers)
        cluster.start()
        yield cluster


@contextmanager
def replica(cluster: Cluster, of: EmbeddedRedis) -> Iterator[EmbeddedRedis]:
    """Starts a replica that takes over when its primary dies."""
    bus = free_port()
    with embedded_redis(persistent=False, arguments=_options(bus)) as server:
        with redis.Redis(port=server.port) as client, redis.Redis(port=of.port) as primary:
            name = primary.execute_command("CLUSTER", "MYID").decode()
            primary.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
            wait_until(lambda: _is_joined(server.port, len(cluster.servers) + 1), timeout=30)
            client.execute_command("CLUSTER", "REPLICATE", name)
            wait_until(lambda: client.info("replication").get("master_link_status") == "up", timeout=30)
        yield server


def _options(bus: int) -> list[str]:
    """`--cluster-require-full-coverage no` keeps the living shards available when one is dead."""
    timing = ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
    return ["--cluster-enabled", "yes", "--cluster-port", str(bus), *timing]


def _ranges(size: int) -> list[tuple[int, int]]:
    edges = [SLOTS * number // size for number in range(size + 1)]
    return [(first, end - 1) for first, end in pairwise(edges)]


def _is_joined(port: int, size: int) -> bool:
    """Returns whether this server sees all others alive."""
    with redis.Redis(port=port) as client:
        info = client.execute_command("CLUSTER INFO")
    in_order = info["cluster_state"] == "ok" and int(info["cluster_slots_ok"]) == SLOTS
    return in_order and int(info["cluster_known_nodes"]) == size
