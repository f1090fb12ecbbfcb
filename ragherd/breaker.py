"""`ragherd breaker`: show the fleet's circuit breakers and their history, or override them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from ragherd.exits import FAILED, USAGE_ERROR, exit_with
from ragherd.service_client import (
    AsJson,
    ServiceClient,
    Url,
    clean,
    confirm,
    connected,
    moment,
    new_table,
    print_document,
    terminal,
)

PATH: Final = "/api/circuit-breaker"


class Action(StrEnum):
    """The actions of `ragherd breaker`."""

    STATUS = "status"
    OPEN = "open"
    CLOSE = "close"
    RESET = "reset"
    HISTORY = "history"


OVERRIDES: Final = {Action.OPEN: "force-open", Action.CLOSE: "force-close", Action.RESET: "reset"}
EFFECTS: Final = {
    Action.OPEN: "Open {breakers}, so that every replica rejects all calls to Ollama until a reset?",
    Action.CLOSE: "Close {breakers}, so that every replica calls Ollama until a reset, whatever fails?",
    Action.RESET: "Reset {breakers}, so that the counts start at zero and any override ends?",
}
"""What is asked before an override."""


def breaker(
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.STATUS,
    name: Annotated[
        str | None, typer.Option("--breaker", help="One breaker, such as ollama-2. Default: all; of history: ollama.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most state changes that history shows.")] = 20,
    since: Annotated[str | None, typer.Option(help="First time of history, such as 2026-11-23T13:00:00Z.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Override without asking.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show the circuit breakers of the fleet, or override them. An override asks first, and needs an admin key.

    `open` rejects every call to Ollama, and `close` admits every call, until `reset`. The exit code of `status` is 1
    unless every breaker is CLOSED. Without a terminal, an override needs --yes.
    """
    with connected(url) as service:
        if action is Action.HISTORY:
            _history(service, name, limit, since, as_json=as_json)
        elif action is Action.STATUS:
            found = _selected(service.get(f"{PATH}/metrics", field="breakers"), name)
            _show(found, as_json=as_json)
            if any(one["state"] != "CLOSED" for one in found["breakers"].values()):
                raise typer.Exit(FAILED)
        else:
            params = {} if name is None else {"breaker": name}
            which = "every breaker" if name is None else f"the breaker {clean(name)}"
            if not yes:
                confirm(EFFECTS[action].format(breakers=which), f"`{action}` changes {which} of the fleet")
            found = service.send("POST", f"{PATH}/{OVERRIDES[action]}", field="breakers", params=params)
            _show(_selected(found, name), as_json=as_json)


def _selected(found: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Returns the figures of all breakers, or of the named one."""
    if name is None:
        return found
    breakers = found["breakers"]
    if name not in breakers:
        raise exit_with(f"--breaker {name}: must be one of {', '.join(breakers)}", USAGE_ERROR)
    return {**breakers[name], "breakers": {name: breakers[name]}}


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_document(found)
    else:
        terminal().print(breaker_table(found["breakers"]))


def breaker_table(breakers: dict[str, Any]) -> Table:
    """Returns a table with a row for each breaker."""
    titles = ("breaker", "state", "opened", "probe in", "failed", "rejected", "window", "reason")
    table = new_table(*titles)
    for name, one in breakers.items():
        forced = f" (forced {one['forced']})" if one["forced"] else ""
        wait = f"{one['retry_after_seconds']} s" if one["state"] == "OPEN" and not one["forced"] else ""
        window = f"{one['failure_rate']:.0f} % of {one['window_calls']:,} failed"
        state = f"{one['state']}{forced}" if one["enabled"] else "disabled"
        counts = (f"{one['failure_count']:,}", f"{one['rejected_calls']:,}")
        table.add_row(name, state, moment(one["opened_at"]), wait, *counts, window, one["reason"] or "")
    return table


def _history(service: ServiceClient, name: str | None, limit: int, since: str | None, *, as_json: bool) -> None:
    found = service.get(f"{PATH}/history", field="transitions", breaker=name, limit=limit, since=since)
    if as_json:
        print_document(found)
        return
    if not found["transitions"]:
        typer.echo(f"{found['breaker']}: no state change")
        return
    table = new_table("time", "from", "to", "reason", "failed", "by")
    for one in found["transitions"]:
        failed = f"{one['failed']:,} of {one['total']:,}" if one["total"] else ""
        table.add_row(moment(one["time"]), one["from"], one["to"], clean(one["reason"]), failed, one["by"])
    terminal().print(table)
