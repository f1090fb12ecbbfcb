"""`ragherd redis-acl`: the least rights that Ragherd's user of Redis needs."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from api.errors import SettingsError
from api.redis_store.acl import acl_line
from api.settings import PREFIX, is_cluster, load_settings

FAILED = 1


def redis_acl(
    user: Annotated[str, typer.Option(help="The user's name.")] = "ragherd",
    prefix: Annotated[str | None, typer.Option(help="Of its keys. Without it: REDIS_PREFIX.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password; its SHA-256 stands in the line.")
    ] = False,
    breaker: Annotated[
        bool, typer.Option("--breaker", help="For BREAKER_REDIS_URL: breakers and bulkheads alone.")
    ] = False,
) -> None:
    """Print a line for Redis's ACL file: a user with the commands, keys and channels that Ragherd uses."""
    try:
        settings = load_settings()
    except SettingsError as error:
        typer.echo(f"ragherd: {error}", err=True)
        raise typer.Exit(FAILED) from None
    if not re.fullmatch(r"\S+", user):
        typer.echo("ragherd: --user: a name without spaces", err=True)
        raise typer.Exit(FAILED)
    if prefix is not None and not re.fullmatch(PREFIX, prefix):
        typer.echo("ragherd: --prefix: letters, digits and _ . : - alone", err=True)
        raise typer.Exit(FAILED)
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None
    if password_stdin and not password:
        typer.echo("ragherd: --password-stdin: no password was read", err=True)
        raise typer.Exit(FAILED)
    typer.echo(
        acl_line(
            "breaker" if breaker else "main",
            user=user,
            prefix=prefix or settings.redis.prefix,
            password=password,
            separate=settings.breaker_redis.url is not None,
            cluster=is_cluster((settings.breaker_redis.url if breaker else None) or settings.redis.url),
        )
    )
