"""The document of a run as Markdown tables and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, Final

from ragherd.benchmark_file import BUSY
from scripts.benchmarks import figures
from scripts.benchmarks.figures import TARGETS, Document, Target, by_cpu, figures_of, medians

MET, MISSED = "#59a14f", "#e15759"
WARNING: Final = " **Other programs kept the machine busy: trust the CPU times more than the others.**"
PARTS: Final = {
    "worker_us": ("the server", "#4e79a7"),
    "redis_us": ("Redis", "#e15759"),
    "load_us": ("load", "#bab0ac"),
}
WORKERS: Final = {"plain": "without ONNX", "onnx": "with ONNX"}
OURS: Final = frozenset({figures.EXACT, figures.NEAR, figures.SEMANTIC, figures.CHAT})


def markdown(document: Document) -> str:
    """Returns the tables: targets, servers in turns, misses and streams, profiles, and the machine."""
    parts = [_targets(document), _cases(document), _paths(document), _profiles(document), _machine(document)]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, unit: str = "") -> str:
    """Formats three digits of a value, or all before the decimal point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{f' {unit}' if unit else ''}"


def verdict(target: Target, figure: float | None) -> str:
    """Returns whether the target is met; without a figure, that it was not measured."""
    if figure is None:
        return "not measured"
    return "yes" if target.is_met_by(figure) else "no"


def _targets(document: Document) -> str:
    found = figures_of(document)
    rows = []
    for target in TARGETS:
        figure = found.get(target.key)
        wanted = (
            f"{'at least' if target.least else 'at most'} {target.goal:,g}{f' {target.unit}' if target.unit else ''}"
        )
        shown = "" if figure is None else number(figure, target.unit)
        rows.append([target.name, wanted, shown, verdict(target, figure)])
    return table(["figure", "target", "measured", "met"], rows)


def _cases(document: Document) -> str:
    rows = []
    cases: Mapping[str, Any] = document["cases"]
    base = medians(cases[figures.BARE])["rate"]
    for name, rounds in cases.items():
        row = medians(rounds)
        cpu = [number(row[part]) for part in PARTS]
        rows.append(
            [name, number(row["rate"]), number(row["rate"] / base), number(row["p50_ms"]), number(row["p99_ms"]), *cpu]
        )
    head = ["", "requests/s", "of bare", "p50 ms", "p99 ms", "CPU of the server, us", "of Redis", "of the load"]
    return table(head, rows)


def _paths(document: Document) -> str:
    rows = [[f"{pair}, requests per second of CPU time", number(value)] for pair, value in by_cpu(document).items()]
    for name, halved in document["half_load"].items():
        rows.append([f"{name}, at half its maximum load: p50, p99", _times(medians(halved))])
    for clients, row in document["misses"].items():
        direct, miss = medians(row["direct"]), medians(row["miss"])
        plural = "client" if clients == "1" else "clients"
        rows.append([f"direct call, {clients} {plural}: p50, p99", _times(direct)])
        rows.append(
            [
                f"miss, {clients} {plural}: p50, p99, CPU of the worker",
                f"{_times(miss)}, {number(miss['worker_us'] / 1000)} ms",
            ]
        )
    for name, tokens in document["streams"].items():
        rows.append([f"CPU per streamed token, {name}", number(medians(tokens)["token_us"], "us")])
    embedded = document["embedded"]
    for side, name in (("hit", "CPU of a semantic hit that embeds"), ("alone", "CPU of the embedder alone")):
        rows.append([name, number(medians(embedded[side])["cpu_us"] / 1000, "ms")])
    for side in document["sizes"].values():
        row = medians(side["rounds"])
        shown = f"{number(row['exact_ms'])}, {number(row['semantic_ms'])} ms"
        rows.append([f"look-up in {side['entries']:,} entries: exact, semantic p50", shown])
    for kind, times in document["processes"]["starts"].items():
        rows.append([f"start of a worker {WORKERS[kind]}", number(statistics.median(times), "s")])
    for kind, private in document["processes"].get("private", {}).items():
        rows.append(
            [f"memory of a worker that it does not share with its master, {WORKERS[kind]}", number(private, "MB")]
        )
    for name, calls in document["by_client"].items():
        rows.append([f"{name}: p50, p99 in the openai client, one call at a time", _times(medians(calls))])
    return table(["", "median of the rounds"], rows)


