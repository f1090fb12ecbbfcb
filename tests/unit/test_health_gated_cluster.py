"""The health-gated cluster client adopts a new layout even if connections to old shards fail."""

from __future__ import annotations

from typing import Any, Self

from redis.exceptions import TimeoutError as RedisTimeoutError

from api.redis_store.cluster import SLOTS, HealthGatedCluster, Node

A, B, C = (Node("127.0.0.1", port) for port in (1, 2, 3))


class FakeCluster:
    """A cluster whose connections never close in time, as with TLS to an unreachable server."""

    def __init__(self, *owners: Node) -> None:
        self.owners = owners
        self.closed: list[Node] = []

    def client(self, node: Node) -> Any:
        return Client(self, node)


class Client:
    def __init__(self, servers: FakeCluster, node: Node) -> None:
        self._servers = servers
        self._node = node

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def execute_command(self, command: str) -> Any:
        if command == "CLUSTER INFO":
            return {"cluster_state": "ok"}
        size, owners = SLOTS // len(self._servers.owners), self._servers.owners
        return [[size * at, size * (at + 1) - 1, [owner.host, owner.port]] for at, owner in enumerate(owners)]

    async def aclose(self) -> None:
        self._servers.closed.append(self._node)
        raise RedisTimeoutError("Timed out closing connection after 0.2")


async def test_shards_whose_connections_do_not_close_are_dropped() -> None:
    servers = FakeCluster(A, B)
    gate = HealthGatedCluster(servers.client, [C], 8)
    assert await gate.check()
    servers.owners = (C,)
    await gate.look(gate.slots)
    assert await gate.check()
    assert (gate.shards, sorted(servers.closed)) == ((1, 1), [A, B])
