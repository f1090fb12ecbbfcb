"""The deployment report: what a window's points add up to, and how each criterion is judged."""

from __future__ import annotations

import html.parser
import re
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import typer

from api.observability.history_figures import BOUNDS_MS, percentile
from ragherd.prometheus_source import PrometheusClient, from_prometheus
from ragherd.report import ReportRequest, document, seconds_of, window_of
from ragherd.report_charts import nice
from ragherd.report_criteria import Criterion, bounds, capacity_of, criteria_of, recommended
from ragherd.report_facts import environment_settings, issues_of
from ragherd.report_figures import LatencyScale, WindowFigures, from_points, rfc3339
from ragherd.report_page import markdown, page

NOON = 1_795_867_200.0
QUALITY = {"max_error_rate": 0.02, "false_hit_rate": {"estimate": 0.004, "low": 0.001, "high": 0.011, "samples": 412}}
GAP = {"gap": True}
SCALE = LatencyScale(BOUNDS_MS)


def minute(hit: int = 60, miss: int = 40, error: int = 0, **more: Any) -> dict[str, Any]:
    """Returns a point of a minute: hits take 1.8 ms, misses 900 ms on average."""
    return {
        "queries": {"hit": hit, "miss": miss, "error": error},
        "hits": {"exact": hit, "semantic": 0},
        "latency_buckets_ms": {"hit": {"2": hit}, "miss": {"1000": miss}},
        "breakers": {"ollama": {"CLOSED": 60.0, "OPEN": 0.0}},
        "breaker_seconds": {"CLOSED": 60.0, "OPEN": 0.0},
        "tokens": {"prompt": 10 * miss, "completion": 20 * miss},
        "pool": {"in_use": 2.0, "waiting": 0.0, "limit": 30.0, "utilization": 0.0667},
        "workers": 4,
        "started": 0,
        "restarts": 0,
        **more,
    }


def figures(*points: dict[str, Any]) -> WindowFigures:
    dated = [{"at": rfc3339(NOON + 60 * number), **point} for number, point in enumerate(points)]
    found = from_points(dated, 60, NOON, NOON + 60 * len(points), SCALE)
    assert found is not None
    return found


def judged(*points: dict[str, Any], quality: Any = QUALITY) -> dict[str, Criterion]:
    found = figures(*points)
    return {one.name: one for one in criteria_of(found, capacity_of(found, None), quality)}


def report_of(*points: dict[str, Any], least: float = 60.0) -> dict[str, Any]:
    found = figures(*points)
    return document(ReportRequest(NOON, found.ends, least, None, 2.0, {"PORT": 8001}), found, None, "http://here:8001")


# -- Figures -----------------------------------------------------------------------------------------------------------


def test_points_add_up_and_time_without_figures_is_a_gap() -> None:
    found = figures(GAP, minute(), GAP, GAP, minute(hit=20, miss=0), minute(error=3))
    assert found.begins == NOON + 60  # the service was not there before
    assert (found.known, found.unknown) == (180.0, 120.0)
    assert found.gaps == [(NOON + 120, NOON + 240)]
    assert (found.queries["hit"], found.queries["miss"], found.queries["error"]) == (140, 80, 3)
    assert (found.served, found.generated, found.answers) == (140, 80, 220)
    assert found.breakers == {"ollama": {"CLOSED": 180.0, "OPEN": 0.0}}
    assert found.pool == {"in_use": 2.0, "waiting": 0.0, "limit": 30.0, "utilization": 0.0667}
    assert [one.known for one in found.slices] == [60.0, 0.0, 0.0, 60.0, 60.0]


def test_latencies_are_merged_before_they_are_summarized() -> None:
    found = figures(minute(hit=99, miss=0), minute(hit=0, miss=1))
    assert found.mean_ms == pytest.approx((99 * 1.8 + 900) / 100)
    assert found.uncached_ms == 900
    p95 = found.latency["all"]["p95"]
    assert p95 is not None
    assert p95 < 2.0
    assert SCALE.mean({}) is None
    counts = {"1.6": 3, "2": 5, "1000": 1, "inf": 1}
    assert [SCALE.percentile(counts, one) for one in (10, 50, 95)] == pytest.approx(
        [percentile(counts, one) for one in (10, 50, 95)], abs=0.001
    )


