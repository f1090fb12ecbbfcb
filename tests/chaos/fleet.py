"""The fleet as hosts: four replicas, Redis, a stand-in for Ollama, the load balancer, the client, each on its own."""

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
"""For one command, and for connecting."""
BREAKER_SECONDS = 2.0
"""How long the breaker stays open at first."""
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
    """One gunicorn on a host of its own. It may be stopped and started again."""

    def __init__(self, host: Host, folder: Path, settings: dict[str, str]) -> None:
        self.host = host
        self.name = host.name
        self.url = f"http://{host.address}:{settings['PORT']}"
        self._folder = folder
        self._settings = {**settings, "HOST": host.address, "WORKERS": str(WORKERS[host.name])}
        self._starts = 0
        self.gunicorn = self._started()

    def start(self) -> None:
        """Another process in place of the one that ended."""
        self.gunicorn.client.close()
        self.gunicorn = self._started()

    def reload(self) -> Callable[[], bool]:
        """SIGHUP. Whether all workers have been replaced since, and those that were are gone."""
        before = self.gunicorn.workers()
        self.gunicorn.process.send_signal(signal.SIGHUP)
        count = WORKERS[self.name]
        return lambda: len(now := self.gunicorn.workers()) == count and not now & before

    def _started(self) -> Gunicorn:
        self._starts += 1
        log = self._folder / f"{self.name}-{self._starts}.log"
        return Gunicorn("api.asgi:app", log, self._settings, before=self.host.enter)

    def ask(self, question: str, *, fresh: bool = False, **more: Any) -> httpx.Response:
        """A question, on a connection of its own. `fresh`: neither read from the cache nor stored."""
        body = {"question": question, **more}
        headers = NO_STORE if fresh else {}
        return self.gunicorn.client.post(f"{self.url}/query", json=body, headers=headers, timeout=60)

    def cache_status(self, question: str) -> str:
        """How the cache took part in the answer; the status of a refusal."""
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
    """Everything that runs. The test's own thread is on the client's host."""

    replicas: Sequence[Replica]
    balancer: LoadBalancer
    ollama: StubProcess
    redis: Host
    model: Host
    redis_url: str

    def workers(self) -> int:
        """Live workers, as Redis has them."""
        with redis.Redis.from_url(self.redis_url) as client:
            return int(client.zcard("rag:workers"))

    def calm(self) -> None:
        """As at the start: nothing cut, Ollama well, Redis empty, every worker known, the breaker closed."""
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
        """Whether its workers look where the others store: after FLUSHALL index and digests are back in seconds."""
        return all(replica.cache_status("Everything is calm again?") == "hit" for _ in range(2 * WORKERS[replica.name]))


@contextmanager
def running_fleet(folder: Path) -> Iterator[Fleet]:
    """All of it, ready; at the end none of it is left."""
    with ExitStack() as stack:
        hosts = stack.enter_context(network())
        redis_host, model_host, front, client = (hosts.host(name) for name in ("redis", "ollama", "lb", "client"))
        stack.enter_context(client.inhabited())
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
    """A Redis with the search module on `host`; its URL."""
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
