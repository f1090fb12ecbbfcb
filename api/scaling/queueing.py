"""Closed forms of queues: who waits, and how long."""

from __future__ import annotations

import math


def in_flight(a_second: float, seconds: float) -> float:
    """Little's law: how many are under way."""
    return a_second * seconds


def servers_for(load: float, utilisation: float) -> int:
    """How many servers carry so much work (seconds of work a second) without being busier than that; at least 1."""
    return max(1, math.ceil(load / utilisation - 1e-9))


def erlang_c(load: float, servers: int) -> float:
    """The share of arrivals at random that find `servers` all busy; 1 where they can not keep up."""
    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    # One over Erlang's B, as a sum that is broken off where its terms no longer count: servers may be billions.
    term = total = 1.0
    for number in range(servers):
        term *= (servers - number) / load
        total += term
        if term < total * 1e-16 or total > 1e300:
            break
    return 1 / (1 + (total - 1) * (1 - load / servers))


def mean_wait(a_second: float, seconds: float, servers: int) -> float:
    """Seconds in the line on average (M/M/c); infinite where the servers can not keep up."""
    load = a_second * seconds
    if load >= servers:
        return math.inf
    return erlang_c(load, servers) * seconds / (servers - load)


def md1_wait(a_second: float, seconds: float) -> float:
    """Seconds in the line of one server whose work always takes as long (M/D/1)."""
    load = a_second * seconds
    return math.inf if load >= 1 else load * seconds / (2 * (1 - load))
