"""`ragherd serve`: runs gunicorn with `worker_config` from any working directory, like the container image does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from gunicorn.app.wsgiapp import WSGIApplication

from api.errors import SettingsError
from api.settings import access_warnings, load_settings
from ragherd.exits import FAILED, USAGE_ERROR, exit_with
from worker_config.limits import raise_limit, too_many_connections

if TYPE_CHECKING:
    from api.wiring.check import Finding

CONFIGURATION = "python:worker_config.gunicorn_conf"
APPLICATION = "api.asgi:app"


def _address(value: str | None) -> str | None:
    """Raises `typer.BadParameter` unless the value is HOST:PORT."""
    if value is None:
        return None
    try:
        parts = urlsplit(f"//{value}")
        fits = parts.hostname and parts.port is not None and value == parts.netloc and "@" not in value
    except ValueError:
        fits = False
    if not fits:
        raise typer.BadParameter("must be HOST:PORT, such as 0.0.0.0:8001 or [::1]:8001")
    return value


def serve(
    bind: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", callback=_address, help="Address to listen on. Overrides HOST and PORT."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1000, help="Worker processes. Overrides WORKERS.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the settings, Redis, Ollama and the embedder, print the findings, and exit."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print one JSON document.")] = False,
) -> None:
    """Run the service. Its settings come from the environment and from .env.

    SIGTERM stops it after the requests in flight. SIGHUP reads .env again and replaces the workers one by one.

    With --check the exit status is 0 if everything is ready, 1 if something cannot be used, and 2 if a setting is
    invalid.
    """
    if as_json and not check:
        raise exit_with("--json: needs --check", USAGE_ERROR)
    os.environ.update(_overrides(bind, workers))
    if check:
        _check(as_json=as_json)
    else:
        _serve()


def _overrides(bind: str | None, workers: int | None) -> dict[str, str]:
    """Returns the settings that the options override, as environment variables, so that a reload keeps them."""
    found: dict[str, str] = {}
    if bind is not None:
        parts = urlsplit(f"//{bind}")
        found |= {"HOST": str(parts.hostname), "PORT": str(parts.port)}
    if workers is not None:
        found["WORKERS"] = str(workers)
    return found


class _Gunicorn(WSGIApplication):  # type: ignore[misc]  # untyped library
    """Does not import from the working directory, which may contain unrelated folders `api` or `redis`."""

    def chdir(self) -> None:
        os.chdir(self.cfg.chdir)


def _serve() -> None:
    """Turns this process into the gunicorn master. gunicorn reads `sys.argv` now and after each SIGHUP."""
    sys.argv = ["ragherd serve", "-c", CONFIGURATION, APPLICATION]
    _Gunicorn(prog="ragherd serve").run()


def _check(*, as_json: bool) -> None:
    """Prints a line for each finding. Opens no port."""
    from api.wiring.check import findings  # imports as much as a worker, which takes a second

    try:
        settings = load_settings()
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    raise_limit()
    if too_many := too_many_connections(settings):
        raise exit_with(too_many, USAGE_ERROR)
    warnings = access_warnings(settings.access, [settings.server.host])
    found = asyncio.run(findings(settings))
    if as_json:
        _print_findings(found, warnings)
    else:
        typer.echo("Settings: valid")
        for warning in warnings:
            typer.echo(f"Settings: warning: {warning}")
        for finding in found:
            typer.echo(f"{finding.subject}: {finding.detail}")
    if any(finding.failed for finding in found):
        raise typer.Exit(FAILED)


def _print_findings(found: Sequence[Finding], warnings: Sequence[str]) -> None:
    settings = [{"name": "Settings", "ok": True, "detail": detail} for detail in warnings or ("valid",)]
    checks = [{"name": one.subject, "ok": not one.failed, "detail": one.detail} for one in found]
    typer.echo(json.dumps({"ok": all(one["ok"] for one in checks), "checks": [*settings, *checks]}))