def test_a_window_that_begins_within_a_minute_hides_no_gap() -> None:
    """Three minutes are asked for. Of the first and the last point, half a minute counts."""
    points = [minute(), minute(), GAP, minute()]
    dated = [{"at": rfc3339(NOON + 60 * number), **point} for number, point in enumerate(points)]
    found = from_points(dated, 60, NOON + 30, NOON + 210, SCALE)
    assert found is not None
    assert (found.begins, found.known, found.unknown) == (NOON + 30, 120.0, 60.0)
    restarts = {one.name: one for one in criteria_of(found, capacity_of(found, None), QUALITY)}["restarts"]
    assert restarts.met is None


def test_missing_minutes_of_a_larger_step_are_unknown() -> None:
    points = [{"at": rfc3339(NOON), **minute()}, {"at": rfc3339(NOON + 300), **minute(), "missing_minutes": 2}]
    found = from_points(points, 300, NOON, NOON + 600, SCALE)
    assert found is not None
    assert (found.known, found.gaps) == (480.0, [(NOON + 300, NOON + 600)])


def test_nothing_but_gaps_is_nothing() -> None:
    assert from_points([{"at": rfc3339(NOON), **GAP}], 60, NOON, NOON + 60, SCALE) is None


@pytest.mark.parametrize(
    ("points", "restarts", "unexplained"),
    [
        ([minute(), minute()], 0, 0),
        ([minute(started=4), minute()], 0, 0),  # the service began in the window
        ([minute(), minute(started=1, restarts=1)], 1, 0),
        ([minute(), minute(started=2, workers=6)], 0, 0),  # scaled up
        ([minute(), minute(started=4)], 0, 4),  # a replica was replaced
        ([minute(workers=None), minute(started=2, workers=2)], 0, 0),
        ([minute(workers=None), minute(), minute(started=4)], 0, 4),  # not observed in the first minute
    ],
)
def test_starts_that_nothing_explains_are_not_hidden(points: list[Any], restarts: int, unexplained: int) -> None:
    found = figures(*points)
    assert (found.restarts, found.unexplained_starts) == (restarts, unexplained)


def test_a_long_window_has_a_bounded_number_of_slices_that_lose_nothing() -> None:
    found = figures(*[minute()] * 1440)
    assert len(found.slices) == 96
    assert sum(one.queries["hit"] for one in found.slices) == found.queries["hit"] == 60 * 1440


# -- Criteria ----------------------------------------------------------------------------------------------------------


def test_a_good_hour_meets_everything() -> None:
    found = judged(*[minute()] * 60)
    assert {name: one.met for name, one in found.items()} == dict.fromkeys(found, True)
    assert set(found) == {
        "breaker_closed", "hit_rate", "error_rate", "latency_reduction", "capacity", "cost_saved", "restarts",
        "false_hit_rate",
    }  # fmt: skip
    assert found["hit_rate"].measured == pytest.approx(0.6)
    assert found["capacity"].measured == pytest.approx(2.5)
    assert found["cost_saved"].measured == pytest.approx(0.6)
    assert found["latency_reduction"].measured == pytest.approx(1 - 361.08 / 900)


def test_what_is_bad_is_missed() -> None:
    opened = {"ollama": {"CLOSED": 50.0, "OPEN": 10.0}, "ollama-2": {"CLOSED": 60.0}}
    found = judged(*[minute(hit=10, miss=90, error=20, breakers=opened, restarts=1, started=1)] * 5)
    assert {name for name, one in found.items() if one.met is False} == set(found) - {"false_hit_rate"}
    assert "breaker ollama" in found["breaker_closed"].detail
    assert found["breaker_closed"].measured == pytest.approx(50 / 60)


def test_gaps_are_counted_both_ways() -> None:
    assert bounds(95, 100, 0) == (0.95, 0.95)
    assert bounds(90, 100, 100) == (0.45, 0.95)
    few = judged(*[minute()] * 39, GAP, minute())
    assert few["breaker_closed"].met
    many = judged(*[minute()] * 9, GAP, minute())
    assert many["breaker_closed"].met is None  # the breaker could have been open in the gap
    assert many["error_rate"].met is None
    assert many["hit_rate"].met
    assert many["restarts"].met is None
    assert judged(*[minute()] * 5, *[GAP] * 3, minute())["latency_reduction"].met is None
    worse = judged(*[minute(hit=0, miss=100, error=50)] * 9, GAP, minute(hit=0, miss=100, error=50))
    assert worse["error_rate"].met is False  # a gap hides nothing that would help


