"""The figures of a window from Prometheus, for `ragherd report --prometheus`.

Prometheus does not know the latency by cache status, so the uncached latency is that of the stage `generate`: the time
that answers waited for the model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx

from ragherd.report_figures import ALL, MOST_SLICES, PERCENTILES, Slice, WindowFigures
from ragherd.service_client import CONNECT_SECONDS, READ_SECONDS, RequestRefused, Unreachable, clean, without_user

MOST_POINTS: Final = 10_000
"""Prometheus refuses a range with more than 11,000 points."""
LEAST_STEP: Final = 60.0
MOST_SAMPLES: Final = 5_000
STAGES: Final = "ragherd_query_stage_duration_seconds"
FAILED_QUERIES: Final = 'method="POST",status=~"[45].."'
TOTAL: Final = 'stage="total"'
MATCHERS: Final = re.compile(r'\s*([a-zA-Z_]\w*\s*(=|!=|=~|!~)\s*"(?:[^"\\]|\\.)*"\s*,?\s*)+')

Labels = tuple[str, ...]


class PrometheusClient:
    """Queries one Prometheus. `matchers`, such as `namespace="staging"`, select the fleet."""

    def __init__(self, http: httpx.Client, matchers: str = "") -> None:
        self._http = http
        self._matchers = matchers.strip().removesuffix(",")

    def of(self, metric: str, *more: str) -> str:
        """Returns the selector of a metric of the fleet."""
        matchers = ",".join(one for one in (self._matchers, *more) if one)
        return f"{metric}{{{matchers}}}"

    def at(self, query: str, time: float, *labels: str) -> dict[Labels, float]:
        """Returns the value of each series by its labels. Leaves out those that are not a number."""
        found = self._result("query", query=query, time=time)
        values = {_labels(one, labels): float(one["value"][1]) for one in found}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def over(self, query: str, start: float, end: float, step: float, *labels: str) -> dict[Labels, dict[float, float]]:
        """Returns the values of each series by time."""
        found = self._result("query_range", query=query, start=start, end=end, step=step)
        return {_labels(one, labels): {at: float(value) for at, value in one["values"]} for one in found}

    def _result(self, path: str, **sent: Any) -> list[Any]:
        shown = without_user(str(self._http.base_url).rstrip("/"))
        try:
            response = self._http.post(f"api/v1/{path}", data=sent)
        except httpx.TransportError as error:
            raise Unreachable(f"{shown}: cannot be reached: {str(error) or type(error).__name__}") from None
        try:
            found = response.json()
            if found["status"] == "success":
                return list(found["data"]["result"])
            reason = clean(str(found.get("error")))
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = f"{response.status_code}: not an answer of Prometheus"
        raise RequestRefused(f"{shown}: {reason}", response.status_code)


def opened_prometheus(url: str) -> httpx.Client:
    """Returns an HTTP client for a Prometheus. User and password of the URL are sent as basic authentication."""
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    return httpx.Client(base_url=f"{url.rstrip('/')}/", timeout=timeout, trust_env=False)


def _labels(series: Mapping[str, Any], names: Labels) -> Labels:
    return tuple(str(series["metric"].get(name, "")) for name in names)


# -- Figures -----------------------------------------------------------------------------------------------------------


def from_prometheus(source: PrometheusClient, start: float, end: float) -> WindowFigures | None:
    """Returns the figures of a window, or None if Prometheus has none of it. Raises `Unreachable`, `RequestRefused`."""
    step = max(LEAST_STEP, math.ceil((end - start) / MOST_POINTS))
    scraped = f"sum(count_over_time({source.of('ragherd_build_info')}[{2 * step:.0f}s]))"
    times = sorted(source.over(scraped, start + step, end, step).get((), {}))
    if not times:
        return None
    begin = max(start, times[0] - step)
    found = WindowFigures("prometheus", begin, end, known=min(end - begin, len(times) * step))
    found.gaps = list(_gaps(times, step, end))
    window = f"{max(1, round(end - begin))}s"
    _count(found, source, window)
    _time_breakers(found, source, window)
    _count_starts(found, source, window)
    _measure(found, source, window)
    _observe(found, source, window)
    found.slices = list(_charted(source, found))
    fleets = f"count by (namespace) (last_over_time({source.of('ragherd_build_info')}[{window}]))"
    found.namespaces = tuple(sorted(name for (name,) in source.at(fleets, found.ends, "namespace")))
    return found


def _gaps(times: list[float], step: float, end: float) -> Iterator[tuple[float, float]]:
    for before, after in zip(times, [*times[1:], end], strict=True):
        if after - before > 1.5 * step:
            yield before, after


def _increase(source: PrometheusClient, metric: str, window: str, *matchers: str) -> str:
    return f"increase({source.of(metric, *matchers)}[{window}])"


def _sample(found: WindowFigures) -> str:
    """Returns the step of subqueries."""
    return f"{max(1, math.ceil((found.ends - found.begins) / MOST_SAMPLES))}s"


def _count(found: WindowFigures, source: PrometheusClient, window: str) -> None:
    queries = f"sum by (status, kind) ({_increase(source, 'ragherd_queries_total', window)})"
    for (status, kind), value in source.at(queries, found.ends, "status", "kind").items():
        found.queries[status] += round(value)
        if status == "hit" and kind:
            found.hits[kind] += round(value)
    counts: tuple[tuple[Counter[str], str, str, Labels], ...] = (
        (found.tokens, "ragherd_generation_tokens_total", "direction", ()),
        (found.rejected, "ragherd_bulkhead_rejected_total", "reason", ()),
        (found.errors, "ragherd_http_request_duration_seconds_count", "status", (FAILED_QUERIES,)),
    )
    for sums, metric, label, matchers in counts:
        query = f"sum by ({label}) ({_increase(source, metric, window, *matchers)})"
        sums.update({name: round(value) for (name,), value in source.at(query, found.ends, label).items()})
    found.errors = Counter({f"HTTP {name}": count for name, count in found.errors.items() if count})


def _time_breakers(found: WindowFigures, source: PrometheusClient, window: str) -> None:
    state = f"max by (name, state) ({source.of('ragherd_circuitbreaker_state')})"
    shares = source.at(f"avg_over_time({state}[{window}:{_sample(found)}])", found.ends, "name", "state")
    for (name, one), share in shares.items():
        found.breakers.setdefault(name, {})[one.upper()] = share * found.known


def _count_starts(found: WindowFigures, source: PrometheusClient, window: str) -> None:
    """Counts workers that started in replicas that were there before: they replaced others.

    How many workers a new replica has, its counter does not tell, so its later starts are not explained.
    """
    labels = ("instance", "pod")
    before = source.at(f"count by (instance, pod) ({source.of('ragherd_build_info')})", found.begins, *labels)
    increase = _increase(source, "ragherd_workers_started_total", window)
    starts = source.at(f"sum by (instance, pod) ({increase})", found.ends, *labels)
    if starts:
        found.restarts = sum(round(value) for name, value in starts.items() if name in before)
        found.unexplained_starts = sum(round(value) for name, value in starts.items() if name not in before)


def _measure(found: WindowFigures, source: PrometheusClient, window: str) -> None:
    """Latency. The mean of a stage is its time divided by its count."""
    means: dict[str, float | None] = {}
    for stage in ("total", "generate"):
        matcher = f'stage="{stage}"'
        total, count = (
            source.at(f"sum({_increase(source, f'{STAGES}_{part}', window, matcher)})", found.ends).get((), 0.0)
            for part in ("sum", "count")
        )
        means[stage] = 1000 * total / count if count else None
    found.mean_ms, found.uncached_ms = means["total"], means["generate"]
    found.uncached_is = "the mean of the stage generate"
    buckets = _increase(source, f"{STAGES}_bucket", window, TOTAL)
    figures = {"mean": found.mean_ms}
    for percent in PERCENTILES:
        query = f"1000 * histogram_quantile({percent / 100}, sum by (le) ({buckets}))"
        figures[f"p{percent}"] = source.at(query, found.ends).get(())
    found.latency = {ALL: figures}


def _observe(found: WindowFigures, source: PrometheusClient, window: str) -> None:
    """Wrong answers, as last observed, and the use of the connection pools."""
    all_kinds = 'kind="all"'
    rate = f"max by (bound) ({source.of('ragherd_cache_false_hit_rate', all_kinds)})"
    bounds = {bound: value for (bound,), value in source.at(rate, found.ends, "bound").items()}
    samples = source.at(f"max({source.of('ragherd_cache_false_hit_samples', all_kinds)})", found.ends).get((), 0.0)
    if samples and {"estimate", "low", "high"} <= set(bounds):
        found.false_hits = {**bounds, "samples": round(samples)}
    active = source.of("ragherd_pool_connections", 'state="active"')
    for name, selector in (("in_use", active), ("waiting", source.of("ragherd_pool_waiting"))):
        query = f"avg_over_time(sum({selector})[{window}:{_sample(found)}])"
        found.pool[name] = round(source.at(query, found.ends).get((), 0.0), 4)


def _charted(source: PrometheusClient, found: WindowFigures) -> Iterator[Slice]:
    """Yields the slices for the charts."""
    length = found.ends - found.begins
    step = max(LEAST_STEP, math.ceil(length / MOST_SLICES))
    first = min(found.begins + step, found.ends)
    asked, each = (first, found.ends, step), f"{step:.0f}s"
    counts = source.over(f"sum by (status) ({_increase(source, 'ragherd_queries_total', each)})", *asked, "status")
    buckets = _increase(source, f"{STAGES}_bucket", each, TOTAL)
    p95 = source.over(f"1000 * histogram_quantile(0.95, sum by (le) ({buckets}))", *asked).get((), {})
    state = f"max by (name, state) ({source.of('ragherd_circuitbreaker_state')})"
    states = source.over(f"avg_over_time({state}[{each}:{_sample(found)}])", *asked, "name", "state")
    main = min((name for name, _ in states), default="")
    for at in sorted({at for values in (*counts.values(), *states.values()) for at in values}):
        one = Slice(at - step, step, known=step)
        one.queries.update({status: round(values.get(at, 0.0)) for (status,), values in counts.items()})
        slow = p95.get(at, math.nan)
        one.p95 = {ALL: slow if math.isfinite(slow) else None}
        for (name, state_name), values in states.items():
            if name == main:
                one.states[state_name.upper()] = values.get(at, 0.0) * step
        yield one


def max_error_rate(source: PrometheusClient, at: float) -> float | None:
    """Returns the highest accepted share of wrong answers, as it is without tightening."""
    target = source.at(f"max({source.of('ragherd_cache_target_error')})", at).get(())
    level = source.at(f"max({source.of('ragherd_cache_tightened')})", at).get((), 0.0)
    return None if not target else target * 2.0**level
