"""Injects one fault, and takes it back. Each function returns when the fleet is whole again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import redis

from scripts.chaos_tools.fleet import CLOCK_SECONDS, Fleet, is_isolated, pause
from scripts.chaos_tools.plan import CLOCK, FAILOVER, GROW, Fault
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


def _use_up_memory(fleet: Fleet, fault: Fault) -> None:
    """Lets a worker grow beyond WORKER_MEMORY_LIMIT. Its master replaces it."""
    replica, worker = _replica(fleet, fault), _worker(fleet, fault)
    os.kill(worker, GROW)
    wait_until(lambda: worker not in replica.workers() and replica.is_complete(), timeout=60)


HOURS: Final = (1, -1, 24, -24)


def _move_clock(fleet: Fleet, fault: Fault) -> None:
    """Moves the wall clock of a replica by an hour or a day, forward or back, and then back again."""
    replica, ahead = _replica(fleet, fault), HOURS[fault.target // 7 % len(HOURS)] * 3600
    clock = fleet.clocks[replica.pid]
    clock.write_text(f"{ahead:+d}")
    try:
        wait_until(lambda: abs(_seconds_ahead(replica) - ahead) < 60, timeout=10)
        pause(fault.seconds)
    finally:
        clock.write_text("+0")
        pause(CLOCK_SECONDS)


def _seconds_ahead(replica: Gunicorn) -> float:
    return parsedate_to_datetime(replica.get("/health/live").headers["date"]).timestamp() - time.time()


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


def _fill_disk(fleet: Fleet, fault: Fault) -> None:
    """Fills the disk of the append-only file. Redis then refuses writes, or ends if it must sync each of them."""
    if not is_isolated():
        raise RuntimeError("redis disk full needs a disk that nobody else uses: run scripts/chaos as root")
    ends, filler = bool(fault.target % 2), fleet.redis.files.directory / "filler"
    with fleet.client() as client:
        client.config_set("appendfsync", "always" if ends else "everysec")
        try:
            _fill(filler)
            wait_until(lambda: _cannot_write(fleet), timeout=20)
            pause(fault.seconds)
        finally:
            filler.unlink()
    fleet.redis.start()
    wait_until(lambda: not _cannot_write(fleet), timeout=20)
    with fleet.client() as client:
        client.config_set("appendfsync", "always")


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def _cannot_write(fleet: Fleet) -> bool:
    """Returns whether Redis has ended or says that it cannot write its append-only file."""
    try:
        with fleet.client() as client:
            return bool(client.info("persistence")["aof_last_write_status"] != "ok")
    except redis.RedisError:
        return not fleet.redis.child.is_running()


def _fail_over(fleet: Fleet, fault: Fault) -> None:
    fleet.sentinels.fail_over()


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
        "worker at its memory limit": _use_up_memory,
        CLOCK: _move_clock,
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
        "redis disk full": _fill_disk,
        FAILOVER: _fail_over,
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
