"""The commands of `ragherd`, and what `--help` says of them."""

from __future__ import annotations

import typer

from api.cli.backup import backup
from api.cli.dev import dev
from api.cli.ingest import ingest
from api.cli.plan import plan
from api.cli.redis_acl import redis_acl
from api.cli.restore import restore
from api.cli.simulate import simulate

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
commands.command("dev")(dev)
commands.command("ingest")(ingest)
commands.command("plan")(plan)
commands.command("simulate")(simulate)
commands.command("redis-acl")(redis_acl)
commands.command("backup")(backup)
commands.command("restore")(restore)


@commands.callback()
def ragherd() -> None:
    """Ragherd: a RAG query service in front of Ollama whose workers share one memory in Redis."""
