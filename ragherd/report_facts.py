"""What a service says about itself now, for the deployment report: configuration, and issues that were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from api.errors import SettingsError
from api.quality.policies import target_at
from api.settings import load_settings, origins
from ragherd.config import described
from ragherd.exits import USAGE_ERROR, exit_with
from ragherd.fleet import snapshot
from ragherd.report_criteria import duration
from ragherd.report_figures import WindowFigures
from ragherd.service_client import RequestRefused, ServiceClient, clean

QUALITY_PATH: Final = "/api/semantic-cache/quality"
RECOVERY_PATH: Final = "/api/circuit-breaker/recovery"

Facts = Mapping[str, Any]


def facts_of(service: ServiceClient) -> dict[str, Any]:
    """Returns the snapshot of the fleet, the quality of cached answers, and the outages of each breaker."""
    found = snapshot(service)
    try:
        quality = service.get(QUALITY_PATH, field="target_error")
        found["quality"] = {**quality, "max_error_rate": _untightened(quality["target_error"], quality["level"])}
    except RequestRefused:
        found["quality"] = None
    found["outages"] = {}
    for name in (found["breaker"] or {}).get("breakers", {}):
        try:
            found["outages"][name] = service.get(RECOVERY_PATH, field="outages", breaker=name)["outages"]
        except RequestRefused:
            continue  # Redis has just gone: the report goes on without them
    return found


def _untightened(target: float, level: int) -> float:
    """Returns SEMANTIC_CACHE_MAX_ERROR_RATE. A tightened fleet reports the lower target of its level."""
    return round(target / target_at(1.0, level), 9)


def environment_settings() -> dict[str, Any]:
    """Returns the settings of this environment that are not at their default, without secrets."""
    try:
        found = described(load_settings(), origins())
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    return {name: one["value"] for name, one in found.items() if one["source"] != "default"}


# -- Configuration -----------------------------------------------------------------------------------------------------


def configuration_of(facts: Facts) -> dict[str, Any]:
    """Returns what the service itself says about its configuration. It never contains a secret."""
    workers, cache, pool, quality = (facts[name] for name in ("workers", "cache", "pool", "quality"))
    found: dict[str, Any] = {"version": facts["health"]["version"]}
    if workers is not None:
        found["version"] = ", ".join(sorted({one["version"] for one in workers}))
        found |= {"workers": len(workers), "hosts": len({one["host"] for one in workers})}
    if pool is not None:
        names = ("pool_connections", "pool_maxsize", "max_keepalive_connections", "keepalive_expiry")
        found |= {name: pool[name] for name in names}
        found["backends"] = sorted(pool["backends"])
    if cache is not None:
        names = ("enabled", "max_cache_size", "similarity_threshold", "ttl_seconds")
        found |= {f"cache_{name}": cache[name] for name in names}
        found["embedder"] = (cache["embedder"] or {}).get("name")
    if quality is not None:
        found |= {"cache_policy": quality["policy"], "max_error_rate": quality["max_error_rate"]}
    if facts["bulkhead"] is not None:
        found["bulkheads"] = {name: one["limit"] for name, one in facts["bulkhead"]["bulkheads"].items()}
    return found


def calls_of(facts: Facts) -> dict[str, dict[str, Any]]:
    """Returns the calls of each breaker since its last reset."""
    names = ("state", "total_calls", "failure_count", "slow_calls", "rejected_calls", "forced", "store")
    breakers = (facts["breaker"] or {}).get("breakers", {})
    return {name: {field: one[field] for field in names} for name, one in breakers.items()}


# -- Issues ------------------------------------------------------------------------------------------------------------


def issues_of(figures: WindowFigures, facts: Facts | None) -> list[str]:
    """Returns what an operator should look at, in a sentence each."""
    found = list(_issues_in_figures(figures))
    if facts is None:
        return [*found, "The service did not answer: its configuration and its state are not known."]
    return [*found, *_outages(figures, facts["outages"]), *_issues_now(facts)]


def _issues_in_figures(figures: WindowFigures) -> Iterator[str]:
    if len(figures.namespaces) > 1:
        names = ", ".join(name or "none" for name in figures.namespaces)
        yield f"The figures add up the fleets of several namespaces: {clean(names)}. --matchers selects one."
    if figures.unknown >= 60:
        yield f"Nothing is known of {duration(figures.unknown)} of the window, in {_spans(len(figures.gaps))}."
    if figures.restarts:
        yield f"Workers restarted {_times(figures.restarts)}."
    if figures.unexplained_starts:
        yield f"{figures.unexplained_starts:,} workers started again, by a rollout or after a crash of their replica."
    if figures.workers and figures.workers[0] < figures.workers[1]:
        yield f"The number of workers changed between {figures.workers[0]:,} and {figures.workers[1]:,}."
    for kind, count in figures.errors.most_common():
        if count:
            yield f"{_times(count).capitalize()} the answer was the error {clean(kind)}."
    for reason, count in figures.rejected.most_common():
        if count:
            yield f"The bulkhead rejected {count:,} call{'' if count == 1 else 's'}: {clean(reason)}."
    if left := figures.queries["left"]:
        yield f"{left:,} client{'' if left == 1 else 's'} left before the answer came. The error rate leaves them out."
    if figures.queries["bypass"]:
        yield f"{figures.queries['bypass']:,} answers bypassed the cache, because Redis was down or it is disabled."


def _outages(figures: WindowFigures, outages: Mapping[str, Sequence[Facts]]) -> Iterator[str]:
    for name, every in outages.items():
        for one in every:
            began = datetime.fromisoformat(one["began"]).timestamp()
            if began < figures.ends and began + one["seconds"] > figures.begins:
                since = one["began"][:19].replace("T", " ")
                lasting = duration(one["seconds"]) if one["ended"] else f"{duration(one['seconds'])} so far"
                reason = clean(str(one["reason"])).replace("_", " ")
                yield f"Breaker {name}: outage from {since} UTC for {lasting}, because of {reason}."


def _issues_now(facts: Facts) -> Iterator[str]:
    health, quality, pool, workers = (facts[name] for name in ("health", "quality", "pool", "workers"))
    if health["status"] != "healthy":
        yield f"The service is {health['status']} now: Redis {health['database']}, Ollama {health['ollama']}."
    elif not health["ollama"]:
        yield "Ollama does not answer now."
    yield from (f"Redis: {clean(one['advice'])}" for one in health["redis_warnings"])
    for name, one in calls_of(facts).items():
        if one["forced"]:
            yield f"Breaker {name} is forced {one['forced']}."
    if quality is not None and quality["tightened"]:
        yield f"The fleet serves less from the cache, at level {quality['level']}, because of wrong answers."
    if pool is not None and (timeouts := sum(one["pool_timeouts"] for one in pool["workers"].values())):
        yield f"{timeouts:,} calls found no free connection since the workers started."
    if workers is not None and len(versions := sorted({one["version"] for one in workers})) > 1:
        yield f"Versions {' and '.join(versions)} run side by side."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _spans(count: int) -> str:
    return "one gap" if count == 1 else f"{count:,} gaps"
