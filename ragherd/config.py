"""`ragherd config`: the settings that the service would have in this environment, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final
from urllib.parse import urlsplit, urlunsplit

import typer

from api.errors import SettingsError
from api.settings import SECRET, Settings, effective_values, load_settings, origins, variable_names
from ragherd.exits import USAGE_ERROR, exit_with
from ragherd.service_client import AsJson, new_table, print_document, terminal

HIDDEN: Final = "***"
URLS: Final = frozenset(
    {
        "REDIS_URL",
        "BREAKER_REDIS_URL",
        "OLLAMA_BASE_URL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    }
)
OWN_PREFIXES: Final = ("BULKHEAD_", "CIRCUIT_BREAKER_", "CONNECTION_POOL_", "SEMANTIC_CACHE_")
"""Prefixes that no other program uses. `REDIS_` and `OLLAMA_` are not among them."""
SIMILAR: Final = 0.9


def config(
    changed: Annotated[bool, typer.Option("--changed", help="Only settings that are not at their default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every setting, as the service would read it here, and where it comes from. Secrets are hidden.

    The environment overrides .env, and .env overrides the defaults. Reads no running service.
    """
    try:
        found = described(load_settings(), origins())
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    shown = {name: one for name, one in found.items() if not changed or one["source"] != "default"}
    unknown = unknown_variables(origins())
    if as_json:
        print_document({"settings": shown, "unknown": [name for name, _ in unknown]})
        return
    table = new_table("setting", "value", "from")
    for name, one in shown.items():
        table.add_row(name, as_written(one["value"]), one["source"])
    terminal().print(table)
    for name, meant in unknown:
        typer.echo(unknown_line(name, meant), err=True)


def described(settings: Settings, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns the value and the source of each setting, without secrets."""
    return {
        name: {"value": _without_secrets(name, value), "source": sources.get(name, "default")}
        for name, value in effective_values(settings).items()
    }


def _without_secrets(name: str, value: Any) -> Any:
    if name in URLS and isinstance(value, str):
        return ",".join(without_password(url) for url in value.split(",")) if "@" in value else value
    return HIDDEN if name in SECRET and value else value


def without_password(url: str) -> str:
    """Returns a URL without its user and password, for output."""
    parts = urlsplit(url)
    if parts.username is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{HIDDEN}@{parts.netloc.rpartition('@')[2]}"))


def as_written(value: Any) -> str:
    """Returns a value as it stands in .env."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def unknown_variables(sources: Mapping[str, str], environment: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Returns variables that look like settings and are not, each with the setting that was probably meant, or ''."""
    known = variable_names()
    given = {*sources, *(name.upper() for name in (os.environ if environment is None else environment))} - set(known)
    found = []
    for name in sorted(given):
        meant = next(iter(get_close_matches(name, known, 1, SIMILAR)), "")
        if meant or name.startswith(OWN_PREFIXES):
            found.append((name, meant))
    return found


def unknown_line(name: str, meant: str) -> str:
    """Returns the warning about an unknown variable."""
    return f"{name} is not a setting and has no effect.{f' Did you mean {meant}?' if meant else ''}"
