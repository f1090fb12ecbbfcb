"""Redis as a queue: one thread that does one piece of work after the other, in the order in which they came."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import simpy

Service = Callable[[random.Random, float], float]


def as_measured(_: random.Random, mean: float) -> float:
    """Each piece of work takes what it takes on average; those of different kinds differ."""
    return mean


def exponential(chance: random.Random, mean: float) -> float:
    """At random around the same mean: the textbook's M/M/1."""
    return chance.expovariate(1 / mean) if mean else 0.0


class RedisServer:
    """Times in seconds. Of one thread and one line it is known on arrival when a piece of work will be done."""

    def __init__(self, env: simpy.Environment, chance: random.Random, service: Service = as_measured) -> None:
        self._env = env
        self._chance = chance
        self._service = service
        self._free_at = 0.0
        self._since = 0.0
        self.busy = 0.0
        self.done = 0
        self.waits = array("d")
        """Seconds in the line, of every piece of work since `begin`."""

    def begin(self) -> None:
        """Counts from now on."""
        self._since, self.busy, self.done = self._env.now, 0.0, 0
        self.waits = array("d")

    def submit(self, seconds: float) -> float:
        """Puts a piece of work into the line; gives how long from now until it is done."""
        now = self._env.now
        started, took = max(now, self._free_at), self._service(self._chance, seconds)
        self._free_at = started + took
        self.busy += took
        self.done += 1
        self.waits.append(started - now)
        return self._free_at - now

    @property
    def utilisation(self) -> float:
        """The share of the time since `begin` that it was busy; what stands in line counts from when it came."""
        passed = self._env.now - self._since
        return min(1.0, self.busy / passed) if passed else 0.0
