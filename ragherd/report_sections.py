"""What the deployment report says, as sections of text and tables, made from its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ragherd.config import as_written
from ragherd.report_charts import charts
from ragherd.report_criteria import Criterion, duration, figure, milliseconds, target_text
from ragherd.report_figures import ALL, ANSWERS
from ragherd.service_client import clean

VERDICTS: Final = {"go": "Go", "wait": "Wait", "roll back": "Roll back"}
RESULTS: Final = {True: "met", False: "missed", None: "not measurable"}
PERCENTILES: Final = ("mean", "p50", "p95", "p99")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report. `charts`: SVG by title, which only a page can show."""

    title: str
    text: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    items: Sequence[str] = ()
    charts: Mapping[str, str] = field(default_factory=dict)


def heading(found: Document) -> list[str]:
    """Returns what was looked at: the service, its version, and the window."""
    window = found["window"]
    lines = [f"{clean(found['url'] or 'unknown service')}, version {clean(str(found['version'] or 'unknown'))}"]
    span = f"{_moment(window['from'])} to {_moment(window['to'])} UTC, {duration(window['seconds'])}"
    asked = (
        ""
        if window["asked_from"] == window["from"]
        else f"; nothing is known before, from {_moment(window['asked_from'])}"
    )
    lines.append(f"{span}{asked}. Source: {found['source']}.")
    return lines


def sections(found: Document) -> Iterator[Section]:
    """Yields every section in order. Leaves out what is not known."""
    yield _criteria(found["criteria"])
    issues = [clean(one) for one in found["issues"]]
    yield Section("Issues found", text=() if issues else ("None.",), items=issues)
    if shown := charts(found["series"]):
        yield Section("Over time", charts=shown)
    yield _queries(found["figures"])
    yield from _breakers(found)
    yield from _capacity_used(found["figures"])
    yield _savings(found)
    if found["configuration"]:
        yield _settings("Configuration, as the service reports it", found["configuration"])
    if found["settings"] is not None:
        yield _settings("Settings of this environment that are not at their default", found["settings"])
    yield Section("How it was measured", items=_methods(found))


def _moment(text: str) -> str:
    return text.removesuffix("Z").replace("T", " ")[:16]


def criterion(one: Document) -> Criterion:
    """Returns a criterion from its JSON."""
    return Criterion(one["name"], one["title"], one["target"], one["measured"], one["met"], one["detail"])


def _criteria(rows: Sequence[Document]) -> Section:
    every = [criterion(one) for one in rows]
    cells = [
        (one.title, target_text(one).removeprefix("target "), figure(one), RESULTS[one.met], clean(one.detail))
        for one in every
    ]
    return Section("Success criteria", head=("criterion", "target", "measured", "result", "details"), rows=cells)


def _queries(figures: Document) -> Section:
    queries, latency = figures["queries"], figures["latency_ms"]
    total = sum(queries.values())
    rows = [
        (name, f"{count:,}", _percent(count, total), *_latencies(latency.get(name)))
        for name in (*ANSWERS, "error", "left")
        if (count := queries.get(name))
    ]
    rows.append((ALL, f"{total:,}", _percent(total, total), *_latencies(latency.get(ALL))))
    head = ("cache status", "queries", "share", *PERCENTILES)
    return Section("Queries and latency", text=_kinds(figures["hits"]), head=head, rows=rows)


def _kinds(hits: Document) -> list[str]:
    said = ", ".join(f"{count:,} {kind}" for kind, count in hits.items() if count)
    return [f"Hits: {said}."] if said else []


def _latencies(figures: Document | None) -> tuple[str, ...]:
    return tuple(milliseconds((figures or {}).get(name)) for name in PERCENTILES)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _breakers(found: Document) -> Iterator[Section]:
    times, calls = found["figures"]["breaker_seconds"], found["calls"]
    states = ("CLOSED", "HALF_OPEN", "OPEN")
    rows = []
    for name in sorted({*times, *calls}):
        total = sum(times.get(name, {}).values())
        counts = calls.get(name, {})
        shares = [_percent(times.get(name, {}).get(state, 0.0), total) for state in states]
        counted = [f"{counts[one]:,}" if one in counts else "-" for one in CALLS]
        rows.append((clean(name), counts.get("state", "-"), *shares, *counted))
    if rows:
        head = ("breaker", "state now", *states, "calls", "failed", "slow", "rejected")
        text = ["States are shares of the window. Calls are counted since the last reset."]
        yield Section("Circuit breakers", text=text, head=head, rows=rows)


CALLS: Final = ("total_calls", "failure_count", "slow_calls", "rejected_calls")


def _capacity_used(figures: Document) -> Iterator[Section]:
    usage = {"connections to Ollama": figures["pool"], **{f"bulkhead {k}": v for k, v in figures["bulkheads"].items()}}
    rows = [
        (
            clean(name),
            *(_plain(one.get(field)) for field in ("in_use", "waiting", "limit")),
            _share(one.get("utilization")),
        )
        for name, one in usage.items()
        if one
    ]
    workers = figures["workers"]
    text = [f"Workers: {_range(workers)}. Restarts: {figures['restarts']:,}."] if workers else []
    if rows or text:
        head = ("means of the window", "in use", "waiting", "limit", "utilization")
        yield Section("Connections, bulkheads and workers", text=text, head=head, rows=rows)


def _range(workers: Document) -> str:
    least, most = workers["least"], workers["most"]
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}".rstrip("0").rstrip(".")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _savings(found: Document) -> Section:
    figures, savings = found["figures"], found["savings"]
    tokens = figures["tokens"]
    read, written = tokens.get("prompt", 0), tokens.get("completion", 0)
    rows = [("Tokens read and generated", f"{read:,} and {written:,}")]
    if savings["tokens"] is not None:
        rows.append(("Tokens saved", f"about {savings['tokens']:,}"))
    if savings["money"] is not None:
        rows.append(("Money spent and saved", f"about {savings['spent']:,.2f} and {savings['money']:,.2f}"))
    if cache := found["cache"]:
        rows.append(("Cached answers", f"{cache['cache_size']:,} of at most {cache['max_cache_size']:,}"))
        rows.append(("Evicted, since the statistics began", f"{cache['evictions']:,}"))
    return Section("Cache and cost", head=("figure", "value"), rows=rows)


def _settings(title: str, values: Mapping[str, Any]) -> Section:
    rows = [(clean(name), clean(_value(value))) for name, value in values.items()]
    return Section(title, text=() if rows else ("None.",), head=("name", "value") if rows else (), rows=rows)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else as_written(value)


def _methods(found: Document) -> list[str]:
    lines = [
        "Hit rate: hits / (hits + misses). Error rate: errors / (answers + errors); queries whose client left do not "
        "count.",
        "Latency reduction: 1 - mean of all answers / mean of uncached answers. While the cache answers, the model has "
        "less to do, so without it uncached answers would take longer: the true reduction is larger.",
        "Cost saved: answers without a generation / all answers. Each counts as an average generated one.",
        f"Capacity: {found['capacity']['formula']}",
        "Wrong answers: the current estimate of the service, from labels of a sample, with a 95 % interval.",
        "Gaps: a criterion is met or missed only if that holds whatever happened in the gaps.",
    ]
    if found["source"] == "history":
        lines.append("Latencies are counted in buckets whose bounds differ by a quarter.")
        lines.append(
            "The error not-cached does not count: the client accepted only a cached answer, and there was none."
        )
    else:
        lines.append("Counts come from increase(), which extrapolates. A gap of less than two minutes is not seen.")
    return lines
