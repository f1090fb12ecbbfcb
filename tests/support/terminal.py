"""Runs a command of `ragherd` on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments: str, term: str = "xterm") -> None:
        self._main, inner = pty.openpty()
        command = [sys.executable, "-P", "-m", "ragherd", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": term, "COLUMNS": "120", "LINES": "40"}
        # A shell starts its background jobs with SIGINT ignored, and a child would inherit that.
        restore = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, preexec_fn=restore
        )
        os.close(inner)
        os.set_blocking(self._main, False)
        self.shown = ""

    def shows(self, text: str) -> bool:
        try:
            self.shown += os.read(self._main, 65_536).decode("utf-8", "replace")
        except BlockingIOError:
            pass
        except OSError:  # the command has ended
            assert text in self.shown, self.shown
        return text in self.shown

    def types(self, text: str) -> None:
        os.write(self._main, text.encode())

    def end(self) -> int:
        """Returns the exit code."""

        def has_ended() -> bool:
            self.shows("")
            return self.process.poll() is not None

        wait_until(has_ended)
        self.shows("")
        os.close(self._main)
        return int(self.process.returncode)
