"""A primary, a replica and three Sentinels, for tests of failover."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from api.embedded.redis_server import find_redis_binary
from api.embedded.service_plan import free_port
from tests.support.waiting import wait_until

NAME = "primary"


@dataclass
class Failover:
    """The running servers. `url` is for the service."""

    url: str
    servers: dict[int, subprocess.Popen[bytes]]
    """The servers by port."""
    start_replica: Callable[[int, int], subprocess.Popen[bytes]]
    """Starts one on a port, as a replica of the one on another port."""
    sentinel_port: int
    sentinel_password: str = ""

    @property
    def primary(self) -> subprocess.Popen[bytes]:
        """The server that began as the primary."""
        return next(iter(self.servers.values()))

    def primary_port(self) -> int:
        """Returns the port of the primary, as a Sentinel reports it."""
        with _client(self.sentinel_port, self.sentinel_password) as sentinel:
            found = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
            return int(found[1])

    def fail_over(self, timeout: float = 60) -> None:
        """Kills the primary, and starts it again as a replica once Sentinel has promoted the other server."""
        before = self.primary_port()
        self.servers[before].kill()
        self.servers[before].wait()
        wait_until(lambda: self.primary_port() != before, timeout=timeout)
        after = self.primary_port()
        self.servers[before] = self.start_replica(before, after)
        wait_until(lambda: _is_followed(after), timeout=timeout)


@contextmanager
def sentinel_failover(
    folder: Path, *, password: str = "", users: Sequence[str] = (), down_after: float = 1.0
) -> Iterator[Failover]:
    """Runs servers with the search module, and Sentinels that consider the primary down after `down_after` seconds.

    `password` and `users` (lines of an ACL) belong to the Sentinels. Logs are written to `redis-<port>.log`.
    """
    binary = find_redis_binary()
    with ExitStack() as stack:

        def start(*arguments: str, port: int) -> subprocess.Popen[bytes]:
            command = [str(binary.server), *arguments]
            with (folder / f"redis-{port}.log").open("ab") as log:
                process = stack.enter_context(subprocess.Popen(command, cwd=folder, stdout=log))
            stack.callback(process.kill)
            return process

        first, second, *watchers = (free_port() for _ in range(5))
        module = ["--loadmodule", str(binary.search_module), "--save", "", "--repl-diskless-sync-delay", "0"]

        def replica(port: int, of: int) -> subprocess.Popen[bytes]:
            return start("--port", str(port), *module, "--replicaof", f"127.0.0.1 {of}", port=port)

        servers = {first: start("--port", str(first), *module, port=first), second: replica(second, first)}
        for port in watchers:
            config = folder / f"sentinel-{port}.conf"
            config.write_text(
                f"port {port}\nsentinel monitor {NAME} 127.0.0.1 {first} 2\n"
                f"sentinel down-after-milliseconds {NAME} {int(down_after * 1000)}\n"
                f"sentinel failover-timeout {NAME} 5000\n"
                + (f"requirepass {password}\n" if password else "")
                + "".join(f"{user}\n" for user in users)
            )
            start(str(config), "--sentinel", port=port)
        wait_until(lambda: all(_sees_all(port, password) for port in watchers), timeout=30)
        hosts = ",".join(f"127.0.0.1:{port}" for port in watchers)
        yield Failover(f"redis+sentinel://{hosts}/{NAME}", servers, replica, watchers[0], password)


def _client(port: int, password: str) -> redis.Redis:
    return redis.Redis(port=port, password=password or None, decode_responses=True)


def _is_followed(port: int) -> bool:
    """Returns whether the server is a primary with a replica that is up to date."""
    try:
        with _client(port, "") as client:
            state = client.info("replication")
    except redis.RedisError:
        return False
    return bool(state["role"] == "master" and state.get("slave0", {}).get("state") == "online")


def _sees_all(port: int, password: str) -> bool:
    """Returns whether this Sentinel knows the replica and the other two."""
    try:
        with _client(port, password) as client:
            state = client.execute_command("SENTINEL", "MASTER", NAME)
    except redis.RedisError:
        return False
    facts = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
    return (str(facts["num-slaves"]), str(facts["num-other-sentinels"])) == ("1", "2")
