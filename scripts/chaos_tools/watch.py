"""Watches the fleet from outside: counters, keys without a lifetime, memory and descriptors."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import httpx
import redis

from scripts.chaos_tools.fleet import Fleet
from scripts.chaos_tools.inject import descriptors
from tests.integration.test_redis_keys import Listed, listed
from tests.support.gunicorn_process import Gunicorn

_TASKS: Final = re.compile(r"^ragherd_event_loop_tasks (\S+)$", re.MULTILINE)
_COUNTER: Final = re.compile(r"^(\w+_(?:total|count)(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)

SERVED: Final = b"rag:served:"
KEYS: Final = 1000
"""How many keys are asked at a time whether they have a lifetime."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet's use of resources at one moment (s). Memory in bytes; sums over all workers.

    `keys` are those without `served`: each answer leaves one of these, so their number follows the load.
    """

    at: float
    memory: float
    descriptors: float
    redis_memory: float
    keys: float
    tasks: float
    served: float = 0


@dataclass
class Watch:
    """What was seen. `wrong`: counters that fell, and keys that should have a lifetime and have none."""

    fleet: Fleet
    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _counters: dict[int, dict[str, float]] = field(default_factory=dict)
    _rows: list[Listed] = field(default_factory=listed)

    def look(self) -> None:
        """Takes one sample. Leaves out what does not answer at this moment."""
        tasks = sum(self._check_counters(replica) for replica in list(self.fleet.replicas))
        with suppress(redis.RedisError), self.fleet.client() as client:
            memory, keys = int(client.info("memory")["used_memory"]), int(client.dbsize())
            served = self._check_lifetimes(client)
            workers = [pid for replica in list(self.fleet.replicas) for pid in replica.workers()]
            used = [_resources(pid) for pid in workers]
            resident, open_files = sum(one[0] for one in used), sum(one[1] for one in used)
            self.samples.append(Sample(time.monotonic(), resident, open_files, memory, keys - served, tasks, served))

    def _check_counters(self, replica: Gunicorn) -> int:
        """Compares a replica's counters with those before. Returns how many tasks it has."""
        try:
            text = replica.metrics()
        except (httpx.HTTPError, RuntimeError):
            return 0
        now = {name: float(value) for name, value in _COUNTER.findall(text)}
        before = self._counters.get(replica.pid, {})
        fallen = [name for name, value in before.items() if name in now and now[name] < value]
        self.wrong += [f"{name} fell from {before[name]:g} to {now[name]:g}" for name in fallen]
        self._counters[replica.pid] = {**before, **now}
        return sum(int(float(count)) for count in _TASKS.findall(text))

    def _check_lifetimes(self, client: redis.Redis) -> int:
        """Returns the number of keys that answers have left for votes."""
        scanned, served = client.scan_iter(count=KEYS), 0
        while keys := list(islice(scanned, KEYS)):
            transient = [key for key in keys if self._needs_lifetime(key.decode())]
            with client.pipeline(transaction=False) as pipeline:
                for key in transient:
                    pipeline.pttl(key)
                lifetimes = pipeline.execute()
            without = [key for key, left in zip(transient, lifetimes, strict=True) if left == -1]
            self.wrong += [f"{key.decode()} has no lifetime" for key in without]
            served += sum(key.startswith(SERVED) for key in keys)
        return served

    def _needs_lifetime(self, name: str) -> bool:
        row = next((row for row in self._rows if row.pattern.fullmatch(name)), None)
        return row is not None and row.lifetime is not None


def _resources(pid: int) -> tuple[int, int]:
    """Resident bytes and open descriptors of a process; zeros if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), descriptors(pid)
    except (OSError, IndexError):
        return 0, 0
