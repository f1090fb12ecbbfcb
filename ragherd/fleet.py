"""`ragherd status`, `ragherd backends` and `ragherd workers`: what a running service knows about its fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import typer

from ragherd.exits import FAILED
from ragherd.service_client import (
    AsJson,
    RequestRefused,
    ServiceClient,
    Url,
    clean,
    connected,
    moment,
    new_table,
    print_document,
    terminal,
)

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


def backends(url: Url = None, as_json: AsJson = False) -> None:
    """Show each Ollama: whether it answers, its models, breakers and load, as seen by the worker that answers.

    The exit code is 1 if one of them does not answer.
    """
    with connected(url) as service:
        found = backend_figures(*(service.get(PARTS[name]) for name in ("pool", "breaker", "bulkhead")))
    if as_json:
        print_document({"backends": found})
    else:
        table = new_table("backend", "answers", "breakers", "in use", "waiting", "tokens/s", "in memory", "models")
        for one in found:
            answers = {True: "yes", False: "no", None: "not known yet"}[one["reachable"]]
            distinct = set(one["breakers"].values())
            states = distinct.pop() if len(distinct) == 1 else ", ".join(map(" ".join, one["breakers"].items()))
            load = (f"{one['in_use']} of {one['limit']}", str(one["waiting"]), f"{one['tokens_per_second']:.1f}")
            models = (clean(", ".join(one[name] or ())) for name in ("resident", "models"))
            table.add_row(one["name"], answers, states, *load, *models)
        terminal().print(table)
    if any(one["reachable"] is False for one in found):
        raise typer.Exit(FAILED)


def backend_figures(
    pool: Mapping[str, Any], breaker: Mapping[str, Any], bulkhead: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Joins what three endpoints know about each backend. A breaker belongs to a backend by its name."""
    found = []
    for name, one in pool["backends"].items():
        permits = bulkhead["bulkheads"].get(name, {})
        own = (name, f"{name}-embed")
        found.append(
            {
                "name": name,
                "reachable": one["reachable"],
                "models": one["models"],
                "resident": one["resident"],
                "breakers": {
                    known: breaker["breakers"][known]["state"] for known in own if known in breaker["breakers"]
                },
                "in_use": permits.get("in_use", 0),
                "waiting": permits.get("waiting", 0),
                "limit": permits.get("limit", 0),
                "tokens_per_second": one["ollama"]["tokens_per_second"],
            }
        )
    return found
