"""`ragherd report`: the deployment report. It judges a window of the service's history, and recommends what to do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from api.errors import SettingsError
from api.settings import load_settings
from ragherd.exits import FAILED, UNREACHABLE, USAGE_ERROR, exit_with
from ragherd.prometheus_source import MATCHERS, PrometheusClient, from_prometheus, max_error_rate, opened_prometheus
from ragherd.report_criteria import capacity_of, criteria_of, recommended
from ragherd.report_facts import calls_of, configuration_of, environment_settings, facts_of, issues_of
from ragherd.report_figures import LatencyScale, WindowFigures, from_points, rfc3339
from ragherd.report_page import markdown, page
from ragherd.service_client import (
    AsJson,
    RequestRefused,
    ServiceClient,
    Unreachable,
    Url,
    opened,
    print_document,
)

HISTORY_PATH: Final = "/api/history"
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LAST: Final = "24h"
LOAD_TEST_FIELDS: Final = frozenset(
    {"requests", "failed", "seconds", "plan", "latency_ms_by_status", "requests_by_status"}
)


Price = Annotated[
    float | None,
    typer.Option(min=0.0, help="Price of a million tokens. Default, without --url: PRICE_PER_MILLION_TOKENS."),
]
ReportPage = Annotated[
    Path | None, typer.Option("--html", help="Also write the report as an HTML page. Browsers print it as a PDF.")
]


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What to judge. Times are seconds since 1970; `least` seconds must be known for a decision."""

    start: float
    end: float
    least: float
    load_test: Mapping[str, Any] | None
    price: float | None
    settings: Mapping[str, Any] | None


# -- Command -----------------------------------------------------------------------------------------------------------


