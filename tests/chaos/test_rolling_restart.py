"""Restarts and reloads every replica in turn under constant load. No request fails."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from tests.chaos.fleet import Fleet, Replica
from tests.chaos.traffic import LONG, all_kinds, no_failures, summary
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos

Note = Callable[[str], None]


def test_a_rolling_restart_fails_no_request(fleet: Fleet, note: Note) -> None:
    fleet.ollama.behaviour(pace=0.03)
    seconds = []
    with all_kinds(fleet.balancer.url) as loads:
        for replica in fleet.replicas:
            began = time.monotonic()
            restart(fleet, replica)
            seconds.append(f"{time.monotonic() - began:.1f}")
    note(f"rolling restart of {len(fleet.replicas)} replicas, {', '.join(seconds)} s: {summary(loads)}")
    no_failures(loads)
    wait_until(lambda: fleet.workers() == sum(len(replica.gunicorn.workers()) for replica in fleet.replicas))


def restart(fleet: Fleet, replica: Replica) -> None:
    """Stops a replica with SIGTERM during a stream and starts another.

    The load balancer must stop sending requests to it first; the new one joins the fleet.
    """
    with httpx.Client(trust_env=False, timeout=30) as client:
        body = {"question": LONG, "stream": True}
        with client.stream("POST", f"{replica.url}/query", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            replica.gunicorn.process.terminate()
            wait_until(lambda: replica.gunicorn.get("/health/ready").status_code == 503)
            wait_until(lambda: replica.name not in fleet.balancer.up())
            assert "event: done" in list(lines)
    assert replica.gunicorn.process.wait(20) == 0
    replica.start()
    wait_until(replica.gunicorn.is_ready, timeout=60)
    wait_until(lambda: replica.name in fleet.balancer.up())


def test_a_reload_of_every_replica_fails_no_request(fleet: Fleet, note: Note) -> None:
    fleet.ollama.behaviour(pace=0.03)
    with all_kinds(fleet.balancer.url) as loads:
        for replica in fleet.replicas:
            wait_until(replica.reload(), timeout=60)
            assert fleet.balancer.up() == {replica.name for replica in fleet.replicas}
    note(f"reload of {len(fleet.replicas)} replicas: {summary(loads)}")
    no_failures(loads)
