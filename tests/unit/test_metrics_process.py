"""The master's supervision of the metrics process when the machine has no resources for it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until
from worker_config.metrics_process import MetricsProcess
from worker_config.rolling_arbiter import ChildSignal

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_master_imports_prometheus_client_only_after_its_directory_is_set() -> None:
    """prometheus_client reads PROMETHEUS_MULTIPROC_DIR at import. If it is imported earlier, workers are not summed."""
    code = "import worker_config.gunicorn_conf, sys; print('prometheus_client' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "False\n", loaded.stderr


def test_a_metrics_process_that_cannot_start_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []
    start = os.posix_spawn

    def no_room_at_first(path: str, *arguments: Any, **named: Any) -> int:
        attempts.append(path)
        if len(attempts) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start("/bin/true", ["true"], {})

    monkeypatch.setattr(os, "posix_spawn", no_room_at_first)
    process = MetricsProcess(socket.create_server(("127.0.0.1", 0)), tmp_path)
    process.start()
    try:
        wait_until(lambda: len(attempts) >= 2)
    finally:
        process.stop()


def child(code: str = "import signal; signal.pause()") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_child_receives_the_signal() -> None:
    process = child()
    way = ChildSignal(process.pid)
    assert way.send(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    way.ended()


@pytest.mark.parametrize("told", [True, False], ids=["its end is known", "somebody else reaped it"])
def test_a_process_that_reuses_the_id_of_a_dead_child_receives_nothing(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    process = child("")
    way = ChildSignal(process.pid)
    process.wait(10)
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))  # as if another process had the id
    if told:
        way.ended()
    assert not way.send(signal.SIGTERM)
    assert killed == []


def test_an_id_reused_before_it_is_opened_receives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    assert not ChildSignal(os.getppid()).send(signal.SIGTERM)
    assert killed == []


def test_a_metrics_process_started_during_shutdown_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = MetricsProcess(socket.create_server(("127.0.0.1", 0)), tmp_path)
    start, started = os.posix_spawn, []

    def stopped_meanwhile(*_: Any, **__: Any) -> int:
        started.append(start("/bin/sleep", ["sleep", "600"], {}))
        process.stop()
        return started[0]

    monkeypatch.setattr(os, "posix_spawn", stopped_meanwhile)
    process.start()
    wait_until(lambda: started and not Path(f"/proc/{started[0]}").exists())
