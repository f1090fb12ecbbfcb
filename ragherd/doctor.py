"""`ragherd doctor`: finds common faults of the settings, Redis, Ollama and a running service, and says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final

from api.errors import SettingsError
from api.settings import Settings, access_warnings, load_settings, origins
from ragherd.checks import Check, report
from ragherd.config import unknown_line, unknown_variables
from ragherd.exits import FAILED, UNREACHABLE
from ragherd.fleet import bulkhead_line, cache_line, pool_line, snapshot, workers_line
from ragherd.service_client import AsJson, RequestRefused, ServiceClient, Unreachable, Url, opened

ENOUGH_LOOKUPS: Final = 200
"""With fewer queries, a hit rate says little."""
LOW_HIT_RATE: Final = 0.05


def doctor(url: Url = None, as_json: AsJson = False) -> None:
    """Find common faults, and say what to do about each.

    Checks the running service. Without --url it also checks the settings of this environment, and whether Redis,
    Ollama and the embedder can be used from here. Changes nothing. The exit code is 1 if a check fails, and 3 if the
    service cannot be reached.
    """
    checks, code = [] if url is not None else list(_environment()), FAILED
    if all(check.ok for check in checks if check.name == "settings"):
        try:
            checks += _running(url)
        except Unreachable as error:
            advice = "Start it with `ragherd serve`, or correct --url, HOST and PORT."
            checks, code = [*checks, Check("service", False, str(error), advice)], UNREACHABLE
    report(checks, code, as_json=as_json)


# -- This environment --------------------------------------------------------------------------------------------------


def _environment() -> Iterator[Check]:
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Check("settings", False, str(error), "Correct it in the environment or in .env.")
        return
    yield Check("settings", True, "valid")
    for name, meant in unknown_variables(origins()):
        yield Check("variable", True, unknown_line(name, meant), "Remove or rename it.")
    for warning in access_warnings(settings.access, [settings.server.host]):
        yield Check("access", True, "less safe than it could be", warning)
    yield from _dependencies(settings)


def _dependencies(settings: Settings) -> Iterator[Check]:
    from api.wiring.check import findings  # imports as much as a worker, which takes a second

    for finding in asyncio.run(findings(settings)):
        is_warning = finding.detail.startswith("warning: ")
        detail = "works, with a warning" if is_warning else finding.detail
        advice = finding.detail.removeprefix("warning: ") if is_warning else ""
        yield Check(f"{finding.subject}, from here", not finding.failed, detail, advice)


# -- The running service -----------------------------------------------------------------------------------------------


def _running(url: str | None) -> list[Check]:
    """Raises `Unreachable`."""
    try:
        with opened(url) as service:
            found = snapshot(service)
            answers = Check("service", True, f"answers at {service.url}, version {found['health']['version']}")
            return [answers, _key(service), *judge(found)]
    except RequestRefused as error:
        advice = "If another program answers there, correct --url, HOST or PORT."
        return [Check("service", False, str(error), advice)]


def _key(service: ServiceClient) -> Check:
    """Lists a document, which needs a key where keys are configured."""
    try:
        service.get("/documents", limit=1)
    except RequestRefused as error:
        if error.status in {401, 403}:
            return Check("key", False, str(error), "API_KEYS and ADMIN_KEYS of the service have the known keys.")
    return Check("key", True, "the service accepts requests from here")


def judge(found: Mapping[str, Any]) -> Iterator[Check]:
    """Yields what a snapshot of the fleet says."""
    yield from _stores(found["health"])
    if found["pool"]:
        yield from _backends(found["pool"])
    if found["breaker"]:
        yield from _breakers(found["breaker"]["breakers"])
    if found["cache"]:
        yield _cache(found["cache"])
    if found["bulkhead"]:
        yield _bulkhead(found["bulkhead"])
    if found["workers"]:
        yield _workers(found["workers"])


def _stores(health: Mapping[str, Any]) -> Iterator[Check]:
    redis, advice = health["database"], "Start Redis, or correct REDIS_URL; `ragherd serve --check` says what is wrong."
    yield Check("Redis", redis, "works" if redis else "the service cannot use it", "" if redis else advice)
    if not health["breaker_database"] and redis:
        yield Check("Redis of the breakers", False, "cannot be used", "Start it, or correct BREAKER_REDIS_URL.")
    for warning in health["redis_warnings"]:
        yield Check(f"Redis, {warning['name']}", True, "works, with a warning", warning["advice"])


def _backends(pool: Mapping[str, Any]) -> Iterator[Check]:
    for name, one in pool["backends"].items():
        if one["reachable"] is False:
            yield Check(f"Ollama {name}", False, "does not answer", "Start Ollama, or correct OLLAMA_BASE_URL.")
        elif one["models"] == []:
            yield Check(f"Ollama {name}", False, "has no models", "Pull LLM_MODEL: ollama pull MODEL.")
        else:
            yield Check(f"Ollama {name}", True, "answers" if one["reachable"] else "not checked yet")
    if any(one["pool_timeouts"] for one in pool["workers"].values()):
        yield Check("pool", True, pool_line(pool), "Raise CONNECTION_POOL_MAX_SIZE, or lower BULKHEAD_MAX_CONCURRENT.")


def _breakers(breakers: Mapping[str, Any]) -> Iterator[Check]:
    for name, one in breakers.items():
        subject = f"breaker {name}"
        if one["forced"]:
            detail = f"forced {one['forced']}, until somebody resets it"
            yield Check(subject, one["forced"] != "OPEN", detail, "When the reason is gone: ragherd breaker reset.")
        elif one["state"] != "CLOSED":
            detail = f"{one['state']} ({one['reason']}); next probe in {one['retry_after_seconds']} s"
            yield Check(subject, False, detail, "Look at Ollama's log, and at `ragherd breaker history`.")
        elif one["store"] == "local":
            yield Check(subject, True, "local to each worker", "It is shared again once Redis answers.")
        else:
            yield Check(subject, True, "CLOSED" if one["enabled"] else "disabled")


def _cache(cache: Mapping[str, Any]) -> Check:
    lookups, line = cache["hits"] + cache["misses"], cache_line(cache)
    if not cache["enabled"]:
        return Check("cache", True, "disabled", "SEMANTIC_CACHE_ENABLED=true turns it on.")
    if cache["evictions"] and cache["cache_size"] >= cache["max_cache_size"]:
        return Check("cache", True, f"{line}; it is full", "If memory allows, raise SEMANTIC_CACHE_MAX_SIZE.")
    if lookups >= ENOUGH_LOOKUPS and cache["hit_rate"] < LOW_HIT_RATE:
        advice = "`ragherd explain QUESTION` says why a question is a miss. Options and history are part of the scope."
        return Check("cache", True, line, advice)
    return Check("cache", True, line)


def _bulkhead(bulkhead: Mapping[str, Any]) -> Check:
    line = bulkhead_line(bulkhead)
    if bulkhead["waiting"] >= bulkhead["max_queue"]:
        return Check("bulkhead", False, f"{line}; the queue is full", "Add an Ollama, or reduce the load.")
    if sum(bulkhead["rejected"].values()):
        return Check("bulkhead", True, line, "If it still happens: raise BULKHEAD_MAX_CONCURRENT or add an Ollama.")
    return Check("bulkhead", True, line)


def _workers(workers: list[dict[str, Any]]) -> Check:
    line = workers_line(workers)
    if len({worker["version"] for worker in workers}) > 1:
        return Check("workers", True, line, "Several versions run. Finish or undo the roll-out.")
    return Check("workers", True, line)
