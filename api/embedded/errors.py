"""What can stop `ragherd dev`. Each is one line that says what to do; the launcher prints it and exits with 1."""

from __future__ import annotations

import signal
from pathlib import Path


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
