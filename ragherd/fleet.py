"""`ragherd status`, `ragherd backends` and `ragherd workers`: what a running service knows about its fleet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.table import Table

from ragherd.exits import FAILED, USAGE_ERROR, exit_with
from ragherd.service_client import (
    AsJson,
    RequestRefused,
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

CONFLICT: Final = 409
PARTS: Final = {
    "breaker": "/api/circuit-breaker/metrics",
    "cache": "/api/semantic-cache/metrics",
    "pool": "/api/connection-pool/metrics",
    "bulkhead": "/api/bulkhead/metrics",
    "workers": "/api/workers",
}
"""The parts of a snapshot, each with its endpoint."""


def snapshot(service: ServiceClient) -> dict[str, Any]:
    """Returns the health of a service and the figures of its fleet.

    A part is None if the service refuses it: while Redis is down, it does not know the workers.
    """
    found: dict[str, Any] = {"url": service.url, "health": service.health()}
    for name, path in PARTS.items():
        try:
            found[name] = service.get(path)
        except RequestRefused:
            found[name] = None
    found["workers"] = None if found["workers"] is None else found["workers"]["workers"]
    return found


# -- Status ------------------------------------------------------------------------------------------------------------


def status(url: Url = None, as_json: AsJson = False) -> None:
    """Show whether the service is healthy, and the most important figures of its fleet.

    The exit code is 1 if the service is degraded or unhealthy.
    """
    with connected(url) as service:
        found = snapshot(service)
    if as_json:
        print_document(found)
    else:
        typer.echo("\n".join(status_lines(found)))
    if found["health"]["status"] != "healthy":
        raise typer.Exit(FAILED)


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """Returns a snapshot as lines of a name and its figures."""
    health = found["health"]
    parts = {
        "Redis": "ready" if health["database"] else "cannot be used",
        "Ollama": "answers" if health["ollama"] else "does not answer",
        "breakers": found["breaker"] and breakers_line(found["breaker"]["breakers"]),
        "cache": found["cache"] and cache_line(found["cache"]),
        "bulkhead": found["bulkhead"] and bulkhead_line(found["bulkhead"]),
        "pool": found["pool"] and pool_line(found["pool"]),
        "workers": found["workers"] and workers_line(found["workers"]),
    }
    if drained := health.get("drained"):
        parts["drained"] = ", ".join(drained)
    lines = [f"{name:<9} {line or 'not known'}" for name, line in parts.items()]
    warnings = [f"warning: {clean(one['advice'])}" for one in health["redis_warnings"]]
    return [f"{health['status']}: {found['url']}, version {health['version']}", *lines, *warnings]


def breakers_line(breakers: Mapping[str, Any]) -> str:
    """Returns the state of each breaker."""
    return ", ".join(
        f"{name} {one['state']}{' (forced)' if one['forced'] else ''}{' (local)' if one['store'] == 'local' else ''}"
        for name, one in breakers.items()
    )


def cache_line(cache: Mapping[str, Any]) -> str:
    """Returns the size of the cache and how often it answers."""
    if not cache["enabled"]:
        return "disabled"
    rate = cache["false_hit_rate"]
    wrong = "not known yet" if rate["estimate"] is None else f"{100 * rate['estimate']:.2f} %"
    return (
        f"{cache['cache_size']:,} of {cache['max_cache_size']:,} answers; {100 * cache['hit_rate']:.1f} % hits "
        f"({cache['exact_hits']:,} exact, {cache['semantic_hits']:,} semantic, {cache['misses']:,} misses); "
        f"wrong hits {wrong}"
    )


def bulkhead_line(bulkhead: Mapping[str, Any]) -> str:
    """Returns the calls to Ollama in progress and in the queue."""
    rejected = sum(bulkhead["rejected"].values())
    return f"{bulkhead['in_use']} of {bulkhead['limit']} in use, {bulkhead['waiting']} waiting, {rejected:,} rejected"


def pool_line(pool: Mapping[str, Any]) -> str:
    """Returns the connections to Ollama over all workers."""
    workers = pool["workers"].values()
    total = {name: sum(one[name] for one in workers) for name in ("active", "idle", "waiting", "pool_timeouts")}
    return "{active} active, {idle} idle, {waiting} waiting, {pool_timeouts:,} timeouts".format(**total)


def workers_line(workers: list[dict[str, Any]]) -> str:
    """Returns the number of workers, hosts and versions."""
    hosts, versions = {one["host"] for one in workers}, sorted({one["version"] for one in workers})
    return f"{len(workers):,} on {len(hosts):,} host{'' if len(hosts) == 1 else 's'}, version {' and '.join(versions)}"


# -- Workers -----------------------------------------------------------------------------------------------------------


def workers(url: Url = None, as_json: AsJson = False) -> None:
    """List the live workers of every replica."""
    with connected(url) as service:
        found = service.get(PARTS["workers"], field="workers")
    if as_json:
        print_document(found)
        return
    table = new_table("worker", "host", "pid", "version", "started", "requests", "active", "idle", "waiting")
    for one in sorted(found["workers"], key=lambda worker: (worker["host"], worker["started"])):
        pool = [str(one["pool"].get(name, "")) for name in ("active", "idle", "waiting")]
        named = (one["id"], one["host"], str(one["pid"]), one["version"], moment(one["started"]))
        table.add_row(*named, f"{one['requests']:,}", *pool)
    terminal().print(table)


# -- Backends ----------------------------------------------------------------------------------------------------------

BACKENDS: Final = "/api/backends"


class BackendAction(StrEnum):
    """The actions of `ragherd backends`."""

    LIST = "list"
    DRAIN = "drain"
    RESUME = "resume"


def backends(
    action: Annotated[BackendAction, typer.Argument(help="What to do.")] = BackendAction.LIST,
    name: Annotated[str | None, typer.Argument(help="The backend to drain or resume, such as ollama-2.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Drain even the last backend, without asking.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show each Ollama: its tier, health, models, breakers and load. Or take one out of service, and back.

    `drain` sends a backend no more calls; those in progress end. It asks before it drains the last one. Both actions
    need an admin key, and affect the whole fleet. The exit code is 1 if a backend that is not drained does not answer.
    """
    with connected(url) as service:
        if action is BackendAction.LIST and name is None:
            found = service.get(BACKENDS, field="backends")
        elif action is BackendAction.LIST or name is None:
            raise exit_with(f"`{action}` takes {'no name' if name else 'the name of a backend'}", USAGE_ERROR)
        else:
            found = _changed(service, action, name, force=force)
    if as_json:
        print_document(found)
    else:
        terminal().print(backend_table(found["backends"]))
    if any(one["reachable"] is False and not one["drained"] for one in found["backends"]):
        raise typer.Exit(FAILED)


