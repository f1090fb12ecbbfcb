"""How a command ends that can not do what it was asked: one line on standard error, and a code."""

from __future__ import annotations

import typer

FAILED = 1
UNUSABLE = 2  # a setting, an option or what is installed
INTERRUPTED = 130


def end(line: str, code: int = FAILED) -> typer.Exit:
    """To be raised by the caller. The line says why."""
    typer.echo(f"ragherd: {' '.join(line.split())}", err=True)
    return typer.Exit(code)
