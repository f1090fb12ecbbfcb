"""`ragherd dev`: the whole service on one machine, with whatever of Redis and Ollama is missing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from api.cli.dev_summary import summary
from api.cli.exits import INTERRUPTED, UNUSABLE, end
from api.cli.own_docs import store_own_docs
from api.cli.self_check import CheckFailed, run_self_check
from api.embedded.errors import LaunchError
from api.embedded.stack import Stack, running_stack
from api.embedded.stop_signals import stop_signals_interrupt
from api.errors import SettingsError
from api.settings import Settings, load_settings

DATA_DIR = Path(".data")


def dev(
    check: Annotated[
        bool, typer.Option("--check", help="Ask a question and its paraphrase, see that it is cached, and stop.")
    ] = False,
    docs: Annotated[bool, typer.Option(help="Put Ragherd's own pages into the knowledge base.")] = True,
) -> None:
    """Serve on this machine; start a Redis and a small model where none is at hand. Ctrl-C stops all of it."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise end(str(error), UNUSABLE) from None
    with stop_signals_interrupt():
        if check:
            _check(settings, docs)
        else:
            _serve(settings, docs)


def _serve(settings: Settings, docs: bool) -> None:
    serving = False
    try:
        with running_stack(settings, DATA_DIR, typer.echo) as stack:
            serving = True
            _store(stack, settings, docs)
            typer.echo(summary(stack, settings))
            stack.watch()
    except LaunchError as error:
        raise end(str(error)) from None
    except KeyboardInterrupt:
        typer.echo("Stopped.")
        raise typer.Exit(0 if serving else INTERRUPTED) from None


def _store(stack: Stack, settings: Settings, docs: bool) -> int:
    return store_own_docs(stack.addresses.url, settings, typer.echo) if docs else 0


def _check(settings: Settings, docs: bool) -> None:
    began = time.monotonic()
    try:
        with running_stack(settings, DATA_DIR, typer.echo) as stack:
            run_self_check(stack, settings, typer.echo, grounded=_store(stack, settings, docs) > 0)
    except (LaunchError, CheckFailed) as error:
        raise end(f"check failed: {error}") from None
    except KeyboardInterrupt:
        raise end("check interrupted", INTERRUPTED) from None
    typer.echo(f"Check passed in {time.monotonic() - began:.1f} s; everything is stopped again.")
