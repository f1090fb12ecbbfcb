"""The end of a command: one line on standard error, and an exit code.

| code | meaning |
|---|---|
| 0 | success |
| 1 | failure, or a check found a fault |
| 2 | usage error: an invalid option or setting, or a missing package |
| 3 | the service cannot be reached |
| 130 | interrupted |
| 143 | ended by SIGTERM |
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import typer

FAILED: Final = 1
USAGE_ERROR: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
TERMINATED: Final = 143


def exit_with(line: str, code: int = FAILED) -> typer.Exit:
    """Prints why the command fails, and returns the exception for the caller to raise."""
    import typer

    typer.echo(f"ragherd: {' '.join(line.split())}", err=True)
    return typer.Exit(code)


@contextmanager
def ctrl_c_exits() -> Iterator[None]:
    """Makes Ctrl-C end the process at once, without a traceback. Use it for imports, which take up to a second.

    A running command has to clean up.
    """
    if threading.current_thread() is not threading.main_thread():  # only that thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raises `Terminated` in the body at SIGTERM, so that a command cleans up as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only that thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
