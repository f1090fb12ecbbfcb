"""The commands of `ragherd`, and what `--help` says of them."""

from __future__ import annotations

import typer

from api.cli.backup import backup
from api.cli.dev import dev
from api.cli.ingest import ingest
from api.cli.restore import restore

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
commands.command("dev")(dev)
commands.command("ingest")(ingest)
commands.command("backup")(backup)
commands.command("restore")(restore)


@commands.callback()
def ragherd() -> None:
    """Ragherd: a RAG query service in front of Ollama whose workers share one memory in Redis."""
