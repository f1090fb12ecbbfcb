"""A child process that leads its own session, dies with its parent, and is stopped as a whole group.

In its own session, so that Ctrl-C in the terminal reaches the parent only, which then stops its children in order.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from api.embedded.errors import ChildEnded
from api.embedded.parent_death import (
    KERNEL_WATCHES_PARENTS,
    death_signal_request,
    require_main_thread,
    start_orphan_guard,
)
from api.embedded.process_group import group_exists, signal_group
from api.embedded.waiting import wait_until

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
