"""`ragherd experiment`: answer a share of the users with other settings, and compare."""

from __future__ import annotations

import json
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from ragherd.exits import FAILED, USAGE_ERROR, exit_with
from ragherd.service_client import (
    AsJson,
    ServiceClient,
    Url,
    clean,
    connected,
    moment,
    new_table,
    print_document,
    terminal,
)

PATH: Final = "/api/experiments"
NONE: Final[dict[str, Any]] = {"name": None, "variants": [], "comparisons": []}
"""What `status` prints as JSON if there is no experiment."""
TEMPLATE_PATH: Final = "PROMPT_TEMPLATE_PATH"


class ExperimentAction(StrEnum):
    """The actions of `ragherd experiment`."""

    START = "start"
    STATUS = "status"
    STOP = "stop"


def experiment(
    action: Annotated[ExperimentAction, typer.Argument(help="What to do.")] = ExperimentAction.STATUS,
    target: Annotated[
        str | None,
        typer.Argument(help="For start: a TOML or JSON file. Else a name; default: the running or last one."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare variants of settings in production.

    `start` starts an experiment, or changes its shares if it is running. `status` compares its variants; look as often
    as you like. `stop` ends it. Start and stop need an admin key. The exit code of `status` is 1 if a variant is worse
    than the control.
    """
    if action is ExperimentAction.START:
        if target is None:
            raise exit_with("start: name a file", USAGE_ERROR)
        body = read_experiment(Path(target))
    with connected(url) as service:
        if action is ExperimentAction.START:
            found = service.send("POST", PATH, field="comparisons", json=body)
        elif action is ExperimentAction.STOP:
            params = {} if target is None else {"name": target}
            found = service.send("DELETE", PATH, field="comparisons", params=params)
        else:
            name = target or _latest(service)
            found = service.get(f"{PATH}/{quote(name, safe='')}", field="comparisons") if name else NONE
        if as_json:
            print_document(found)
        elif found is NONE:
            typer.echo("No experiment has run in the last 30 days.")
        else:
            _show(found)
    if action is ExperimentAction.STATUS and any(one["verdict"] == "worse" for one in found["comparisons"]):
        raise typer.Exit(FAILED)


def _latest(service: ServiceClient) -> str | None:
    """Returns the name of the running experiment, or of the last one; None if there is none."""
    listed = service.get(PATH, field="experiments")
    names: list[str] = [one["name"] for one in listed["experiments"]]
    return listed["running"] or next(iter(names), None)


def read_experiment(file: Path) -> dict[str, Any]:
    """Returns the definition in a file, with the texts of the prompt templates that it names.

    Ends the command if the file cannot be read.
    """
    text = _text(file)
    try:
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise exit_with(f"{file}: not {'JSON' if file.suffix == '.json' else 'TOML'}: {error}", USAGE_ERROR) from None
    variants = found.get("variants") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(variants, list):
        raise exit_with(f"{file}: has no [[variants]]", USAGE_ERROR)
    for variant in variants:
        settings = variant.get("settings") if isinstance(variant, dict) else None
        if isinstance(settings, dict) and isinstance(path := settings.get(TEMPLATE_PATH), str):
            del settings[TEMPLATE_PATH]
            settings["PROMPT_TEMPLATE"] = _text(file.parent / path)
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:  # TOML has dates and `nan`
        raise exit_with(f"{file}: has a value that JSON lacks: {error}", USAGE_ERROR) from None
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise exit_with(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}", USAGE_ERROR) from None


# -- output ------------------------------------------------------------------------------------------------------------


def _show(found: Any) -> None:
    until = "ended" if found["state"] == "ended" else "ends"
    end = f"stopped {moment(found['stopped'])}" if found["stopped"] else f"{until} {moment(found['ends'])}"
    typer.echo(f"{clean(found['name'])}: {found['state']}, started {moment(found['started'])}, {end}")
    table = new_table("", *(clean(one["name"]) for one in found["variants"]))
    for title, cells in _rows(found["variants"]):
        table.add_row(title, *cells)
    terminal().print(table)
    for comparison in found["comparisons"]:
        typer.echo(clean(comparison["summary"]))


def _rows(variants: list[Any]) -> list[tuple[str, list[str]]]:
    """Returns the rows of the table: a title and a cell for each variant."""
    return [
        ("share", [f"{one['share']:g} %" for one in variants]),
        ("settings", [_settings(one["settings"]) for one in variants]),
        ("requests", [f"{one['requests']:,}" for one in variants]),
        ("hit rate", [_percent(one["hit_rate"]) for one in variants]),
        ("latency p50, p95", [_latency(one["latency_ms"]) for one in variants]),
        ("errors", [_percent(one["error_rate"]) for one in variants]),
        ("wrong cached answers", [_percent(one["false_hit_rate"]) for one in variants]),
        ("bad feedback", [_percent(one["bad_feedback_rate"]) for one in variants]),
        ("tightened", [f"level {one['level']}" if one["level"] else "no" for one in variants]),
    ]


def _settings(settings: dict[str, Any]) -> str:
    shown = (f"{name}={value if name != 'PROMPT_TEMPLATE' else '...'}" for name, value in settings.items())
    return clean(" ".join(shown)) or "as usual"


def _percent(rate: Any) -> str:
    if rate["estimate"] is None:
        return "none yet"
    estimate, low, high = (100 * rate[name] for name in ("estimate", "low", "high"))
    return f"{estimate:.1f} % ({low:.1f} to {high:.1f})"


def _latency(latency: Any) -> str:
    if latency["p50"] is None:
        return "none yet"
    return f"{latency['p50']:,.1f} ms, {latency['p95']:,.1f} ms"
