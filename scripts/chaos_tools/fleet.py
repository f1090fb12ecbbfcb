"""The fleet under test, as processes: two replicas of two workers, a load balancer, Redis, a stub of Ollama.

Only fleets whose plan needs it have Sentinels, a small disk for Redis, or clocks that can be moved.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from redis import Redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from scripts.chaos_tools import soak_start
from scripts.chaos_tools.plan import CLOCK, FAILOVER, MEMORY_LIMIT
from tests.stub_ollama import StubProcess, stub_process
from tests.support.balancer import Balancer, running_balancer
from tests.support.gunicorn_process import MODULE, Gunicorn, all_are_gone, children, free_port
from tests.support.redis_sentinel import Failover, sentinel_failover
from tests.support.rollout_fleet import ROOT, Patch, Release, release
from tests.support.waiting import wait_until

TENANTS: Final = {"birch": "key-birch", "cedar": "key-cedar"}
"""API keys by tenant."""
ADMIN_KEY: Final = "key-admin"
REPLICAS, WORKERS = 2, 2
PROBES: Final = 2
DISK: Final = "128m"
"""Size of Redis's disk, where it has its own."""
DOWN_AFTER: Final = 4.0
"""Seconds without a reply until Sentinels replace a primary. On a busy machine, one second finds living ones dead."""
CLOCK_SECONDS: Final = 1
"""Seconds after which processes see that their clock was moved."""
SETTINGS: Final = {
    "API_KEYS": ",".join(f"{tenant}={key}" for tenant, key in TENANTS.items()),
    "ADMIN_KEYS": ADMIN_KEY,
    "WORKERS": str(WORKERS),
    "EMBEDDER": "ollama",
    "REDIS_TIMEOUT": "1",
    "REDIS_CONNECT_TIMEOUT": "1",
    "REDIS_REQUEST_BUDGET": "1.5",
    "OLLAMA_CONNECT_TIMEOUT": "1",
    "OLLAMA_FIRST_TOKEN_TIMEOUT": "2",
    "OLLAMA_COLD_FIRST_TOKEN_TIMEOUT": "4",
    "OLLAMA_INTER_TOKEN_TIMEOUT": "2",
    "OLLAMA_TOTAL_TIMEOUT": "8",
    "EMBED_TIMEOUT": "2",
    "CIRCUIT_BREAKER_TIMEOUT": "1",
    "CIRCUIT_BREAKER_HALF_OPEN_MAX_CALLS": str(PROBES),
    "WORKER_MEMORY_LIMIT": f"{MEMORY_LIMIT}Mi",
    "DRAIN_DELAY": "1",
    "GRACEFUL_TIMEOUT": "10",
}
DEFECTS: Final[dict[str, Patch]] = {
    "flights without a lifetime": (
        "api/redis_store/stores/flights.lua",
        "redis.call('HDEL', flight, FOLLOWER .. worker)\nredis.call('PEXPIRE', flight, lease)",
        "redis.call('HDEL', flight, FOLLOWER .. worker)",
    ),
}
"""Defects that the fleet's copy of the source can have, to show that they are found."""
DEADLINE: Final = 14.0
"""Seconds in which every request must end: Ollama's total timeout, embedding, the cache's budget, a busy machine."""


@dataclass
class Fleet:
    """Running processes. `replicas` are those that should run."""

    folder: Path
    balancer: Balancer
    ollama: StubProcess
    server: EmbeddedRedis | Failover
    releases: Sequence[Release]
    has_clocks: bool = False
    """Whether the clocks of replicas can be moved."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Added to `SETTINGS`."""
    replicas: list[Gunicorn] = field(default_factory=list)
    started: list[Gunicorn] = field(default_factory=list)
    leaving: set[int] = field(default_factory=set)
    """Replicas that get no new connections, by process ID."""
    orphans: dict[int, str] = field(default_factory=dict)
    """The workers of killed masters: their command lines by process ID."""
    clocks: dict[int, Path] = field(default_factory=dict)
    """By process ID, the file that says how many seconds the clock of a replica is ahead."""
    _balancing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def redis(self) -> EmbeddedRedis:
        """The only Redis. Raises `RuntimeError` in a fleet with Sentinels."""
        if isinstance(self.server, Failover):
            raise RuntimeError("this fleet has several servers of Redis")
        return self.server

    @property
    def sentinels(self) -> Failover:
        """The servers with Sentinels. Raises `RuntimeError` in a fleet with one Redis."""
        if isinstance(self.server, EmbeddedRedis):
            raise RuntimeError("this fleet has one server of Redis")
        return self.server

    @property
    def url(self) -> str:
        """Where clients ask."""
        return self.balancer.url

    def client(self) -> Redis:
        """Opens a client of Redis for the injector."""
        failover = self.server if isinstance(self.server, Failover) else None
        return Redis(port=failover.primary_port() if failover else self.redis.port, socket_timeout=5)

    def start(self, version: int = 0) -> Gunicorn:
        """Starts a replica of one of the releases."""
        folder = self.releases[version].folder
        settings = {
            **SETTINGS,
            **self.settings,
            "REDIS_URL": self.server.url,
            "OLLAMA_BASE_URL": self.ollama.base_url,
            "METRICS_PORT": free_port(),
            "PYTHONPATH": f"{folder}:{ROOT}",
        }
        clock = self.folder / f"clock-{len(self.started)}"
        if self.has_clocks:
            clock.write_text("+0")
            settings |= moved_by(clock)
            settings["PYTHONPATH"] += f":{MOVED_CLOCK}"
        log = self.folder / f"replica-{len(self.started)}.log"
        replica = Gunicorn("scripts.chaos_tools.grown:app", log, settings, self.folder, configuration=MODULE)
        self.clocks[replica.pid] = clock
        self.started.append(replica)
        return replica

    def replace(self, number: int, version: int, *, kill: bool) -> None:
        """Replaces a replica. Without `kill` it leaves the load balancer first, and ends its requests."""
        old = self.replicas[number]
        if kill:
            self.orphans |= children(old.pid)
            old.process.kill()
            old.process.wait(10)
        new = self.start(version)
        wait_until(new.is_complete, timeout=60)
        self.replicas[number] = new
        if not kill:
            self.leaving.add(old.pid)
            self.balance()
            old.process.terminate()
            old.process.wait(30)

    def balance(self) -> None:
        """Sends new connections to the replicas that are ready. A list that is being made is finished first."""
        with self._balancing:
            ready = [one for one in self.replicas if one.pid not in self.leaving and _is_ready(one)]
            if ready:
                self.balancer.send_to([one.url() for one in ready])


