"""`ragherd redis-acl`: prints the minimal permissions of Ragherd's Redis user."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from api.errors import SettingsError
from api.redis_store.acl import acl_line
from api.settings import PREFIX, is_cluster, load_settings
from ragherd.exits import USAGE_ERROR, exit_with
from ragherd.service_client import AsJson, print_document


def redis_acl(
    user: Annotated[str, typer.Option(help="Name of the user.")] = "ragherd",
    prefix: Annotated[str | None, typer.Option(help="Prefix of the keys. Without it, REDIS_PREFIX.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input and print its SHA-256.")
    ] = False,
    breaker: Annotated[
        bool, typer.Option("--breaker", help="For BREAKER_REDIS_URL, which holds only breakers and bulkheads.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a line for the ACL file of Redis: a user with the commands, keys and channels that Ragherd uses."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    if not re.fullmatch(r"\S+", user):
        raise exit_with("--user: must not contain spaces", USAGE_ERROR)
    if prefix is not None and not re.fullmatch(PREFIX, prefix):
        raise exit_with("--prefix: use only letters, digits and _ . : -", USAGE_ERROR)
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None
    if password_stdin and not password:
        raise exit_with("--password-stdin: standard input is empty; pipe the password in", USAGE_ERROR)
    line = acl_line(
        "breaker" if breaker else "main",
        user=user,
        prefix=prefix or settings.redis.prefix,
        password=password,
        separate=settings.breaker_redis.url is not None,
        cluster=is_cluster((settings.breaker_redis.url if breaker else None) or settings.redis.url),
    )
    if as_json:
        print_document({"rules": [line]})
    else:
        typer.echo(line)