def _profiles(document: Document) -> str:
    found: Mapping[str, Mapping[str, float]] = document["profiles"]
    if not found:
        return ""
    parts = sorted(set().union(*found.values()), key=lambda part: -sum(one.get(part, 0.0) for one in found.values()))
    rows = [[part, *(f"{one.get(part, 0.0):.0%}" for one in found.values())] for part in parts]
    return table(["where a worker's time goes", *found], rows)


def _times(row: Mapping[str, float]) -> str:
    return f"{number(row['p50_ms'])}, {number(row['p99_ms'])} ms"


def _machine(document: Document) -> str:
    machine, plan = document["machine"], document["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    load = f"{machine['load_average']:g} at the start, {document['load_at_end']:g} at the end"
    busy = "" if machine["load_average"] <= BUSY * machine["cores"] else WARNING
    return (
        f"{document['made']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_mib']:,} MiB, "
        f"{machine['os']}, Python {machine['python']}; {versions}. Load average: {load}. "
        f"{plan['rounds']} rounds of {plan['seconds']:g} s, {plan['connections']} connections.{busy}"
    )


# -- Picture -----------------------------------------------------------------------------------------------------------


def draw(document: Document) -> str:
    """Returns an SVG: requests per second, CPU time of a request, and each figure as a share of its target."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "ragherd", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 11), layout="constrained")
        rates, costs, targets = figure.subplots(3, height_ratios=(1, 1, 1.5))
        cases = {name: medians(rounds) for name, rounds in document["cases"].items()}
        _draw_rates(rates, cases)
        _draw_costs(costs, cases)
        _draw_targets(targets, figures_of(document))
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _draw_rates(axes: Any, cases: Mapping[str, Mapping[str, float]]) -> None:
    rates = [row["rate"] for row in cases.values()]
    bars = axes.barh(list(cases), rates, color=[MET if name in OURS else "#4e79a7" for name in cases])
    axes.bar_label(bars, [number(rate) for rate in rates], padding=3)
    axes.set(title="Requests a second (Ragherd in green)", xlim=(0, max(rates) * 1.15))
    axes.invert_yaxis()


def _draw_costs(axes: Any, cases: Mapping[str, Mapping[str, float]]) -> None:
    totals = {name: sum(row[part] for part in PARTS) / 1000 for name, row in cases.items()}
    limit = 3 * max(total for name, total in totals.items() if name in OURS)
    left = [0.0] * len(cases)
    for part, (label, color) in PARTS.items():
        values = [row[part] / 1000 for row in cases.values()]
        axes.barh(list(cases), values, left=left, color=color, label=label)
        left = [sum(pair) for pair in zip(left, values, strict=True)]
    for place, total in enumerate(totals.values()):
        axes.text(min(total, limit) + limit * 0.01, place, number(total), va="center")
    axes.set(title="CPU time of a request, ms (longer bars are cut)", xlim=(0, limit * 1.15))
    axes.legend(loc="upper right")
    axes.invert_yaxis()


def _draw_targets(axes: Any, found: Mapping[str, float]) -> None:
    measured = [target for target in TARGETS if target.key in found]
    shares = [max(found[target.key], 0.01) / target.goal for target in measured]
    colors = [MET if target.is_met_by(found[target.key]) else MISSED for target in measured]
    axes.barh([target.name for target in measured], [share - 1 for share in shares], left=1, color=colors)
    axes.set(title="Measured / target: green is met, red is not", xscale="log")
    axes.axvline(1, color="#333333", linewidth=1)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.invert_yaxis()
