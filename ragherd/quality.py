"""`ragherd quality`: how often the semantic cache hits and errs, on your own questions or in the running service."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from math import ceil, log, log1p
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from api import __version__
from api.errors import SettingsError
from ragherd.exits import FAILED, USAGE_ERROR, exit_with

if TYPE_CHECKING:
    from api.quality.measurement import Checked, Figures, Measurement, Rate, Recommendation
    from api.quality.replay import Policy
    from ragherd.quality_samples import Samples

SHOW, MEASURE, RECOMMEND = "show", "measure", "recommend"
HIGHEST_ERROR: Final = 0.02
COLORS: Final = {"fixed": "#e15759", "guarded": "#4e79a7", "verified": "#59a14f"}
TITLES: Final = ("policy", "setting", "hits %", "wrong % of hits", "wrong % of requests", "recall %")
STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; } .front { font-weight: 600; }
"""


def quality(
    action: Annotated[str, typer.Argument(help="`show`, `measure` or `recommend`.")] = SHOW,
    file: Annotated[
        str | None,
        typer.Argument(help="CSV or JSON Lines file; or `fow`: the pairs of the package fow-cache."),
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policy to measure. Can be repeated. Default: all.")] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(min=0.6, max=1.0, help="Cosine to measure. Can be repeated.")
    ] = None,
    max_error_rate: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Highest share of wrong answers among hits.")
    ] = HIGHEST_ERROR,
    verifier: Annotated[
        Path | None,
        typer.Option(help="Folder of a verifier, or `builtin`. `verified` is measured without and with it."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many questions or pairs.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Leading questions that fill the cache and are not counted.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order, the halves and the intervals.")] = 1,
    keep_order: Annotated[
        bool,
        typer.Option("--keep-order", help="Ask questions with intents in the file's order. A log always keeps it."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and pareto.png (extra `reports`).")] = None,
    url: Annotated[str | None, typer.Option(help="Service to ask. Default: HOST and PORT.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how often the semantic cache is wrong, or measure it on your own questions.

    `show` asks the running service (key in RAGHERD_API_KEY). `measure FILE` and `recommend FILE` run without Redis and
    Ollama, with the embedder of EMBEDDER=onnx. A file has labeled pairs (columns a, b, same), questions with intents
    (question, intent), or a log (question, and optionally answer).

    `recommend` finds the setting with the most hits that keeps to --max-error-rate. If there is none, it exits with 1.
    """
    if action == SHOW:
        _show(url, as_json=as_json)
        return
    file = _checked(action, file, out)
    found = _measured(
        file, policy, threshold, limit, after, seed, keep_order=keep_order, target=max_error_rate, verifier=verifier
    )
    if action == MEASURE:
        _print_measurement(found, out, as_json=as_json)
    else:
        _print_recommendation(found, max_error_rate, as_json=as_json)


# -- Measure and recommend ---------------------------------------------------------------------------------------------


def _measured(
    file: str,
    names: Sequence[str] | None,
    thresholds: Sequence[float] | None,
    limit: int | None,
    after: int,
    seed: int,
    *,
    keep_order: bool,
    target: float,
    verifier: Path | None,
) -> Measurement:
    from api.settings import load_settings
    from ragherd.backup import shown_progress
    from ragherd.quality_replay import measure, open_product, policies_of
    from ragherd.quality_samples import MOST_QUESTIONS, Unreadable, read_samples

    try:
        samples = read_samples(file)
        chosen = samples.sample(limit, seed, shuffled=_is_shuffled(samples, limit, keep_order=keep_order))
        if chosen.kind != "pairs" and len(chosen) > MOST_QUESTIONS:
            raise exit_with(f"{file} has {len(chosen):,} questions: use --limit {MOST_QUESTIONS}", USAGE_ERROR)
        if after >= len(chosen):
            raise exit_with(f"--after {after}: the file has {len(chosen):,} questions", USAGE_ERROR)
        product = open_product(load_settings(), verifier)
        policies: Sequence[Policy] = policies_of(
            names, thresholds, target, verifier=verifier is not None, prior=product.prior
        )
        with shown_progress() as step:
            return measure(chosen, policies, product, seed, after, step)
    except (Unreadable, SettingsError, ValueError) as error:
        raise exit_with(str(error), USAGE_ERROR) from None


def _is_shuffled(samples: Samples, limit: int | None, *, keep_order: bool) -> bool:
    """Files with intents are often sorted by intent, so they are shuffled. The order of pairs does not matter."""
    return not keep_order and (samples.kind == "intents" or (samples.kind == "pairs" and limit is not None))


def _print_measurement(found: Measurement, out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        try:
            written = write_report(found, out)
        except OSError as error:
            raise exit_with(f"--out {out}: {error.strerror or error}", USAGE_ERROR) from None
    if as_json:
        typer.echo(json.dumps(found.document()))
        return
    print_tables(found)
    if out is not None:
        typer.echo(f"Wrote {' and '.join(map(str, written))}")


def _print_recommendation(found: Measurement, max_error_rate: float, *, as_json: bool) -> None:
    from ragherd.quality_replay import recommended

    if all(row.figures.wrong is None for row in found.rows):
        raise exit_with(
            "recommend needs to know which answers are wrong: pairs, intents, or a log with answers", USAGE_ERROR
        )
    best = recommended(found, max_error_rate)
    text = json.dumps(recommendation_document(found, best)) if as_json else recommendation_text(found, best)
    typer.echo(text)
    if best.best is None:
        raise typer.Exit(FAILED)


def _checked(action: str, file: str | None, out: Path | None) -> str:
    """Returns the file to read. Ends the command if the arguments do not fit the action."""
    if action not in (MEASURE, RECOMMEND):
        raise exit_with(f"{action}: must be show, measure or recommend", USAGE_ERROR)
    if file is None:
        raise exit_with(f"{action} needs a FILE", USAGE_ERROR)
    if out is not None:
        check_drawing()
    return file


def check_drawing() -> None:
    """Ends the command if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise exit_with("--out needs matplotlib: pip install 'ragherd[reports]'", USAGE_ERROR) from None


# -- Show --------------------------------------------------------------------------------------------------------------


def _show(url: str | None, *, as_json: bool) -> None:
    found = _of_service(url)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(service_text(found))


def _of_service(url: str | None) -> Any:
    """Returns what the running service says about its quality."""
    from ragherd.service_client import connected

    with connected(url) as service:
        return service.get("/api/semantic-cache/quality", field="policy")


def service_text(found: Mapping[str, Any]) -> str:
    """Returns what GET /api/semantic-cache/quality says, in lines."""
    rate = found.get("false_hit_rate") or {}
    known = rate.get("estimate") is not None
    wrong = (
        f"{100 * rate['estimate']:.2f} % ({100 * rate['low']:.2f} to {100 * rate['high']:.2f}) "
        f"from {rate['samples']:,} labels"
        if known
        else "not known yet"
    )
    labels = ", ".join(f"{count:,} {source}" for source, count in (found.get("labels") or {}).items())
    lines = [
        f"policy: {found['policy']}, threshold {found['threshold']:g}, target {100 * found['target_error']:g} %",
        f"wrong hits: {wrong}",
        f"labels: {labels or 'none'}",
        f"tightened: {_tightened(found)}",
    ]
    return "\n".join(lines)


def _tightened(found: Mapping[str, Any]) -> str:
    if not found.get("tightened"):
        return "no"
    newest_first = [event.get("reason") for event in found.get("history") or () if event.get("change") == "tightened"]
    level = f", to level {found['level']}" if "level" in found else ""
    return f"yes{level}{f' ({newest_first[0]})' if newest_first and newest_first[0] else ''}"


# -- Terminal ----------------------------------------------------------------------------------------------------------


def print_tables(found: Measurement) -> None:
    """Prints the figures of every setting, and the pairs served by kind."""
    console = Console(width=120)
    console.print(heading(found))
    table = Table(*TITLES, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found.rows:
        table.add_row(*cells(row.figures))
    console.print(table)
    for name, area in found.areas.items():
        console.print(f"P-CHR AUC, {name}: {area.value:.3f} ({area.low:.3f} to {area.high:.3f})")


def heading(found: Measurement) -> str:
    """Returns what was measured, in a line."""
    unit = f"{'pair' if found.kind == 'pairs' else 'question'}{'' if found.questions == 1 else 's'}"
    return f"{found.name}: {found.questions:,} {unit}, embedder {found.embedder}, seed {found.seed}"


def cells(row: Figures) -> list[str]:
    """Returns the cells of a row, with 95 % intervals."""
    rates = (row.hit_rate, row.error_per_hit, row.error_per_request, row.recall)
    return [_name(row), setting_of(row), *map(percent, rates)]


def setting_of(row: Figures) -> str:
    """Returns what the policy is set to: a cosine, or the error that it aims at."""
    return f"{100 * row.threshold:g} %" if row.policy == "verified" else f"{row.threshold:g}"


def percent(rate: Rate | None) -> str:
    """Formats a rate with its interval in percent. A rate that is not known is a dash."""
    if rate is None:
        return "-"
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


# -- Recommendation ----------------------------------------------------------------------------------------------------


def recommendation_document(found: Measurement, said: Recommendation) -> dict[str, Any]:
    """Returns the JSON document."""
    return {
        "file": found.name,
        "max_error_rate": said.max_error_rate,
        "holds": said.best is not None,
        "env": environment(said.best.checked) if said.best is not None else {},
        "best": asdict(said.best) if said.best is not None else None,
        "checked": [asdict(one) for one in said.checked],
    }


def recommendation_text(found: Measurement, said: Recommendation) -> str:
    """Returns the setting to use, how it was found, and the lines for .env; or why there is none."""
    halves = "random halves" if found.kind == "pairs" else "the first and the second half of the stream"
    how = f"Chosen on one half of {found.name}, checked on the other ({halves})."
    limit = f"{100 * said.max_error_rate:g} %"
    if said.best is None:
        tried = _checked_line(said.checked[0]) if said.checked else "nothing was served"
        return (
            f"No setting keeps wrong answers to {limit} of the hits with 95 % confidence.\n"
            f"The safest one: {tried}\n{how} More labeled questions narrow the bound: without an error, "
            f"{_hits_needed(said.max_error_rate):,} hits in each half are enough."
        )
    lines = [f"{name}={value}" for name, value in environment(said.best.checked).items()]
    return "\n".join([_checked_line(said.best), how, *lines])


def _checked_line(one: Checked) -> str:
    row = one.checked
    return (
        f"{_name(row)} at {setting_of(row)}: hits {percent(row.hit_rate)} %, "
        f"wrong {percent(row.error_per_hit)} % of hits, at most {100 * one.bound:.1f} % with 95 % confidence."
    )


def _hits_needed(max_error_rate: float) -> int:
    """Returns the hits without an error after which the upper bound is below the rate."""
    return ceil(log(0.05) / log1p(-max_error_rate))


def environment(row: Figures) -> dict[str, str]:
    """Returns the environment variables that set a policy."""
    if row.policy == "verified":
        return {"SEMANTIC_CACHE_POLICY": row.policy, "SEMANTIC_CACHE_MAX_ERROR_RATE": f"{row.threshold:g}"}
    return {"SEMANTIC_CACHE_POLICY": row.policy, "SEMANTIC_CACHE_SIMILARITY_THRESHOLD": f"{row.threshold:g}"}


# -- Picture and page --------------------------------------------------------------------------------------------------


def write_report(found: Measurement, folder: Path) -> list[Path]:
    """Writes the picture and the page. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = draw(found)
    image, page = folder / "pareto.png", folder / "report.html"
    image.write_bytes(picture)
    page.write_text(page_of(found, picture), encoding="utf-8")
    return [image, page]


def draw(found: Measurement) -> bytes:
    """Returns a PNG: the hits of every setting against its wrong answers, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(_name(row.figures) for row in found.rows):
        rows = [row.figures for row in found.rows if _name(row.figures) == name]
        points = [(100 * row.hit_rate.value, 100 * row.error_per_hit.value) for row in rows if row.error_per_hit]
        if not points:
            continue
        color = COLORS.get(rows[0].policy, "#b07aa1")
        axes.plot(*zip(*points, strict=True), "o-", label=name, color=color, markersize=4)
        _label_points(axes, rows, color)
    axes.set(xlabel="hits, % of requests", ylabel="wrong, % of hits", title=heading(found))
    axes.title.set_fontsize(9)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _name(row: Figures) -> str:
    return f"{row.policy} + verifier" if row.verifier else row.policy


def _label_points(axes: Any, rows: Sequence[Figures], color: str) -> None:
    for row in rows:
        if row.error_per_hit is None:
            continue
        x, error = 100 * row.hit_rate.value, row.error_per_hit
        axes.plot([x, x], [100 * error.low, 100 * error.high], color=color, alpha=0.25, linewidth=3)
        axes.annotate(setting_of(row), (x, 100 * error.value), textcoords="offset points", xytext=(4, 4), fontsize=7)


def page_of(found: Measurement, picture: bytes) -> str:
    """Returns an HTML page with the picture inside. It refers to no other file and no host."""
    from api.quality.measurement import pareto

    front = pareto([row.figures for row in found.rows])
    title = html.escape(heading(found))
    image = base64.b64encode(picture).decode()
    rows = "".join(_page_row(row.figures, is_best=row.figures in front) for row in found.rows)
    head = "".join(f"<th>{html.escape(one)}</th>" for one in TITLES)
    areas = "".join(
        f"<li>{html.escape(name)}: {area.value:.3f} ({area.low:.3f} to {area.high:.3f})</li>"
        for name, area in found.areas.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>Quality of cached answers</h1><p>{title}</p>"
        f'<img alt="Hits against wrong answers" src="data:image/png;base64,{image}">'
        f"<p>Rates have 95 % intervals. No other setting has both more hits and fewer errors than a bold one.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{f'<h2>P-CHR AUC</h2><ul>{areas}</ul>' if areas else ''}<p>Ragherd {__version__}</p></body></html>\n"
    )


def _page_row(row: Figures, *, is_best: bool) -> str:
    columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row))
    return f'<tr class="front">{columns}</tr>' if is_best else f"<tr>{columns}</tr>"
