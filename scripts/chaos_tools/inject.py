"""Injects one fault, and takes it back. Each function returns when the fleet is whole again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import redis

from scripts.chaos_tools.fleet import Fleet, is_isolated, pause
from scripts.chaos_tools.plan import Fault
from tests.support.gunicorn_process import Gunicorn
from tests.support.waiting import wait_until

Injection = Callable[[Fleet, Fault], None]


def _replica(fleet: Fleet, fault: Fault) -> Gunicorn:
    return fleet.replicas[fault.target % len(fleet.replicas)]


def _worker(fleet: Fleet, fault: Fault) -> int:
    workers = sorted(_replica(fleet, fault).workers())
    return workers[fault.target // 7 % len(workers)]


def _kill_worker(fleet: Fleet, fault: Fault) -> None:
    replica = _replica(fleet, fault)
    os.kill(_worker(fleet, fault), signal.SIGKILL)
    wait_until(replica.is_complete, timeout=60)


def _stop_worker(fleet: Fleet, fault: Fault) -> None:
    worker = _worker(fleet, fault)
    os.kill(worker, signal.SIGSTOP)
    try:
        pause(fault.seconds)
    finally:
        os.kill(worker, signal.SIGCONT)


def _use_up_descriptors(fleet: Fleet, fault: Fault) -> None:
    """Lowers the limit of a worker to what it has open."""
    worker = _worker(fleet, fault)
    soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (descriptors(worker), hard))
    try:
        pause(fault.seconds)
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))


def descriptors(pid: int) -> int:
    """Returns how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _reload(fleet: Fleet, fault: Fault) -> None:
    replica = _replica(fleet, fault)
    before = replica.workers()
    replica.process.send_signal(signal.SIGHUP)
    wait_until(lambda: replica.is_complete() and not replica.workers() & before, timeout=60)


def _replace(fleet: Fleet, fault: Fault, *, kill: bool) -> None:
    fleet.replace(fault.target % len(fleet.replicas), 0 if kill else 1, kill=kill)


def _kill_redis(fleet: Fleet, fault: Fault) -> None:
    fleet.redis.kill()
    pause(fault.seconds)
    fleet.redis.start()


def _stop_redis(fleet: Fleet, fault: Fault) -> None:
    os.kill(fleet.redis.pid, signal.SIGSTOP)
    try:
        pause(fault.seconds)
    finally:
        os.kill(fleet.redis.pid, signal.SIGCONT)


def _slow_redis(fleet: Fleet, fault: Fault) -> None:
    """Pauses every command for 200 ms, again and again."""
    until = time.monotonic() + fault.seconds
    with fleet.client() as client:
        while time.monotonic() < until:
            client.execute_command("CLIENT", "PAUSE", 200, "ALL")
            pause(0.25)


def _empty_redis(fleet: Fleet, fault: Fault) -> None:
    with fleet.client() as client:
        client.flushall()


def _configured(name: str, value: str | int, fleet: Fleet, fault: Fault) -> None:
    with fleet.client() as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            pause(fault.seconds)
        finally:
            client.config_set(name, before)


def _cut_redis(fleet: Fleet, fault: Fault) -> None:
    with fleet.client() as client:
        for kind in ("normal", "pubsub"):
            with suppress(redis.RedisError):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def _drop_packets(fleet: Fleet, fault: Fault) -> None:
    """Drops all packets from and to Redis: connections stay open at both ends, and new ones hang."""
    if not is_isolated():
        raise RuntimeError("redis half-open needs a network that nobody else uses: run scripts/chaos as root")
    rules = [("INPUT", "--protocol", "tcp", side, str(fleet.redis.port), "--jump", "DROP") for side in _SIDES]
    for rule in rules:
        subprocess.run(["iptables", "--wait", "--append", *rule], check=True)
    try:
        pause(fault.seconds)
    finally:
        for rule in rules:
            subprocess.run(["iptables", "--wait", "--delete", *rule], check=True)


_SIDES: Final = ("--sport", "--dport")


def _behaving(fleet: Fleet, fault: Fault, **behaviour: Any) -> None:
    fleet.ollama.behaviour(**behaviour, numbered=True)
    try:
        pause(fault.seconds)
    finally:
        fleet.ollama.behaviour(numbered=True)


def _ollama(mode: str, **fields: Any) -> Injection:
    return partial(_behaving, mode=mode, **fields)


def _cut_ollama(fleet: Fleet, fault: Fault) -> None:
    fleet.ollama.break_connections()


INJECTIONS: Final[Mapping[str, Injection]] = MappingProxyType(
    {
        "worker killed": _kill_worker,
        "worker stopped": _stop_worker,
        "worker without descriptors": _use_up_descriptors,
        "master killed": partial(_replace, kill=True),
        "workers reloaded": _reload,
        "replica upgraded": partial(_replace, kill=False),
        "redis killed": _kill_redis,
        "redis stopped": _stop_redis,
        "redis slow": _slow_redis,
        "redis emptied": _empty_redis,
        "redis read-only": partial(_configured, "min-replicas-to-write", 1),
        "redis full": partial(_configured, "maxmemory", 1),
        "redis connections cut": _cut_redis,
        "redis half-open": _drop_packets,
        "ollama refuses": _ollama("refuse"),
        "ollama hangs": _ollama("hang"),
        "ollama trickles": _ollama("ok", pace=0.5),
        "ollama sends garbage": _ollama("bad_json"),
        "ollama cuts answers": _ollama("cut"),
        "ollama fails in a stream": _ollama("error_line"),
        "ollama ends without done": _ollama("no_done"),
        "ollama answers nothing": _ollama("ok", answer=""),
        "ollama answers 500": _ollama("status", status=500),
        "ollama connections cut": _cut_ollama,
    }
)
CUTS: Final = frozenset({"worker killed", "master killed", "worker without descriptors"})
"""Faults that may cut the connections of clients. No other fault may."""
