"""The master's hold on the metrics process where the machine has no room for one."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from worker_config.metrics_process import MetricsProcess


def test_one_that_can_not_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
