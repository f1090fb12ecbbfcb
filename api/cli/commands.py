"""The commands of `ragherd`. A command is imported only when it runs, so it does not need the packages
of the others.
"""

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
    "serve": "Run the service. Its settings come from the environment and from .env.",
    "dev": "Run everything on this machine, with a Redis and a small model if there are none.",
    "ingest": "Store files and folders as documents.",
    "plan": "Estimate the workers, Redis and GPUs that a load needs.",
    "simulate": "Simulate many replicas on one Redis.",
    "quality": "Show how often the semantic cache is wrong, or measure it on your own questions.",
    "train-verifier": "Train the verifier of cached answers on your own questions.",
    "redis-acl": "Print the ACL rule for Ragherd's Redis user.",
    "backup": "Save documents and cached answers to a file.",
    "restore": "Load a backup into Redis.",
}
"""Every command with its line in `ragherd --help`."""


def find(name: str) -> Callable[..., None]:
    """Returns a command's function. The function and its module have the command's name."""
    function = name.replace("-", "_")
    with ctrl_c_exits():
        found: Callable[..., None] = getattr(import_module(f"api.cli.{function}"), function)
    return found


def load(name: str) -> Any:
    """Returns a command that is ready to run."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name)(find(name))
    return get_command(single)


class _Commands(TyperGroup):
    """Has only names and help texts, and loads the command that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the real command instead of the placeholder."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(found.name) if found and found.name else found, rest


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ragherd {__version__}")
        raise typer.Exit


def _placeholder() -> None:
    """Replaced by the command when it is loaded."""


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
