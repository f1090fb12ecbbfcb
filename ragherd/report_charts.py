"""The charts of the deployment report as SVG inside the page. Colors are CSS variables, so they follow the theme.

A gap is hatched: nothing is drawn where nothing is known.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

WIDTH, HEIGHT = 860, 200
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 26
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
STRIP: Final = 26
STATUSES: Final = ("hit", "coalesced", "stale", "miss", "bypass", "error")
"""In the order in which they are stacked, from the bottom."""
LATENCIES: Final = ("hit", "miss", "all")
STATES: Final = ("CLOSED", "HALF_OPEN", "OPEN")
LEAST_KNOWN: Final = 0.01
HATCH: Final = (
    '<svg width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="gap" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="gap-back"/><line y2="6" class="gap-line"/></pattern></defs></svg>'
)
"""The pattern of gaps. A page with charts needs it once."""

Row = Mapping[str, Any]


class TimeAxis:
    """Maps times to pixels."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.begins = _time(rows[0]["at"])
        self.ends: float = max(_time(rows[-1]["at"]) + rows[-1]["seconds"], self.begins + 1)

    def x(self, at: float) -> float:
        return round(LEFT + INNER_WIDTH * (at - self.begins) / (self.ends - self.begins), 2)

    def span(self, row: Row) -> tuple[float, float]:
        """Returns where a row begins, and its width."""
        begin = _time(row["at"])
        left = self.x(begin)
        return left, max(0.0, self.x(min(begin + row["seconds"], self.ends)) - left)

    def middle(self, row: Row) -> float:
        left, width = self.span(row)
        return left + width / 2

    def labels(self, y: float) -> Iterator[str]:
        days = self.ends - self.begins > 86_400
        for number in range(5):
            at = self.begins + (self.ends - self.begins) * number / 4
            text = datetime.fromtimestamp(at, UTC).strftime("%b %d %H:%M" if days else "%H:%M")
            anchor = ("start", "middle", "middle", "middle", "end")[number]
            yield f'<text x="{self.x(at)}" y="{y}" text-anchor="{anchor}">{text}</text>'


def charts(rows: Sequence[Row]) -> dict[str, str]:
    """Returns each chart by its title."""
    if not rows:
        return {}
    return {
        "Queries per minute, by cache status": _framed(_queries(rows), "Queries over time"),
        "Latency p95": _framed(_latencies(rows), "95th percentile of the latency over time"),
        "Breaker": _framed(_states(rows), "States of the circuit breaker over time", STRIP + BOTTOM + TOP),
    }


def legend(names: Sequence[str], prefix: str) -> str:
    """Returns the key of the colors."""
    items = "".join(f'<li><i class="{prefix}-{one.lower()}"></i>{html.escape(_label(one))}</li>' for one in names)
    return f'<ul class="legend">{items}</ul>'


def _label(name: str) -> str:
    return {"HALF_OPEN": "HALF-OPEN", "all": "all answers"}.get(name, name)


def _framed(drawing: tuple[str, str], label: str, height: int = HEIGHT) -> str:
    """Returns the chart and its legend."""
    body, key = drawing
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}">{body}</svg>{key}'


def _queries(rows: Sequence[Row]) -> tuple[str, str]:
    shown = [one for one in STATUSES if any(row["queries"].get(one) for row in rows)]
    rates = [{one: 60 * row["queries"].get(one, 0) / max(row["known_seconds"], 1.0) for one in shown} for row in rows]
    top = nice(max((sum(rate.values()) for rate in rates), default=0.0))
    axis = TimeAxis(rows)
    parts = [*_grid(top, lambda value: f"{value:g}"), *_gaps(rows, axis), *axis.labels(HEIGHT - 6)]
    for row, rate in zip(rows, rates, strict=True):
        left, width = axis.span(row)
        y = float(HEIGHT - BOTTOM)
        for name in shown:
            size = INNER_HEIGHT * rate[name] / top
            y -= size
            if size:
                parts.append(_box(left, y, width, size, f"s-{name}"))
    return "".join(parts), legend(shown, "s")


def _latencies(rows: Sequence[Row]) -> tuple[str, str]:
    """Draws p95 on a logarithmic axis, because hits are a hundred times as fast as misses."""
    values = {name: [row["p95_ms"].get(name) for row in rows] for name in LATENCIES}
    known = [value for line in values.values() for value in line if value]
    if not known:
        return f'<text x="{LEFT}" y="{HEIGHT / 2}">No latency is known.</text>', ""
    low, high = math.floor(math.log10(min(known))), max(math.ceil(math.log10(max(known))), 1)
    high = max(high, low + 1)
    axis = TimeAxis(rows)
    parts = [*_gaps(rows, axis), *axis.labels(HEIGHT - 6)]
    for power in range(low, high + 1):
        y = _scaled(power, low, high)
        parts.append(_line(y, _milliseconds(10.0**power)))
    for name, line in values.items():
        points = [(axis.middle(row), value) for row, value in zip(rows, line, strict=True)]
        for run in _runs(points):
            path = " ".join(f"{x:.1f},{_scaled(math.log10(value), low, high):.1f}" for x, value in run)
            parts.append(f'<polyline class="l-{name}" points="{path}"/>')
            parts.extend(
                f'<circle class="l-{name}" cx="{x:.1f}" cy="{_scaled(math.log10(value), low, high):.1f}" r="2"/>'
                for x, value in run
            )
    return "".join(parts), legend([name for name, line in values.items() if any(line)], "l")


def _states(rows: Sequence[Row]) -> tuple[str, str]:
    """Draws the share of each state in every slice, so that a short outage stays visible."""
    axis = TimeAxis(rows)
    parts = [*_gaps(rows, axis, STRIP), *axis.labels(TOP + STRIP + 18)]
    for row in rows:
        left, width = axis.span(row)
        total = sum(row["breaker_seconds"].values())
        y = float(TOP + STRIP)
        for name in STATES if total else ():
            size = STRIP * row["breaker_seconds"].get(name, 0.0) / total
            size = max(size, 2.0) if size > 0 and name != "CLOSED" else size
            y -= size
            if size:
                parts.append(_box(left, max(y, TOP), width, size, f"b-{name.lower()}"))
    return "".join(parts), legend(STATES, "b")


def _runs(points: Sequence[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    """Yields the stretches without a missing value."""
    run: list[tuple[float, float]] = []
    for x, value in points:
        if value:
            run.append((x, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _scaled(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - INNER_HEIGHT * (value - low) / (high - low)


def _gaps(rows: Sequence[Row], axis: TimeAxis, height: int = INNER_HEIGHT) -> Iterator[str]:
    for row in rows:
        if row["known_seconds"] < LEAST_KNOWN * row["seconds"]:
            left, width = axis.span(row)
            yield f'<rect x="{left}" y="{TOP}" width="{width:.2f}" height="{height}" fill="url(#gap)"/>'


def _grid(top: float, text: Callable[[float], str]) -> Iterator[str]:
    for number in range(5):
        value = top * number / 4
        yield _line(HEIGHT - BOTTOM - INNER_HEIGHT * number / 4, text(value))


def _line(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _box(x: float, y: float, width: float, height: float, name: str) -> str:
    return f'<rect class="{name}" x="{x}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'


def _milliseconds(value: float) -> str:
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def nice(value: float) -> float:
    """Returns the next larger round number, whose quarters are round too."""
    if value <= 0:
        return 4.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * power >= value)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
