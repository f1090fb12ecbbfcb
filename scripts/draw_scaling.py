"""Simulates fleets of 10 to 1,000 replicas with the release's costs and draws docs/images/scaling.svg.

    .venv/bin/python -m scripts.draw_scaling [costs.json]

The simulated rows are saved next to the chart. A test checks that both agree.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from api.scaling.costs import load_costs
from api.scaling.plan import Demand
from ragherd.capacity import json_value

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
ROWS, CHART = IMAGES / "scaling.json", IMAGES / "scaling.svg"
REPLICAS: Final = (10, 20, 50, 100, 200, 500, 1000)
WORKERS: Final = 4
RATES: Final = (0, 1, 5)
"""Requests per second of each replica."""
SEEDS: Final = (1, 2, 3)
SHOWN: Final = (40, 100, 400, 1000, 4000)
"""Worker counts labeled on the axis."""
COLOURS: Final = ("#4e79a7", "#59a14f", "#e15759")
WIDTH, HEIGHT, MARGIN = 420, 300, 54

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: title, range of the logarithmic axis, and lines by name."""

    title: str
    low: float
    high: float
    limit: tuple[float, str]
    lines: dict[str, list[tuple[float, float]]]


def simulated(path: Path | None) -> list[Row]:
    """Returns the worst of the seeds for each size and rate."""
    from api.scaling.simulation import simulate

    costs, rows = load_costs(path), []
    for rate in RATES:
        for replicas in REPLICAS:
            demand = Demand(rate=rate * replicas, replicas=replicas, workers=WORKERS)
            found = [asdict(simulate(demand, costs, seed, seconds=3.0)) for seed in SEEDS]
            worst = {name: round(max(one[name] for one in found), 4) for name in found[0]}
            rows.append({"rate": rate, "replicas": replicas, "workers": demand.fleet, **worst})
            print(rows[-1], flush=True)
            if worst["utilisation"] > 0.98:
                break  # a larger fleet only waits longer
    return rows


def draw(rows: Sequence[Row]) -> str:
    """Returns the SVG chart of Redis's main thread, and of the time until the last worker knows."""

    def line(rate: int, value: Callable[[Row], float]) -> list[tuple[float, float]]:
        return [(row["workers"], value(row)) for row in rows if row["rate"] == rate]

    busy = {_named(rate): line(rate, lambda row: 100 * row["utilisation"]) for rate in RATES}
    notices = {_named(rate): line(rate, lambda row: _or_never(row["notice_most"])) for rate in RATES}
    panels = (
        Panel("Utilization of Redis's main thread (%)", 0.1, 100, (70, "70 %"), busy),
        Panel("Delay until the last worker knows of a transition (ms)", 1, 10_000, (1000, "poll interval"), notices),
    )
    drawn = "\n".join(_panel(panel, number * (WIDTH + 20)) for number, panel in enumerate(panels))
    size = f'width="{2 * WIDTH + 20}" height="{HEIGHT + 40}" viewBox="0 0 {2 * WIDTH + 20} {HEIGHT + 40}"'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    font = 'font-family="sans-serif" font-size="11" fill="#333333"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>\n{ground}\n{drawn}\n</svg>\n'


def _or_never(milliseconds: float | None) -> float:
    return math.inf if milliseconds is None else milliseconds


def _named(rate: int) -> str:
    return f"{rate} requests/s per replica" if rate else "idle"


def _panel(panel: Panel, left: int) -> str:
    def x(workers: float) -> float:
        return left + MARGIN + (WIDTH - MARGIN - 20) * math.log(workers / 40) / math.log(100)

    def y(value: float) -> float:
        shown = min(max(value, panel.low), panel.high)
        share = math.log(shown / panel.low) / math.log(panel.high / panel.low)
        return HEIGHT - (HEIGHT - MARGIN) * share

    parts = [f'<text x="{left + MARGIN}" y="20" font-size="13" font-weight="bold">{panel.title}</text>']
    for tick in _decades(panel.low, panel.high):
        parts.append(_rule(x(40), x(4000), y(tick), "#dddddd"))
        parts.append(f'<text x="{left + MARGIN - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    ticks = (f'x="{x(workers):.1f}" y="{HEIGHT + 16}" text-anchor="middle">{workers:,}' for workers in SHOWN)
    parts += [f"<text {tick}</text>" for tick in ticks]
    parts.append(f'<text x="{x(400):.1f}" y="{HEIGHT + 32}" text-anchor="middle">workers (4 per replica)</text>')
    limit, called = panel.limit
    parts.append(_rule(x(40), x(4000), y(limit), "#999999", ' stroke-dasharray="4 3"'))
    parts.append(f'<text x="{x(400):.1f}" y="{y(limit) - 4:.1f}" text-anchor="middle" fill="#777777">{called}</text>')
    for number, ((name, points), colour) in enumerate(zip(panel.lines.items(), COLOURS, strict=True)):
        path = " ".join(f"{x(workers):.1f},{y(value):.1f}" for workers, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for at, value in points]
        parts.append(f'<text x="{x(40) + 4:.1f}" y="{MARGIN + 24 + 15 * number}" fill="{colour}">{name}</text>')
    return "\n".join(parts)


def _rule(left: float, right: float, at: float, colour: str, more: str = "") -> str:
    return f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}" stroke="{colour}"{more}/>'


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]


def main() -> None:
    rows = simulated(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    IMAGES.mkdir(exist_ok=True)
    ROWS.write_text("[\n" + ",\n".join(json.dumps(json_value(row)) for row in rows) + "\n]\n")
    CHART.write_text(draw(rows))


if __name__ == "__main__":
    main()