def test_a_caller_who_accepts_only_a_cached_answer_causes_no_error() -> None:
    asked = judged(*[minute(error=10, errors={"not-cached": 10})] * 10)["error_rate"]
    assert (asked.measured, asked.met) == (0.0, True)
    mixed = judged(*[minute(error=20, errors={"not-cached": 10, "internal": 10})] * 10)["error_rate"]
    assert (round(mixed.measured or 0.0, 4), mixed.met) == (0.0909, False)


def test_few_queries_say_nothing_about_shares() -> None:
    found = judged(minute(hit=5, miss=3))
    assert {name for name, one in found.items() if one.met is None} == {
        "hit_rate", "error_rate", "latency_reduction", "capacity", "cost_saved",
    }  # fmt: skip
    assert found["hit_rate"].measured is None
    assert "at least 100" in found["hit_rate"].detail


def test_a_window_without_breaker_times_or_labels_is_not_judged_by_them() -> None:
    nothing = {"estimate": None, "low": None, "high": None, "samples": 0}
    found = judged(*[minute(breakers={})] * 9, quality={"max_error_rate": 0.02, "false_hit_rate": nothing})
    assert (found["breaker_closed"].met, found["false_hit_rate"].met) == (None, None)
    assert judged(minute(), quality=None)["false_hit_rate"].met is None


@pytest.mark.parametrize(
    ("low", "high", "met"), [(0.0, 0.019, True), (0.01, 0.03, None), (0.021, 0.05, False), (0.0, 0.02, True)]
)
def test_the_false_hit_rate_is_judged_by_its_interval(low: float, high: float, met: bool | None) -> None:
    rate = {"estimate": (low + high) / 2, "low": low, "high": high, "samples": 50}
    found = judged(minute(), quality={"max_error_rate": 0.02, "false_hit_rate": rate})["false_hit_rate"]
    assert found.met is met


# -- Capacity ----------------------------------------------------------------------------------------------------------


def load_test(**plan: Any) -> dict[str, Any]:
    shape = {"rate": None, "think": 0.0, "spike": 1.0, "ramp": 0.0, "concurrency": 10, **plan}
    return {
        "requests": 1000, "failed": 0, "seconds": 20.0, "plan": shape,
        "latency_ms_by_status": {"miss": {"avg": 500.0}}, "requests_by_status": {"miss": 400},
    }  # fmt: skip


def test_a_load_test_in_a_closed_loop_measures_the_capacity() -> None:
    """10 users who each wait 500 ms get 20 answers a second; 50 a second were measured."""
    assert capacity_of(figures(minute()), load_test()).ratio == pytest.approx(2.5)


@pytest.mark.parametrize("plan", [{"rate": 5.0}, {"think": 1.0}, {"spike": 2.0}])
def test_another_load_test_says_nothing_and_the_window_is_used(plan: dict[str, Any]) -> None:
    found = capacity_of(figures(minute(hit=75, miss=25)), load_test(**plan))
    assert found.ratio == pytest.approx(4.0)
    assert "The load test says nothing" in found.formula


# -- Recommendation ----------------------------------------------------------------------------------------------------


def test_the_recommendation_follows_from_the_criteria() -> None:
    good = list(judged(*[minute()] * 60).values())
    assert recommended(good, 3600, 3600, "healthy")[0] == "go"
    verdict, reasons = recommended(good, 3600, 86_400, "degraded")
    assert (verdict, len(reasons)) == ("wait", 2)
    assert "Only 1 h of the 24 h" in reasons[0]
    for points in ([minute(hit=0, miss=100)] * 5, [minute()] * 9 + [GAP] + [minute()]):
        assert recommended(list(judged(*points).values()), 3600, 60, "healthy")[0] == "wait"
    harmful = list(judged(*[minute(error=20)] * 5).values())
    verdict, reasons = recommended(harmful, 60, 86_400, "healthy")
    assert (verdict, reasons) == ("roll back", ["Error rate: 16.7 %, target under 5 %."])


# -- Output ------------------------------------------------------------------------------------------------------------


