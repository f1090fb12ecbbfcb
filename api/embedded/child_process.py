"""A child process that leads its own session, dies with its parent, and is stopped as a whole group.

In its own session, so that Ctrl-C in the terminal reaches the parent only, which then stops its children in order.

Waiting for a condition of another process, with a deadline.

Signals to a whole process group: a child that leads its own session, and all that it started.

A child that dies with its parent, even when the parent is killed with SIGKILL.

On Linux the kernel does it: the child asks for a signal at its parent's death (PR_SET_PDEATHSIG) before it becomes
the program. Two traps: the signal comes when the *thread* that forked ends, so children are started from the main
thread; and a parent that died before the request is never noticed, so the parent's id is checked again after it.

Elsewhere a small supervisor does it: `orphan_guard` waits at a pipe whose other end only the parent holds.

What can stop `ragherd dev`. Each is one line that says what to do; the launcher prints it and exits with 1.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from api.module_command import module_command, module_environment


def wait_until(condition: Callable[[], bool], timeout: float, interval: float = 0.02) -> bool:
    """Asks `condition` every `interval` seconds until it holds or `timeout` seconds have passed; says which."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends `number` to every process of `group`; one that is gone is what was wanted."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS, when only zombies are left
        return


def group_exists(group: int) -> bool:
    """Whether any process of `group`, a zombie included, is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_group(group: int, deadline: float) -> None:
    """SIGTERM to `group`, and SIGKILL to what is left of it after `deadline` seconds."""
    signal_group(group, signal.SIGTERM)
    if not wait_until(lambda: not group_exists(group), deadline):
        signal_group(group, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1

KERNEL_WATCHES_PARENTS = sys.platform == "linux"


def death_signal_request(death_signal: signal.Signals) -> Callable[[], None]:
    """What the forked child runs before it becomes the program (`preexec_fn`). Linux only.

    Everything that allocates happens here, in the parent: between fork and exec there are only system calls.
    """
    require_main_thread()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent, number = os.getpid(), int(death_signal)

    def request() -> None:
        if prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return request


def start_orphan_guard(group: int) -> subprocess.Popen[bytes]:
    """The supervisor for platforms without PR_SET_PDEATHSIG: ends process group `group` when this process is gone."""
    return subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
        module_command("api.embedded.orphan_guard", str(group)),
        env=module_environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def require_main_thread() -> None:
    """Raises `RuntimeError` in any other thread: its end would take the child with it."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: another thread's end would kill them")


class LaunchError(Exception):
    """Something could not be started, or ended when it should not have."""


class ChildEnded(LaunchError):
    """A child process ended by itself. `code` is its exit code; negative: the signal that ended it."""

    def __init__(self, name: str, code: int, last_words: str, log: Path) -> None:
        said = f": {last_words}" if last_words else ""
        super().__init__(f"{name} ended unexpectedly ({_how(code)}){said} (its log: {log})")
        self.name = name
        self.code = code


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name


_GROUP_GONE = 0.3
"""Seconds that a killed group is given to disappear; where nobody reaps orphans (some containers) it never does."""


def last_line(text: str) -> str:
    """The last line that is not empty: where most programs say why they end."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class ChildProcess:
    """A running child. Made by `start_child`; `stop` or `kill` it when it is no longer wanted."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        log: Path,
        guard: subprocess.Popen[bytes] | None,
        explain: Callable[[str], str],
    ) -> None:
        self.name = name
        self.log = log
        """Where its standard output and standard error go."""
        self._process = process
        self._guard = guard
        self._explain = explain

    @property
    def pid(self) -> int:
        """The child's process id, which is also the id of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; a negative number is the signal that ended it."""
        return self._process.poll()

    def is_running(self) -> bool:
        """Whether the child itself (not what it started) is alive."""
        return self.exit_code() is None

    def stop(self, deadline: float) -> None:
        """SIGTERM to the child, and SIGKILL to its group after `deadline` seconds or when the child has ended.

        The child gets SIGTERM alone: a master (gunicorn) stops its workers itself, in its own order.
        """
        if self.is_running():
            self._process.terminate()
            wait_until(lambda: not self.is_running(), deadline)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when the child is reaped."""
        signal_group(self.pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not group_exists(self.pid), timeout=_GROUP_GONE)
        self._dismiss_guard()

    def await_ready(self, is_ready: Callable[[], bool], timeout: float) -> bool:
        """Waits until `is_ready()`; False after `timeout` seconds. Raises `ChildEnded` when the child ends first."""

        def settled() -> bool:
            return not self.is_running() or is_ready()

        in_time = wait_until(settled, timeout)
        self.require_running()
        return in_time

    def require_running(self) -> None:
        """Raises `ChildEnded` when the child has ended."""
        code = self.exit_code()
        if code is not None:
            raise ChildEnded(self.name, code, self.last_words(), self.log)

    def last_words(self) -> str:
        """What its log gives as the reason of its end, in one line."""
        return self._explain(self.log.read_text(encoding="utf-8", errors="replace")) if self.log.exists() else ""

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


def start_child(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    kernel_watches: bool = KERNEL_WATCHES_PARENTS,
    explain: Callable[[str], str] = last_line,
) -> ChildProcess:
    """Starts `command` in a session of its own. It gets `death_signal` when this process ends, however it ends.

    `log` is begun anew; `explain` finds in it, in one line, why the child ended. `kernel_watches=False` is for
    platforms without PR_SET_PDEATHSIG: a supervisor watches instead.

    Raises `RuntimeError` outside the main thread, `OSError` when the program can not be started.
    """
    require_main_thread()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - only the launcher calls this, with commands of its own
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=death_signal_request(death_signal) if kernel_watches else None,
        )
    guard = None if kernel_watches else start_orphan_guard(process.pid)
    return ChildProcess(name, process, log, guard, explain)