def _changed(service: ServiceClient, action: BackendAction, name: str, *, force: bool) -> Any:
    """Drains or resumes a backend. Asks first if it is the last one."""
    path = f"{BACKENDS}/{quote(name, safe='')}/{action}"
    forced = {"force": True} if force else {}
    try:
        return service.send("POST", path, field="backends", params=forced)
    except RequestRefused as error:
        if error.status != CONFLICT:
            raise
    question = f"{clean(name)} is the last backend in use. Drain it, so that every replica rejects all calls to Ollama?"
    confirm(question, f"`drain` would leave no backend but {clean(name)}", otherwise="--force")
    return service.send("POST", path, field="backends", params={"force": True})


def backend_table(found: Iterable[Mapping[str, Any]]) -> Table:
    """Returns a table with a row for each backend."""
    table = new_table("backend", "tier", "state", "breakers", "in use", "waiting", "tokens/s", "in memory", "models")
    for one in found:
        answers = {True: "up", False: "down", None: "not known yet"}[one["reachable"]]
        state = f"drained, {answers}" if one["drained"] else answers
        distinct = set(one["breakers"].values())
        states = distinct.pop() if len(distinct) == 1 else ", ".join(map(" ".join, one["breakers"].items()))
        load = (f"{one['in_use']} of {one['limit']}", str(one["waiting"]), f"{one['tokens_per_second']:.1f}")
        models = (clean(", ".join(one[field] or ())) for field in ("resident", "models"))
        table.add_row(one["name"], str(one["tier"]), state, states, *load, *models)
    return table
