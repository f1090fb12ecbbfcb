"""The report of a rehearsal, as Markdown and as an HTML page. Both are made from its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from api import __version__
from ragherd.rehearsal.steps import FAILED, PASSED, SKIPPED
from ragherd.report_page import Verdict, whole_page
from ragherd.report_sections import Section
from ragherd.service_client import clean

TITLE: Final = "Rehearsal on Kubernetes"
STEP_HEAD: Final = ("step", "result", "expected", "seen", "time")
LOAD_HEAD: Final = ("step", "requests", "failed", "hits", "p50 ms", "p95 ms", "p99 ms", "max ms", "hits away")
LOADS: Final = {"load_before": "{}, before", "load": "{}"}

Document = Mapping[str, Any]


def verdict(found: Document) -> tuple[bool, list[str]]:
    """Returns whether every step passed that ran, and the reasons."""
    by_result = {one: [step for step in found["steps"] if step["result"] == one] for one in (PASSED, FAILED, SKIPPED)}
    reasons = [f"{step['name']}: {clean(step['seen'])}" for step in by_result[FAILED]]
    reasons += [f"{len(by_result[PASSED])} of {len(found['steps'])} steps passed"]
    reasons += [f"{step['name']} was skipped: {clean(step['seen'])}" for step in by_result[SKIPPED]]
    if found["interrupted"]:
        reasons.insert(0, f"Interrupted: {clean(found['interrupted'])}")
    reasons += [f"Still to be done: {clean(command)}" for command in found.get("remains", ())]
    return not by_result[FAILED] and not found["interrupted"], reasons


def sections(found: Document) -> Iterator[Section]:
    """Yields the tables: cluster, steps, load."""
    yield Section("Cluster", head=("what", "value"), rows=[(name, clean(str(value))) for name, value in facts(found)])
    rows = [
        (one["name"], one["result"], one["expects"], clean(one["seen"]), f"{one['seconds']:.0f} s")
        for one in found["steps"]
    ]
    yield Section("Steps", head=STEP_HEAD, rows=rows)
    if loads := list(load_rows(found["steps"])):
        yield Section("Load", text=(_load_text(found),), head=LOAD_HEAD, rows=loads)
    if errors := list(_errors(found["steps"])):
        yield Section("Failed requests", items=errors)


def facts(found: Document) -> Iterator[tuple[str, Any]]:
    """Yields what was rehearsed, and where."""
    yield "manifests", found["manifests"]
    yield "image", found["image"]
    yield "second image", found["second_image"] or "none"
    yield "Ollama", found["ollama"] or "a stand-in"
    yield "Kubernetes", found["kubernetes"]
    yield "nodes", found["nodes"]
    yield "replicas", found["replicas"]
    yield "left out", ", ".join(found["left_out"]) or "nothing"
    yield "time", f"{found['began']}, {found['seconds']:.0f} s"


def load_rows(steps: Sequence[Document]) -> Iterator[tuple[str, ...]]:
    """Yields a row for each load."""
    for step in steps:
        for field, title in LOADS.items():
            if load := step["figures"].get(field):
                latency = [_ms(load["latency_ms"][name]) for name in ("p50", "p95", "p99", "max")]
                hits, away = f"{100 * load['hit_rate']:.0f} %", f"{load['hits_away_seconds']:g} s"
                counts = (f"{load['requests']:,}", f"{load['failed']:,}")
                yield (title.format(step["name"]), *counts, hits, *latency, away)


def _load_text(found: Document) -> str:
    return (
        f"A Job in the cluster sends {found['rate']:g} requests per second during the step and {found['timeout']:g} s "
        "longer. A request fails after that time. Hits away is the longest time without a hit."
    )


def _errors(steps: Sequence[Document]) -> Iterator[str]:
    for step in steps:
        for field in LOADS:
            load = step["figures"].get(field) or {}
            for kind, count in load.get("errors", {}).items():
                yield f"{step['name']}: {count} x {clean(kind)}: {clean(load['error_examples'].get(kind, ''))}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def markdown(found: Document) -> str:
    """Returns the report as Markdown."""
    good, reasons = verdict(found)
    lines = [f"# {TITLE}", "", f"## {_title(good)}", "", *(f"- {_inline(one)}" for one in reasons)]
    for section in sections(found):
        lines += ["", f"## {section.title}", "", *section.text, *([""] if section.text else [])]
        if section.rows:
            lines += [_row(section.head), "|---" * len(section.head) + "|", *map(_row, section.rows)]
        lines += [f"- {_inline(item)}" for item in section.items]
    return "\n".join([*lines, "", f"Ragherd {__version__}", ""])


def page(found: Document) -> str:
    """Returns the report as an HTML page that loads nothing."""
    good, reasons = verdict(found)
    box = Verdict("good" if good else "bad", _title(good), reasons)
    return whole_page(TITLE, [str(found["manifests"])], box, sections(found), found["began"])


def _title(good: bool) -> str:
    return "Passed" if good else "Failed"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_inline(cell).replace('|', '&#124;') for cell in cells)} |"


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")
