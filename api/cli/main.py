"""The `ragherd` command."""

from __future__ import annotations

import typer

from api.cli.dev import dev

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("dev")(dev)


@app.callback()
def ragherd() -> None:
    """Ragherd: a RAG query service in front of Ollama whose workers share one memory in Redis."""


if __name__ == "__main__":
    app()