class Checker(html.parser.HTMLParser):
    """Collects tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, _attrs: Any) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_refers_to_no_host_and_escapes_texts() -> None:
    found = report_of(*[minute()] * 9, GAP, minute(error=2, errors={"<script>alert(1)</script>": 2}))
    written = page(found)
    checker = Checker()
    checker.feed(written)
    assert checker.open == []
    assert "<script" not in written
    assert not re.search(r"(href|src|url)=|@import|url\((?!#gap)", written)
    assert written.count("<svg viewBox") == 3
    assert 'fill="url(#gap)"' in written
    assert "@media print" in written


def test_markdown_and_page_say_the_same() -> None:
    found = report_of(*[minute()] * 60)
    said, written = markdown(found), page(found)
    assert "## Recommendation: Wait" in said  # nobody knows whether the cached answers are right
    for text in ("Breaker CLOSED", "60.0 %", "2.50 times", "about 108,000", "0.14 and 0.22", "PORT"):
        assert text in said, text
        assert text in written, text
    assert all(line.count("|") > 2 for line in said.splitlines() if line.startswith("|"))


def test_markdown_keeps_texts_in_one_line_and_passes_no_html_on() -> None:
    made = {**report_of(*[minute()] * 60), "settings": {"SYSTEM_PROMPT": "<script>alert(1)</script>\nSecond | line"}}
    assert "| SYSTEM_PROMPT | &lt;script>alert(1)&lt;/script> Second &#124; line |\n" in markdown(made)


def test_the_document_has_the_fixed_shape() -> None:
    found = report_of(*[minute()] * 2)
    assert all(set(one) >= {"name", "target", "measured", "met"} for one in found["criteria"])
    assert found["issues"] == ["The service did not answer: its configuration and its state are not known."]


@pytest.mark.parametrize(("value", "top"), [(0, 4), (0.7, 0.8), (1, 1), (3, 3), (3.1, 4), (41, 60), (101, 120)])
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert nice(value) == pytest.approx(top)


def test_a_window_is_given_by_its_ends_or_its_length() -> None:
    assert window_of(None, None, "90m", NOON) == (NOON - 5400, NOON)
    assert window_of(rfc3339(NOON - 60), rfc3339(NOON + 999), "24h", NOON) == (NOON - 60, NOON)
    for start, end, last in ((rfc3339(NOON), None, "1h"), ("yesterday", None, "1h"), (None, None, "1 hour")):
        with pytest.raises(typer.Exit) as ended:
            window_of(start, end, last, NOON)
        assert ended.value.exit_code == 2
    assert seconds_of("2d", "--last") == 172_800


def test_the_settings_of_the_environment_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "API_KEYS": "acme=acme-key-for-tests",
        "ADMIN_KEYS": "admin-key-for-tests",
        "REDIS_URL": "redis://user:secret-word@db:6379",
    }
    for name, text in {**secrets, "SEMANTIC_CACHE_TTL": "60"}.items():
        monkeypatch.setenv(name, text)
    found = environment_settings()
    assert found["SEMANTIC_CACHE_TTL"] == 60
    assert secrets.keys() <= found.keys()
    assert not re.search("key-for-tests|secret-word", str(found))


def test_figures_of_several_fleets_are_an_issue() -> None:
    found = figures(minute())
    found.namespaces = ("production",)
    assert not [one for one in issues_of(found, None) if "namespaces" in one]
    found.namespaces = ("production", "staging")
    assert any("several namespaces: production, staging." in one for one in issues_of(found, None))


def test_a_prometheus_with_two_namespaces_is_noticed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        query = parse_qs(request.content.decode())["query"][0]
        found: list[Any] = []
        if "count_over_time" in query:
            found = [{"metric": {}, "values": [[NOON + 60, "1"]]}]
        elif "count by (namespace)" in query:
            found = [{"metric": {"namespace": name}, "value": [0, "1"]} for name in ("staging", "production")]
        return httpx.Response(200, json={"status": "success", "data": {"result": found}})

    with httpx.Client(base_url="http://prometheus/", transport=httpx.MockTransport(answer)) as http:
        found = from_prometheus(PrometheusClient(http), NOON, NOON + 60)
    assert found is not None
    assert found.namespaces == ("production", "staging")


def test_clients_that_left_are_an_issue_and_no_error() -> None:
    queries = {"hit": 60, "miss": 40, "left": 30}
    [line] = [one for one in issues_of(figures(minute(queries=queries)), None) if "left" in one]
    assert line == "30 clients left before the answer came. The error rate leaves them out."
    assert judged(minute(queries=queries))["error_rate"].measured == 0