def _is_ready(replica: Gunicorn) -> bool:
    try:
        return replica.process.poll() is None and replica.get("/health/ready", timeout=1).is_success
    except (httpx.HTTPError, IndexError, RuntimeError):
        return False


def clock_library() -> Path | None:
    """Returns the library that moves the clock of a process, if it is installed.

    Its variant for threads has more locks: a process that is forked while a thread holds one never starts.
    """
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


MOVED_CLOCK: Final = Path(__file__).with_name("moved_clock")
"""Has what a process of Python needs to live with the library."""


def moved_by(clock: Path) -> dict[str, str]:
    """The variables with which a process reads from a file how far its wall clock is ahead."""
    return {
        "LD_PRELOAD": str(clock_library()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": str(CLOCK_SECONDS),
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@contextmanager
def _own_disk(folder: Path) -> Iterator[None]:
    """Gives Redis a small disk, if nobody else sees it."""
    folder.mkdir()
    if not is_isolated():
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def _server(folder: Path, kinds: Collection[str]) -> Iterator[EmbeddedRedis | Failover]:
    with ExitStack() as stack:
        if FAILOVER in kinds:
            yield stack.enter_context(sentinel_failover(folder, down_after=DOWN_AFTER))
            return
        stack.enter_context(_own_disk(folder / "redis"))
        arguments = ("--appendfsync", "always")
        yield stack.enter_context(
            embedded_redis(folder / "redis", log=folder / "redis.log", arguments=arguments, port=int(free_port()))
        )


@contextmanager
def running_fleet(folder: Path, defect: str | None = None, kinds: Collection[str] = ()) -> Iterator[Fleet]:
    """Starts the fleet for faults of these kinds, and returns when every worker is ready. Ends all of it afterwards."""
    with ExitStack() as stack:
        server = stack.enter_context(_server(folder, kinds))
        ollama = stack.enter_context(stub_process())
        balancer = stack.enter_context(running_balancer())
        patches = [DEFECTS[defect]] if defect else []
        current = release(folder / "current", "9.9.8", patches) if defect else Release("", ROOT)
        releases = [current, release(folder / "next", "9.9.9", patches)]
        settings = {} if kinds else soak_start.SETTINGS
        fleet = Fleet(folder, balancer, ollama, server, releases, CLOCK in kinds, settings)
        if not kinds:
            with fleet.client() as client:
                soak_start.fill(client)
        stack.callback(_ended, fleet)
        ollama.behaviour(numbered=True)
        fleet.replicas = [fleet.start() for _ in range(REPLICAS)]
        for replica in fleet.replicas:
            wait_until(replica.is_complete, timeout=90)
        fleet.balance()
        stack.enter_context(_checked_health(fleet))
        yield fleet


def is_isolated() -> bool:
    """Returns whether this process has its own network, as `scripts/chaos` gives it to root."""
    return os.environ.get("CHAOS_NETWORK") == "own"


@contextmanager
def _checked_health(fleet: Fleet) -> Iterator[None]:
    """Takes replicas that are not ready out of the load balancer, as health checks do."""
    done = threading.Event()

    def check() -> None:
        while not done.wait(0.3):
            with suppress(OSError):
                fleet.balance()

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def _ended(fleet: Fleet) -> None:
    left = dict(fleet.orphans)
    for replica in fleet.started:
        left |= children(replica.pid)
        replica.client.close()
        replica.process.kill()
        replica.process.wait(10)
    if fleet.has_clocks:
        for pid in filter(_never_ran, left):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(partial(all_are_gone, left), timeout=20)


def _never_ran(pid: int) -> bool:
    """Whether a process has used no CPU time: a lock of libfaketime keeps it in `fork`."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[11] == fields[12] == "0"


def pause(seconds: float) -> None:
    """Lets a fault last."""
    time.sleep(seconds)