def report(
    from_: Annotated[str | None, typer.Option("--from", help="Start: an RFC 3339 time, UTC without a zone.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="End. Default: now.")] = None,
    last: Annotated[str, typer.Option(help="Length of the window without --from, such as 90m, 24h or 2d.")] = LAST,
    at_least: Annotated[
        str, typer.Option("--at-least", help="Time that must be known before the report recommends to go on.")
    ] = LAST,
    load_test: Annotated[
        Path | None, typer.Option("--load-test", help="JSON document of `ragherd load-test`, for the capacity.")
    ] = None,
    price: Price = None,
    prometheus: Annotated[
        str | None, typer.Option(help="URL of a Prometheus to read the figures from, instead of the history.")
    ] = None,
    matchers: Annotated[
        str, typer.Option(help='With --prometheus: label matchers of the fleet, such as namespace="staging".')
    ] = "",
    html_file: ReportPage = None,
    fail_on_unmeasured: Annotated[
        bool, typer.Option("--fail-on-unmeasured", help="Exit with 1 also if a criterion could not be measured.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Judge a deployment: each success criterion met, missed or not measurable, and go, wait or roll back.

    Prints Markdown. The figures come from the service's history of the last 48 hours, or from Prometheus.

    The exit code is 0 if every criterion that could be measured is met, and 1 if one is missed.
    """
    _check_matchers(prometheus, matchers)
    start, end = window_of(from_, to, last, time.time())
    asked = ReportRequest(
        start,
        end,
        seconds_of(at_least, "--at-least"),
        None if load_test is None else load_test_of(load_test),
        _price(price, url),
        environment_settings() if url is None else None,
    )
    found = _made(asked, url, prometheus, matchers)
    if html_file is not None:
        _write(html_file, page(found))
    if as_json:
        print_document(found)
    else:
        typer.echo(markdown(found), nl=False)
    verdicts = {one["met"] for one in found["criteria"]}
    if False in verdicts or (fail_on_unmeasured and None in verdicts):
        raise typer.Exit(FAILED)


def _made(asked: ReportRequest, url: str | None, prometheus: str | None, matchers: str) -> dict[str, Any]:
    try:
        with ExitStack() as stack:
            service = stack.enter_context(opened(url))
            if prometheus is None:
                facts: Mapping[str, Any] | None = facts_of(service)
                figures, limit = from_history(service, asked.start, asked.end), None
            else:
                source = PrometheusClient(stack.enter_context(opened_prometheus(prometheus)), matchers)
                figures = from_prometheus(source, asked.start, asked.end)
                facts, limit = _facts_if_there(service), max_error_rate(source, asked.end)
    except Unreachable as error:
        raise exit_with(str(error), UNREACHABLE) from None
    except RequestRefused as error:
        raise exit_with(str(error), FAILED) from None
    if figures is None:
        raise exit_with(f"nothing is known of {rfc3339(asked.start)} to {rfc3339(asked.end)}", FAILED)
    return document(asked, figures, facts, service.url, limit)


def _facts_if_there(service: ServiceClient) -> dict[str, Any] | None:
    """Returns what the service says, or None: Prometheus has the figures also of a service that is gone."""
    try:
        return facts_of(service)
    except (Unreachable, RequestRefused):
        return None


def from_history(service: ServiceClient, start: float, end: float) -> WindowFigures | None:
    """Returns the figures of the service's history. Raises `Unreachable` and `RequestRefused`."""
    found = service.get(HISTORY_PATH, field="points", **{"from": start, "to": end, "buckets": "true"})
    return from_points(found["points"], found["step_seconds"], start, end, LatencyScale(found["latency_bounds_ms"]))


def document(
    asked: ReportRequest,
    figures: WindowFigures,
    facts: Mapping[str, Any] | None,
    url: str,
    limit: float | None = None,
) -> dict[str, Any]:
    """Returns the report as JSON. `limit`: the accepted share of wrong answers, if the service does not say it."""
    quality = None if facts is None else facts["quality"]
    if quality is None and limit is not None and figures.false_hits is not None:
        quality = {"max_error_rate": limit, "false_hit_rate": figures.false_hits}
    capacity = capacity_of(figures, asked.load_test)
    criteria = criteria_of(figures, capacity, quality)
    health = None if facts is None else facts["health"]
    verdict, reasons = recommended(criteria, figures.known, asked.least, health and health["status"])
    return {
        "recommendation": {"verdict": verdict, "reasons": reasons},
        "criteria": [one.document() for one in criteria],
        "issues": issues_of(figures, facts),
        "window": {**figures.window(), "asked_from": rfc3339(asked.start), "asked_to": rfc3339(asked.end)},
        "source": figures.source,
        "url": url,
        "version": health and health["version"],
        "figures": figures.document(),
        "capacity": {"ratio": capacity.ratio, "formula": capacity.formula},
        "savings": savings_of(figures, asked.price),
        "calls": {} if facts is None else calls_of(facts),
        "cache": None if facts is None else facts["cache"],
        "configuration": {} if facts is None else configuration_of(facts),
        "settings": asked.settings,
        "series": [one.document() for one in figures.slices],
        "made": rfc3339(time.time()),
    }


def savings_of(figures: WindowFigures, price: float | None) -> dict[str, float | None]:
    """Returns tokens and money that the cache saved, if each answer from it counts as an average generated one."""
    spent = figures.tokens.total()
    tokens = round(spent / figures.generated * figures.served) if figures.generated else None
    if price is None or tokens is None:
        return {"tokens": tokens, "money": None, "spent": None}
    return {"tokens": tokens, "money": round(tokens * price / 1e6, 6), "spent": round(spent * price / 1e6, 6)}


# -- Options -----------------------------------------------------------------------------------------------------------


def window_of(start: str | None, end: str | None, last: str, now: float) -> tuple[float, float]:
    """Returns the window in seconds since 1970. Ends the command if it is empty or in the future."""
    ends = now if end is None else min(_moment(end, "--to"), now)
    begins = ends - seconds_of(last, "--last") if start is None else _moment(start, "--from")
    if begins >= ends:
        raise exit_with("--from must be before --to, and not in the future", USAGE_ERROR)
    return max(0.0, begins), ends


def _moment(text: str, option: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise exit_with(
            f"{option} {text}: must be an RFC 3339 time, such as 2026-11-28T15:00:00Z", USAGE_ERROR
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def seconds_of(text: str, option: str) -> float:
    """Returns a duration in seconds. Ends the command if it is none."""
    parts = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if parts is None or not int(parts[1]):
        raise exit_with(f"{option} {text}: must be a number with s, m, h or d, such as 90m", USAGE_ERROR)
    return float(int(parts[1]) * UNITS[parts[2]])


def load_test_of(file: Path) -> Mapping[str, Any]:
    """Returns the result of a load test. Ends the command if the file has none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise exit_with(f"--load-test {file}: {error.strerror or error}", USAGE_ERROR) from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not set(found) >= LOAD_TEST_FIELDS:
        raise exit_with(f"--load-test {file}: is not a result of `ragherd load-test --json`", USAGE_ERROR)
    return found


def _check_matchers(prometheus: str | None, matchers: str) -> None:
    if matchers and prometheus is None:
        raise exit_with("--matchers needs --prometheus", USAGE_ERROR)
    if matchers and not MATCHERS.fullmatch(matchers):
        raise exit_with(f'--matchers {matchers}: must be label matchers, such as namespace="staging"', USAGE_ERROR)
    if prometheus is not None and not re.match(r"https?://[^/]", prometheus):
        raise exit_with("--prometheus must be http://HOST:PORT or https://HOST:PORT", USAGE_ERROR)


def _price(given: float | None, url: str | None) -> float | None:
    if given is not None or url is not None:
        return given
    try:
        return load_settings().server.price_per_million_tokens
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise exit_with(f"--html {file}: {error.strerror or error}", USAGE_ERROR) from None
