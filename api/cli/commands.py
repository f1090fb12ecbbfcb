"""The commands of `ragherd`. Each is imported only when it runs, so that one does not need the packages of another."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from api import __version__
from api.cli.main import ctrl_c_exits

COMMANDS: Final = {
    "serve": "Run the service. Its settings come from the environment.",
    "dev": "Run everything on this machine, with a Redis and a small model if there are none.",
    "ingest": "Store files and folders as documents.",
    "plan": "Estimate the workers, Redis and GPUs that a load needs.",
    "simulate": "Simulate many replicas on one Redis.",
    "redis-acl": "Print the ACL rule for Ragherd's Redis user.",
    "backup": "Save documents and cached answers to a file.",
    "restore": "Load a backup into Redis.",
}
"""Every command with the line that `ragherd --help` prints for it."""


def find(name: str) -> Callable[..., None]:
    """A command's function. It and its module have the command's name."""
    function = name.replace("-", "_")
    with ctrl_c_exits():
        found: Callable[..., None] = getattr(import_module(f"api.cli.{function}"), function)
    return found


def load(name: str) -> Any:
    """A command, ready to be run."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name)(find(name))
    return get_command(single)


class _Commands(TyperGroup):
    """Holds only names and help; loads the command that is to run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in the base class, with the real command."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(found.name) if found and found.name else found, rest


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ragherd {__version__}")
        raise typer.Exit


def _placeholder() -> None:
    """Stands for a command until it is loaded."""


commands = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _name, _help in COMMANDS.items():
    commands.command(_name, help=_help)(_placeholder)


@commands.callback()
def ragherd(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ragherd: a RAG query service in front of Ollama whose workers share one memory in Redis."""
