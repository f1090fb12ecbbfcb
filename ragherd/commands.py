"""The commands of `ragherd`. A command is imported only when it runs, so it does not need the packages
of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from api import __version__
from ragherd.exits import ctrl_c_exits


class Entry(NamedTuple):
    """The module of a command, and its place and line in `ragherd --help`. Its function has the command's name."""

    module: str
    panel: str
    help: str


RUN: Final = "Run"
USE: Final = "Use a running service"
WATCH: Final = "Watch a running service"
CHECK: Final = "Check"
PLAN: Final = "Measure and plan"
COMMANDS: Final = {
    "serve": Entry("serve", RUN, "Run the service. Its settings come from the environment and from .env."),
    "dev": Entry("dev", RUN, "Run everything on this machine, with a Redis and a small model if there are none."),
    "ask": Entry("ask", USE, "Ask a question, and print the answer as it is generated."),
    "explain": Entry("ask", USE, "Explain why a question is a hit or a miss."),
    "ingest": Entry("ingest", USE, "Store files and folders as documents."),
    "sync": Entry("sync", USE, "Keep documents in step with a list of folders and URLs."),
    "warm": Entry("cached_answers", USE, "Answer questions in advance."),
    "invalidate": Entry("cached_answers", USE, "Delete cached answers."),
    "breaker": Entry("breaker", USE, "Show the circuit breakers, or override them."),
    "keys": Entry("keys", USE, "Create, list, rotate and revoke API keys."),
    "experiment": Entry("experiment", USE, "Compare variants of settings in production."),
    "audit": Entry("audit", WATCH, "List the actions of admins, and verify that none was changed."),
    "status": Entry("fleet", WATCH, "Show the health of the service and the figures of its fleet."),
    "monitor": Entry("monitor", WATCH, "Watch the fleet in the terminal."),
    "backends": Entry("fleet", WATCH, "Show each Ollama, or take one out of service."),
    "workers": Entry("fleet", WATCH, "List the live workers of every replica."),
    "preflight": Entry("preflight", CHECK, "Check this environment before a deployment."),
    "smoke": Entry("smoke", CHECK, "Check a service after its deployment."),
    "rehearse": Entry("rehearse", CHECK, "Rehearse a deployment on a Kubernetes cluster, under load."),
    "doctor": Entry("doctor", CHECK, "Find common faults, and say what to do."),
    "config": Entry("config", CHECK, "Show the settings of this environment, and where each comes from."),
    "quality": Entry(
        "quality", PLAN, "Show how often the semantic cache is wrong, or measure it on your own questions."
    ),
    "eval": Entry("evaluation", PLAN, "Measure how well the service finds, cites and answers."),
    "analyse": Entry("analyse", PLAN, "Show what a cache would do for you, from a log of your questions."),
    "train-verifier": Entry("train_verifier", PLAN, "Train the verifier of cached answers on your own questions."),
    "load-test": Entry("load_test", PLAN, "Measure a service under load: latency, hit rate and errors."),
    "benchmark": Entry("benchmark", PLAN, "Save a baseline, and find out which differences to it are real."),
    "report": Entry("report", PLAN, "Judge a deployment by its success criteria: go, wait or roll back."),
    "plan": Entry("capacity", PLAN, "Estimate the workers, Redis and GPUs that a load needs."),
    "simulate": Entry("capacity", PLAN, "Simulate many replicas on one Redis."),
    "redis-acl": Entry("redis_acl", "Redis", "Print the ACL rule for Ragherd's Redis user."),
    "backup": Entry("backup", "Redis", "Save documents and cached answers to a file."),
    "export": Entry("backup", "Redis", "Write all data of one tenant to a file."),
    "reencrypt": Entry("reencrypt", "Redis", "Encrypt texts in Redis again, with the first key."),
    "restore": Entry("backup", "Redis", "Load a backup into Redis."),
}


def find(name: str) -> Callable[..., None]:
    """Imports a command's module, and returns its function."""
    with ctrl_c_exits():
        module = import_module(f"ragherd.{COMMANDS[name].module}")
    found: Callable[..., None] = getattr(module, name.replace("-", "_"))
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


commands = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
for _name, _entry in COMMANDS.items():
    commands.command(_name, help=_entry.help, rich_help_panel=_entry.panel)(_placeholder)


@commands.callback()
def ragherd(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ragherd: a RAG query service in front of Ollama whose workers share one memory in Redis."""
