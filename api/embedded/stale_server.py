"""A redis-server that an earlier run left in a data directory: recognised by a record, stopped before a new start.

It should not happen (the server dies with its supervisor), but two servers on one append-only file would ruin it.
The caller holds the directory's supervisor lock, so the server in the record has no living supervisor.

One supervisor for a directory: a lock that the kernel releases when its holder is gone, however it went.
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
    """Remembers in `directory` which server works on it."""
    (directory / _RECORD).write_text(json.dumps({"pid": pid, "port": port}), encoding="utf-8")


def forget_server(directory: Path) -> None:
    """The server has been stopped."""
    (directory / _RECORD).unlink(missing_ok=True)


def stop_stale_server(directory: Path, deadline: float = 10.0) -> int | None:
    """Stops the recorded server if it still runs, and forgets it. Gives the process id of one that had to be stopped.

    Raises `LaunchError` where it can not be stopped.
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
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or cut short by a crash
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
    raise LaunchError(f"a redis-server of an earlier run (process {pid}) can not be stopped: stop it by hand")


def _is_our_server(pid: int, port: int) -> bool:
    """Whether `pid` still is the redis-server of the record, and no other program that was given its number.

    redis-server shows its name and its address as its command line: `.../redis-server 127.0.0.1:16379`.
    """
    command = _command_line(pid)
    return "redis-server" in command and f":{port}" in command


def _command_line(pid: int) -> str:
    """The command line of a living process; empty for one that is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone, or going
            return ""
    shown = subprocess.run(  # noqa: S603 - an integer is all that comes from the record
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout


@contextmanager
def supervisor_lock(directory: Path) -> Iterator[None]:
    """Holds `directory` for this process; children do not inherit it. Raises `LaunchError` where another holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "supervisor.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LaunchError(
                f"{directory} is in use by another run in this checkout (process {file.read().strip() or 'unknown'}): "
                "stop that one first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
