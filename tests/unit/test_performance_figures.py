"""`scripts/benchmark`: the arithmetic of its figures, and the page that is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import figures
from scripts.benchmarks.__main__ import BEGIN, END, IMAGES, PAGE, rounded, with_tables
from scripts.benchmarks.figures import TARGETS, figures_of, marginal, median_of, medians, percentile, ratio
from scripts.benchmarks.load import Load
from scripts.benchmarks.profiles import part_of, shares
from scripts.benchmarks.report import markdown, number

pytestmark = pytest.mark.slow

TARGET = {target.key: target for target in TARGETS}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([7.0], 0.99, 7.0), ([1.0, 2.0], 0.5, 1.5), ([0.0, 1.0, 2.0, 3.0, 4.0], 0.75, 3.0), ([1.0, 9.0], 1.0, 9.0)],
)
def test_a_percentile_lies_between_its_neighbors(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    fast, slow = ([{"rate": rate} for rate in rates] for rates in ((100.0, 10.0, 90.0), (50.0, 5.0, 10.0)))
    assert median_of(ratio("rate"), fast, slow) == 2.0  # the second round was slow for both
    with pytest.raises(ValueError, match="zip"):
        median_of(ratio("rate"), fast, slow[:2])


def test_medians_leave_out_what_a_round_lacks() -> None:
    assert medians([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.0, "b": 1.0}]) == {"a": 2.0}


def test_the_cost_of_a_token_is_free_of_the_request_and_of_idling() -> None:
    short, long = ({"cpu_us": 9_000 + 30 * n + 40 * s, "seconds": s, "tokens": n} for n, s in ((20, 1.0), (320, 3.0)))
    assert marginal(long, short, idle_us=40) == pytest.approx(30)


@pytest.mark.parametrize(
    ("key", "figure", "met"),
    [("exact", 1.0, True), ("exact", 0.99, False), ("tail", 3.0, True), ("tail", 3.1, False), ("entry", 2999.0, True)],
)
def test_a_target_is_a_least_or_a_most(key: str, figure: float, met: bool) -> None:
    assert TARGET[key].is_met_by(figure) == met


@pytest.mark.parametrize(
    ("value", "shown"), [(0.256, "0.26"), (12.34, "12.3"), (117.6, "118"), (13_246.2, "13,246"), (-40.8, "-40.8")]
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown
    assert number(value, "ms") == f"{shown} ms"


# -- A whole run -------------------------------------------------------------------------------------------------------


def row(rate: float, p50: float = 10.0, worker_us: float = 500.0) -> dict[str, float]:
    return {"rate": rate, "p50_ms": p50, "p99_ms": 2 * p50, "worker_us": worker_us, "redis_us": 40.0, "load_us": 30.0}


def document(**changes: Any) -> dict[str, Any]:
    names = {figures.BARE: 1000.0, figures.EXACT: 250.0, figures.SEMANTIC: 120.0, figures.REDISVL: 60.0}
    misses = {"direct": [row(900, 1.0)], "miss": [row(90, 11.0)]}
    rounds = [{"exact_ms": 0.2, "semantic_ms": 0.6}]
    return {
        "made": "2026-11-29T12:00:00+00:00",
        "machine": {"cores": 2, "cpu": "a CPU", "memory_mib": 1000, "os": "Linux", "python": "3.11", "load_average": 1},
        "load_at_end": 2.5,
        "versions": {"Redis": "8.2"},
        "plan": {"rounds": 1, "seconds": 4.0, "connections": 32},
        "cases": {name: [row(rate, worker_us=5e5 / rate)] for name, rate in {**names, figures.CHAT: 200.0}.items()},
        "half_load": {figures.EXACT: [row(125, 2.0)], figures.BARE: [row(500, 1.0)]},
        "by_client": {figures.CHAT: [{"p50_ms": 3.0, "p99_ms": 5.0}]},
        "embedded": {"hit": [{"cpu_us": 6000.0}], "alone": [{"cpu_us": 3000.0}]},
        "misses": {figures.FEW: misses, figures.MANY: misses},
        "streams": {figures.QUERY_STREAM: [{"token_us": 30.0}], figures.HTTPX_STREAM: [{"token_us": 20.0}]},
        "profiles": {"exact hit": {"the flow": 0.6, "embedding": 0.1}, "miss": {"embedding": 0.9}},
        "processes": {"memory": {"plain": 70.0, "onnx": 210.0}, "starts": {"plain": [0.5], "onnx": [0.9, 1.4, 1.2]}},
        "sizes": {
            "small": {"entries": 1000, "entry_bytes": 6500.0, "rounds": rounds},
            "large": {"entries": 100_000, "entry_bytes": 6000.0, "rounds": [{"exact_ms": 0.21, "semantic_ms": 0.9}]},
        },
        **changes,
    }


def test_a_run_gives_each_figure_that_it_measured() -> None:
    assert figures_of(document()) == pytest.approx(
        {
            "exact": 0.25, "semantic": 2.0, "tail": 2.0, "embedder": 2.0, "miss_1": 10.0, "miss_32": 10.0,
            "stream": 1.5, "size_exact": 1.05, "size_semantic": 1.5, "entry": 6000.0,
            "memory_plain": 70.0, "memory_onnx": 210.0, "start": 1.2,
        }
    )  # fmt: skip


def test_the_table_says_which_targets_are_met_and_which_were_not_measured() -> None:
    lines = {line.split(" | ")[0].strip("| "): line for line in markdown(document()).splitlines()}
    assert lines[TARGET["exact"].name].endswith("| at least 1 | 0.25 | no |")
    assert lines[TARGET["stream"].name].endswith("| at most 1.5 | 1.50 | yes |")
    assert lines[TARGET["near"].name].endswith("|  | not measured |")
    assert lines[TARGET["memory_plain"].name].endswith("| at most 75 MB | 70.0 MB | yes |")
    assert lines["Ragherd, exact hit / bare FastAPI, requests per second of CPU time"].endswith("| 0.25 |")


def test_the_table_of_profiles_has_every_part_and_the_largest_first() -> None:
    text = markdown(document())
    assert "| exact hit | miss |" in text
    assert text.index("| embedding | 10% | 90% |") < text.index("| the flow | 60% | 0% |")
    assert "where a worker's time goes" not in markdown(document(profiles={}))


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ("run (asyncio/runners.py:118);answer (api/query/service.py:9);dumps (json/__init__.py:1)", "the flow"),
        ("answer (api/query/service.py:9);execute (redis/asyncio/client.py:3)", "Redis"),
        ("answer (api/query/service.py:9);StreamWriter.writelines (asyncio/streams.py:346)", "writing to sockets"),
        ("RequestResponseCycle.run_asgi (uvicorn/protocols/http/httptools_impl.py:422)", "HTTP server"),
        ("<module> (nothing.py:1)", "other"),
    ],
)
def test_a_sample_counts_for_its_innermost_known_file(stack: str, part: str) -> None:
    assert part_of(stack).startswith(part)


def test_shares_are_of_all_samples() -> None:
    lines = ["a (api/query/x.py:1) 3", "a (api/query/x.py:1);b (api/query/y.py:2) 3", "c (z.py:1) 2"]
    assert list(shares(lines).values()) == [0.75, 0.25]


def test_a_busy_machine_is_said_to_be_busy() -> None:
    quiet = document()
    assert "busy" not in markdown(quiet)
    assert "busy" in markdown({**quiet, "machine": {**quiet["machine"], "load_average": 1.1}})


def test_the_tables_replace_those_of_an_earlier_run() -> None:
    page = with_tables(f"before\n{BEGIN}\nold \\1\n{END}\nafter\n", document())
    assert page.startswith(f"before\n{BEGIN}\n\n| figure |")
    assert page.endswith(f"\n\n{END}\nafter\n")
    assert with_tables(page, document()) == page


def test_five_digits_are_kept() -> None:
    assert rounded({"a": [1.23456789, 3], "b": (123_456_789.0, "x")}) == {"a": [1.2346, 3], "b": [123_460_000.0, "x"]}


def test_the_page_has_the_figures_of_its_picture() -> None:
    saved = json.loads((IMAGES / "performance.json").read_text())
    assert with_tables(PAGE.read_text(), saved) == PAGE.read_text(), "run scripts/benchmark --docs --from its JSON"
    assert "<svg" in Path(IMAGES / "performance.svg").read_text()[:1000]


def test_a_load_is_encoded_once() -> None:
    one, other = Load("http://127.0.0.1:80/query", ['{"a": "é"}', "{}"], headers={"X": "y"}).encoded()
    head, _, body = one.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /query HTTP/1.1\r\nHost: 127.0.0.1:80\r\n")
    assert b"\r\nX: y\r\n" in head
    assert head.endswith(b"Content-Length: %d" % len(body))
    assert other.endswith(b"\r\n\r\n{}")
