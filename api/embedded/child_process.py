"""Child processes that lead their own session, die with their parent, and are stopped as a group.

A child has its own session, so that Ctrl-C in the terminal reaches only the parent, which then stops its children in
order.

A child dies with its parent even if the parent is killed with SIGKILL. On Linux the child asks the kernel for a signal
at its parent's death (PR_SET_PDEATHSIG) before it executes the program. This has two pitfalls. The signal comes when
the *thread* that forked ends, so children are started from the main thread. And a parent that died before the request
goes unnoticed, so the child checks its parent's ID afterwards. On other systems a small supervisor,
`python -m api.embedded.child_process GROUP`, ends the child's process group when its standard input closes. Only the
parent holds the other end of that pipe, so it closes when the parent is gone for any reason.

`LaunchError` is the base of everything that can stop `ragherd dev`. Its message is one line that says what to do.
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
    """Polls `condition` every `interval` seconds. Returns False if it does not hold within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends `number` to every process of `group`. Does nothing if the group is gone."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS, if only zombies are left
        return


def group_exists(group: int) -> bool:
    """Returns whether any process of `group` is left, including zombies."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_group(group: int, deadline: float) -> None:
    """Sends SIGTERM to `group`, and SIGKILL to the rest after `deadline` seconds."""
    signal_group(group, signal.SIGTERM)
    if not wait_until(lambda: not group_exists(group), deadline):
        signal_group(group, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1

KERNEL_WATCHES_PARENTS = sys.platform == "linux"


def death_signal_request(death_signal: signal.Signals) -> Callable[[], None]:
    """Returns a `preexec_fn` that asks for `death_signal` at the parent's death. Linux only.

    All allocations happen here in the parent: between fork and exec the child only makes system calls.
    """
    require_main_thread()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent, number = os.getpid(), int(death_signal)

    def request() -> None:
        if prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return request


def start_orphan_guard(group: int) -> subprocess.Popen[bytes]:
    """Starts the supervisor for systems without PR_SET_PDEATHSIG. It ends `group` when this process is gone."""
    return subprocess.Popen(  # noqa: S603 - no external input
        module_command("api.embedded.child_process", str(group)),
        env=module_environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def require_main_thread() -> None:
    """Raises `RuntimeError` in any other thread, because the child would die with that thread."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start children from the main thread: they die with the thread that started them")


class LaunchError(Exception):
    """A process could not be started, or ended unexpectedly."""


class MissingPackage(LaunchError):
    """A package that a process needs is not installed. The message says how to install it."""


class ChildEnded(LaunchError):
    """A child process ended by itself. `code` is its exit code, or the negative number of the signal that ended it."""

    def __init__(self, name: str, code: int, reason: str, log: Path) -> None:
        detail = f": {reason}" if reason else ""
        super().__init__(f"{name} ended unexpectedly ({_status(code)}){detail} (log: {log})")
        self.name = name
        self.code = code


def _status(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name


_GROUP_END_SECONDS = 0.3
"""Time for a killed group to disappear. It never does if nothing reaps orphans, as in some containers."""


def last_line(text: str) -> str:
    """Returns the last non-empty line, where most programs report why they end."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class ChildProcess:
    """A running child from `start_child`. Call `stop` or `kill` when it is no longer needed."""

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
        """File with its standard output and standard error."""
        self._process = process
        self._guard = guard
        self._explain = explain

    @property
    def pid(self) -> int:
        """The child's process ID, which is also the ID of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Returns None while it runs. A negative number is the signal that ended it."""
        return self._process.poll()

    def is_running(self) -> bool:
        """Returns whether the child itself is alive, not counting its own children."""
        return self.exit_code() is None

    def stop(self, deadline: float) -> None:
        """Sends SIGTERM to the child, and SIGKILL to its group when it has ended or after `deadline` seconds.

        Only the child gets SIGTERM, because a gunicorn master stops its workers itself, in order.
        """
        if self.is_running():
            self._process.terminate()
            wait_until(lambda: not self.is_running(), deadline)
        self.kill()

    def kill(self) -> None:
        """Sends SIGKILL to the whole group, and returns when the child is reaped."""
        signal_group(self.pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not group_exists(self.pid), timeout=_GROUP_END_SECONDS)
        self._stop_guard()

    def await_ready(self, is_ready: Callable[[], bool], timeout: float) -> bool:
        """Waits for `is_ready()`. Returns False after `timeout` seconds. Raises `ChildEnded` if the
        child ends first.
        """

        def settled() -> bool:
            return not self.is_running() or is_ready()

        in_time = wait_until(settled, timeout)
        self.require_running()
        return in_time

    def require_running(self) -> None:
        """Raises `ChildEnded` if the child has ended."""
        code = self.exit_code()
        if code is not None:
            raise ChildEnded(self.name, code, self.end_reason(), self.log)

    def end_reason(self) -> str:
        """Returns one line from the log that explains the child's end."""
        return self._explain(self.log.read_text(encoding="utf-8", errors="replace")) if self.log.exists() else ""

    def _stop_guard(self) -> None:
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
    use_death_signal: bool = KERNEL_WATCHES_PARENTS,
    explain: Callable[[str], str] = last_line,
) -> ChildProcess:
    """Starts `command` in its own session. It gets `death_signal` when this process ends for any reason.

    `log` is overwritten; `explain` extracts one line from it that says why the child ended. With
    `use_death_signal=False`, for systems without PR_SET_PDEATHSIG, a supervisor watches instead.

    Raises `RuntimeError` outside the main thread, and `OSError` if the program cannot be started.
    """
    require_main_thread()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - only the launcher calls this, with its own commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=death_signal_request(death_signal) if use_death_signal else None,
        )
    guard = None if use_death_signal else start_orphan_guard(process.pid)
    return ChildProcess(name, process, log, guard, explain)


def main() -> None:
    """Waits for the end of standard input, then ends the group."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    group = int(sys.argv[1])
    sys.stdin.buffer.read()
    end_group(group, deadline=3.0)


if __name__ == "__main__":
    main()
