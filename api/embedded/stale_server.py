"""Stops a redis-server that an earlier run left in a data directory, and allows one supervisor per directory.

A leftover server should not happen, because it dies with its supervisor, but two servers on one append-only file would
corrupt it. A record in the directory identifies the server. The caller holds the directory's supervisor lock, so the
recorded server has no living supervisor. The kernel releases the lock when its holder is gone for any reason.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.embedded.child_process import LaunchError, wait_until

_RECORD = "server.json"


def record_server(directory: Path, pid: int, port: int) -> None:
    """Records in `directory` which server uses it."""
    (directory / _RECORD).write_text(json.dumps({"pid": pid, "port": port}), encoding="utf-8")


def forget_server(directory: Path) -> None:
    """Removes the record after the server was stopped."""
    (directory / _RECORD).unlink(missing_ok=True)


def stop_stale_server(directory: Path, deadline: float = 10.0) -> int | None:
    """Stops the recorded server if it still runs, and removes the record. Returns the process ID of a stopped server.

    Raises `LaunchError` if it cannot be stopped.
    """
    found = _recorded(directory)
    if found is None:
        return None
    pid, port = found
    stopped = pid if _is_our_server(pid, port) else None
    if stopped is not None:
        _end(pid, port, deadline)
    forget_server(directory)
    return stopped


def _recorded(directory: Path) -> tuple[int, int] | None:
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        return int(record["pid"]), int(record["port"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # missing, or truncated by a crash
        return None


def _end(pid: int, port: int, deadline: float) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            break
        if wait_until(lambda: not _is_our_server(pid, port), deadline):
            return
    raise LaunchError(f"cannot stop the redis-server of an earlier run (process {pid}): stop it manually")


def _is_our_server(pid: int, port: int) -> bool:
    """Returns whether `pid` is still the recorded redis-server, and not another program that reused the ID.

    redis-server shows its name and address as its command line: `.../redis-server 127.0.0.1:16379`.
    """
    command = _command_line(pid)
    return "redis-server" in command and f":{port}" in command


def _command_line(pid: int) -> str:
    """Returns the command line of a process, or "" if it is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # the process has ended
            return ""
    shown = subprocess.run(  # noqa: S603 - only an integer comes from the record
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout


@contextmanager
def supervisor_lock(directory: Path) -> Iterator[None]:
    """Locks `directory` for this process, but not for its children. Raises `LaunchError` if another process holds the
    lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "supervisor.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LaunchError(
                f"{directory} is in use by another run (process {file.read().strip() or 'unknown'}): stop it first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
