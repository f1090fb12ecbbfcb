"""The `ragherd` command. Imports next to nothing itself: what it needs takes a second, in which Ctrl-C may come."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130


def app() -> None:
    """Runs the command that the command line names."""
    before = signal.signal(signal.SIGINT, _end)
    from api.cli.commands import commands  # after the handler: a Ctrl-C amid the imports would end in a traceback

    signal.signal(signal.SIGINT, before)  # a command has files, a terminal and people to leave in order
    commands()


def _end(_number: int, _frame: FrameType | None) -> None:
    """At once: nothing is started yet that would have to be stopped."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    app()
