"""A fleet of hosts: four replicas, Redis, a stub of Ollama, the load balancer and the client, each on its own host."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from api.embedded.redis_server import find_redis_binary
from tests.chaos.hosts import Host, Network, network
from tests.chaos.load_balancer import LoadBalancer, load_balancer
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn
from tests.support.waiting import wait_until

WORKERS = {"r1": 2, "r2": 1, "r3": 2, "r4": 1}
REDIS_SECONDS = 0.5
"""Timeout of a command, and of connecting."""
BREAKER_SECONDS = 2.0
"""Initial open time of the breaker."""
SETTINGS = {
    "PORT": "8001",
    "ADMIN_KEYS": "chaos",
    "ALLOW_ANONYMOUS": "true",
    "REDIS_TIMEOUT": str(REDIS_SECONDS),
    "REDIS_CONNECT_TIMEOUT": str(REDIS_SECONDS),
    "REDIS_REQUEST_BUDGET": "0.6",
    "OLLAMA_CONNECT_TIMEOUT": "1",
    "OLLAMA_FIRST_TOKEN_TIMEOUT": "2",
    "OLLAMA_COLD_FIRST_TOKEN_TIMEOUT": "4",
    "OLLAMA_INTER_TOKEN_TIMEOUT": "2",
    "OLLAMA_TOTAL_TIMEOUT": "8",
    "EMBED_TIMEOUT": "1",
    "CIRCUIT_BREAKER_TIMEOUT": str(BREAKER_SECONDS),
    "DRAIN_DELAY": "1.5",
    "GRACEFUL_TIMEOUT": "10",
}
NO_STORE = {"Cache-Control": "no-store"}


class Replica:
    """One gunicorn on one host. It can be stopped and restarted."""

    def __init__(self, host: Host, folder: Path, settings: dict[str, str]) -> None:
        self.host = host
        self.name = host.name
        self.url = f"http://{host.address}:{settings['PORT']}"
        self._folder = folder
        self._settings = {**settings, "HOST": host.address, "WORKERS": str(WORKERS[host.name])}
        self._starts = 0
        self.gunicorn = self._started()

    def start(self) -> None:
        """Starts a new process in place of the one that ended."""
        self.gunicorn.client.close()
        self.gunicorn = self._started()

    def reload(self) -> Callable[[], bool]:
        """Sends SIGHUP. Returns a check whether all workers were replaced and the old ones are gone."""
        before = self.gunicorn.workers()
        self.gunicorn.process.send_signal(signal.SIGHUP)
        count = WORKERS[self.name]
        return lambda: len(now := self.gunicorn.workers()) == count and not now & before

    def _started(self) -> Gunicorn:
        self._starts += 1
        log = self._folder / f"{self.name}-{self._starts}.log"
        return Gunicorn("api.asgi:app", log, self._settings, before=self.host.enter)

    def ask(self, question: str, *, fresh: bool = False, **more: Any) -> httpx.Response:
        """Asks a question over a new connection. `fresh`: do not use the cache."""
        body = {"question": question, **more}
        headers = NO_STORE if fresh else {}
        return self.gunicorn.client.post(f"{self.url}/query", json=body, headers=headers, timeout=60)

    def cache_status(self, question: str) -> str:
        """Returns the cache status of the answer, or the HTTP status of an error."""
        response = self.ask(question)
        return str(response.json()["cache"]["status"]) if response.is_success else str(response.status_code)

    def breaker(self) -> dict[str, Any]:
        found: dict[str, Any] = self.gunicorn.get("/api/circuit-breaker/metrics").json()
        return found

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.gunicorn.get("/health").json()
        return found

    def admin(self, action: str) -> None:
        """Overrides the breaker."""
        headers = {"Authorization": "Bearer chaos"}
        url = f"{self.url}/api/circuit-breaker/{action}"
        assert self.gunicorn.client.post(url, headers=headers).is_success


@dataclass(frozen=True)
class Fleet:
    """All hosts of the fleet. The test's thread runs on the client's host."""

    replicas: Sequence[Replica]
    balancer: LoadBalancer
    ollama: StubProcess
    redis: Host
    model: Host
    redis_url: str

    def workers(self) -> int:
        """Returns the number of live workers according to Redis."""
        with redis.Redis.from_url(self.redis_url) as client:
            return int(client.zcard("rag:workers"))

    def restore(self) -> None:
        """Restores the initial state: network intact, Ollama healthy, Redis empty, all workers registered, breaker
        closed.
        """
        self.ollama.behaviour()
        for replica in self.replicas:
            replica.host.heal()
        wait_until(lambda: all(replica.health()["database"] for replica in self.replicas), timeout=30)
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()
        wait_until(lambda: self.workers() == sum(WORKERS.values()), timeout=30)
        self.replicas[0].admin("reset")
        wait_until(lambda: all(replica.breaker()["state"] == "CLOSED" for replica in self.replicas), timeout=30)
        wait_until(lambda: self.balancer.up() == set(WORKERS), timeout=30)
        self.replicas[0].ask("Is everything calm again?")
        wait_until(lambda: all(self._agrees(replica) for replica in self.replicas), timeout=30)

    def _agrees(self, replica: Replica) -> bool:
        """Returns whether workers look up answers where others store them. After FLUSHALL the index is rebuilt within
        seconds.
        """
        return all(replica.cache_status("Everything is calm again?") == "hit" for _ in range(2 * WORKERS[replica.name]))


@contextmanager
def running_fleet(folder: Path) -> Iterator[Fleet]:
    """Starts the fleet and waits until it is ready. Removes everything at the end."""
    with ExitStack() as stack:
        hosts = stack.enter_context(network())
        redis_host, model_host, front, client = (hosts.host(name) for name in ("redis", "ollama", "lb", "client"))
        stack.enter_context(client.entered())
        redis_url = stack.enter_context(running_redis(redis_host, folder))
        ollama = stack.enter_context(stub_process(11434, model_host.address, model_host.enter))
        settings = {**SETTINGS, "REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url}
        replicas = [stack.enter_context(running_replica(hosts, name, folder, settings)) for name in WORKERS]
        wait_until(lambda: all(replica.gunicorn.is_ready() for replica in replicas), timeout=60)
        addresses = {replica.name: replica.url.removeprefix("http://") for replica in replicas}
        balancer = stack.enter_context(load_balancer(front, addresses, folder))
        yield Fleet(replicas, balancer, ollama, redis_host, model_host, redis_url)


@contextmanager
def running_replica(hosts: Network, name: str, folder: Path, settings: dict[str, str]) -> Iterator[Replica]:
    replica = Replica(hosts.host(name), folder, settings)
    try:
        yield replica
    finally:
        replica.gunicorn.client.close()
        replica.gunicorn.process.kill()
        replica.gunicorn.process.wait(5)


@contextmanager
def running_redis(host: Host, folder: Path) -> Iterator[str]:
    """Runs a Redis with the search module on `host`. Yields its URL."""
    binary = find_redis_binary()
    arguments = ["--bind", host.address, "--protected-mode", "no", "--save", "", "--dir", str(folder)]
    command = [*host.enter, str(binary.server), *arguments, "--loadmodule", str(binary.search_module)]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"redis://{host.address}:6379"
    try:
        wait_until(lambda: _answers(url), timeout=30)
        yield url
    finally:
        process.kill()
        process.wait(5)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
