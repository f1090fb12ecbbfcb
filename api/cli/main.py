"""The entry point of `ragherd`. Imports take up to a second, and Ctrl-C during them must not print a traceback."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130


def app() -> None:
    """Runs the command that the command line names."""
    with ctrl_c_exits():
        from api.cli.commands import commands
    commands()


@contextmanager
def ctrl_c_exits() -> Iterator[None]:
    """Makes Ctrl-C end the process at once. For imports only: a running command has to clean up."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    app()
