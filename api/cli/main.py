"""The entry point of `ragherd`, and how its commands fail: one line on standard error, and an exit code.

Imports take up to a second, and Ctrl-C during them must not print a traceback.
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
USAGE_ERROR: Final = 2  # an invalid setting or option, or a missing package
INTERRUPTED: Final = 130


def app() -> None:
    """Runs the command from the command line."""
    with ctrl_c_exits():
        from api.cli.commands import commands
    commands()


def exit_with(line: str, code: int = FAILED) -> typer.Exit:
    """Prints why the command fails, and returns the exception for the caller to raise."""
    import typer

    typer.echo(f"ragherd: {' '.join(line.split())}", err=True)
    return typer.Exit(code)


@contextmanager
def ctrl_c_exits() -> Iterator[None]:
    """Makes Ctrl-C end the process at once. Use it for imports only: a running command has to clean up."""
    if threading.current_thread() is not threading.main_thread():  # only that thread may set handlers
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
