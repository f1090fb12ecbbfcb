"""The result of a load test as text, as a picture and as an HTML page. All are made from its JSON document."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from api import __version__
from ragherd.load_plan import Tally
from ragherd.quality import STYLE
from ragherd.service_client import clean, new_table, terminal

FIGURES: Final = ("avg", "min", "p50", "p95", "p99", "max")
TITLES: Final = ("cache status", "requests", *(f"{name}, ms" for name in FIGURES))
COLORS: Final = {"p50": "#59a14f", "p95": "#4e79a7", "max": "#e15759"}
LATE_MS: Final = 50.0
"""A load generator that is this late at p99 is itself part of the latency."""

Document = Mapping[str, Any]


# -- Terminal ----------------------------------------------------------------------------------------------------------


def progress_line(tally: Tally, seconds: float) -> str:
    """Returns the figures of a test that is running, in a line."""
    figures = tally.latency.figures()
    times = "/".join(_ms(figures[name]) for name in ("p50", "p95", "p99"))
    return (
        f"{seconds:,.0f} s: {tally.requests:,} requests ({tally.requests / max(seconds, 0.001):,.1f}/s), "
        f"{tally.failed:,} failed, {100 * tally.hit_rate:.1f} % hits, p50/p95/p99 {times} ms. Ctrl-C ends it."
    )


def print_result(found: Document) -> None:
    """Prints the figures of a test that has ended."""
    console = terminal()
    console.print(summary(found))
    table = new_table(*TITLES)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    for line in notes(found):
        console.print(line)


def summary(found: Document) -> str:
    """Returns the result in a line."""
    return (
        f"{found['requests']:,} requests in {found['seconds']:,.1f} s ({found['requests_per_second']:,.1f}/s); "
        f"failed {found['failed']:,} ({100 * found['error_rate']:.2f} %); hit rate {100 * found['hit_rate']:.1f} %"
    )


def rows(found: Document) -> Iterator[tuple[str, ...]]:
    """Yields the cells of the table: all requests, and those of each cache status."""
    counts, latencies = found["requests_by_status"], found["latency_ms_by_status"]
    yield "all", f"{found['requests']:,}", *(_ms(found["latency_ms"][one]) for one in FIGURES)
    for name, figures in latencies.items():
        yield clean(name.replace("_", ", ")), f"{counts[name]:,}", *(_ms(figures[one]) for one in FIGURES)


def notes(found: Document) -> list[str]:
    """Returns the plan, the errors, and what makes the figures less certain."""
    lines = [plan_line(found["plan"])]
    for kind, count in sorted(found["errors"].items(), key=lambda one: -one[1]):
        example = clean(found["error_examples"][kind])
        lines.append(f"{count:,} x {clean(kind)}{f', such as: {example}' if example else ''}")
    if found["unfinished"]:
        lines.append(f"{found['unfinished']:,} requests were open when the test was interrupted. They are not counted.")
    lag = found["generator_lag_ms"]["p99"]
    if lag is not None and lag > LATE_MS:
        lines.append(
            f"This machine was too slow for the load: it started 1 % of the requests over {lag:,.0f} ms late. Its own "
            "delays are part of the latency."
        )
    return lines


def plan_line(plan: Document) -> str:
    """Returns how the load was made, in a line."""
    many = f"{plan['concurrency']:,}"
    if plan["rate"] is None:
        load = f"closed loop, {many} users" + (f", {plan['think']:g} s think time" if plan["think"] else "")
    else:
        load = f"open loop, {plan['rate']:g} requests/s, at most {many} open"
    ramp = f", ramp of {plan['ramp']:g} s" if plan["ramp"] else ""
    spikes = f"{plan['spike']:g} times the load for {plan['spike_seconds']:g} of every {plan['spike_every']:g} s"
    spike = f", {spikes}" if plan["spike"] > 1 else ""
    return f"{load}{ramp}{spike}; questions: {clean(plan['questions'])}; seed {plan['seed']}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


# -- Files -------------------------------------------------------------------------------------------------------------


def write_report(found: Document, folder: Path) -> list[Path]:
    """Writes the JSON document, the picture and the page. Raises `OSError`."""
    picture = draw(found)
    data, image, page = (folder / f"load-test.{kind}" for kind in ("json", "png", "html"))
    data.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    image.write_bytes(picture)
    page.write_text(page_of(found, picture), encoding="utf-8")
    return [data, image, page]


def draw(found: Document) -> bytes:
    """Returns a PNG: latency over time, requests per second over time, and latency by cache status."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), dpi=110, layout="constrained")
    latency, rate, statuses = figure.subplots(3)
    _draw_latency(latency, found["series"])
    _draw_rate(rate, found["series"])
    _draw_statuses(statuses, found["latency_ms_by_status"])
    figure.suptitle(summary(found), fontsize=10)
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_latency(axes: Any, series: Sequence[Document]) -> None:
    for name, color in COLORS.items():
        points = [(row["second"], row[name]) for row in series if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), ".-", label=name, color=color)
    axes.set(xlabel="planned start of the requests, s", ylabel="latency, ms", ylim=(0, None))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def _draw_rate(axes: Any, series: Sequence[Document]) -> None:
    width = series[1]["second"] if len(series) > 1 else 1.0
    edges = [number * width for number in range(len(series) + 1)]
    for name, color in (("requests", "#4e79a7"), ("hits", "#59a14f"), ("failed", "#e15759")):
        axes.stairs([row[name] / width for row in series], edges, label=name, color=color)
    axes.set(xlabel="planned start of the requests, s", ylabel="requests/s", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_statuses(axes: Any, latencies: Document) -> None:
    for place, (name, color) in enumerate((("p50", "#59a14f"), ("p95", "#4e79a7"), ("p99", "#b07aa1"))):
        places = [number + 0.27 * (place - 1) for number in range(len(latencies))]
        values = [one[name] for one in latencies.values()]
        bars = axes.bar(places, values, 0.25, label=name, color=color)
        axes.bar_label(bars, [f"{value:,.{0 if value >= 100 else 1}f}" for value in values], fontsize=8)
    axes.set_xticks(range(len(latencies)), [name.replace("_", ", ") for name in latencies])
    axes.set_ylabel("latency, ms")
    if latencies:
        axes.set_yscale("log")
        least, most = min(one["p50"] for one in latencies.values()), max(one["p99"] for one in latencies.values())
        axes.set_ylim(max(least / 2, 0.001), max(most * 2, 0.01))  # leaves room for the legend
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter("")
        axes.legend()


def page_of(found: Document, picture: bytes) -> str:
    """Returns an HTML page with the picture inside. It refers to no other file and no host."""
    image = base64.b64encode(picture).decode()
    body = "".join(_table_row(row) for row in rows(found))
    head = "".join(f"<th>{html.escape(one)}</th>" for one in TITLES)
    said = "".join(f"<li>{html.escape(line)}</li>" for line in notes(found))
    criteria = "".join(f"<li>{html.escape(_criterion(one))}</li>" for one in found["criteria"])
    service = html.escape(f"{clean(found['url']).partition('://')[2]}, version {clean(str(found['version']))}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Load test</title>'
        f"<style>{STYLE}</style></head><body><h1>Load test</h1><p>{service}</p>"
        f'<p class="front">{html.escape(summary(found))}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{said}</ul>"
        f'<img alt="Latency and requests over time, and latency by cache status" src="data:image/png;base64,{image}">'
        f"<h2>Criteria</h2><ul>{criteria}</ul><p>Percentiles are within 0.5 %. Ragherd {__version__}</p>"
        "</body></html>\n"
    )


def _criterion(one: Document) -> str:
    verdict = {True: "met", False: "missed", None: "not measured"}[one["met"]]
    return f"{one['name']} at most {one['target']:g}: {verdict} ({one['measured']})"


def _table_row(columns: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in columns)}</tr>"
