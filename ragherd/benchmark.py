"""`ragherd benchmark`: saves a baseline of a running service, and compares two of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from api.errors import SettingsError
from api.settings import load_settings
from ragherd.benchmark_compare import LEAST_ROUNDS, Difference, compare
from ragherd.benchmark_file import (
    FORMAT,
    NotABenchmark,
    digest_of,
    machine,
    read_benchmark,
    round_of,
    short_rounds,
    warnings_of,
    worst_lag,
    write_benchmark,
)
from ragherd.exits import FAILED, INTERRUPTED, USAGE_ERROR, exit_with
from ragherd.load_options import (
    AnswerModel,
    AnswerTokens,
    AskingTenant,
    Paraphrases,
    Questions,
    Seed,
    Topics,
    TopK,
    Wording,
    Zipf,
    body_of,
)
from ragherd.load_plan import Plan, Tally
from ragherd.load_test import driven, new_scope
from ragherd.report_facts import configuration_of, facts_of
from ragherd.report_figures import rfc3339
from ragherd.service_client import AsJson, Url, connected, new_table, print_document, terminal

ROUNDS: Final = 40
ROUND_SECONDS: Final = 3.0
USERS: Final = 8
REDIS_SECONDS: Final = 1.0
Tolerance = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=10.0,
        help="Real regressions above this exit with 1. Relative change; for shares, the difference.",
    ),
]


class BenchmarkAction(StrEnum):
    """What to do."""

    SAVE = "save"
    COMPARE = "compare"


# -- Command -----------------------------------------------------------------------------------------------------------


RoundSeconds = Annotated[float, typer.Option(min=0.1, help="Seconds of a round: at least ten answers' time.")]


def benchmark(
    action: Annotated[BenchmarkAction, typer.Argument(help="What to do.")],
    base: Annotated[str, typer.Argument(help="Name or file of the benchmark to save, or to compare with.")],
    new: Annotated[str | None, typer.Argument(help="Of compare: the other one. With --run: where to save it.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Of compare: measure now, with the load of BASE.")] = False,
    tolerance: Tolerance = 0.05,
    rounds: Annotated[int, typer.Option(min=LEAST_ROUNDS, max=1000, help="Rounds, after one to warm up.")] = ROUNDS,
    round_seconds: RoundSeconds = ROUND_SECONDS,
    users: Annotated[int, typer.Option(min=1, max=2000, help="Users who ask one question after another.")] = USERS,
    questions: Questions = None,
    topics: Topics = 100,
    zipf: Zipf = None,
    paraphrases: Paraphrases = None,
    model: AnswerModel = None,
    tenant: AskingTenant = None,
    top_k: TopK = None,
    answer_tokens: AnswerTokens = None,
    seed: Seed = 1,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Save a baseline of a running service, or say which differences between two are real.

    `save` puts a fixed load on the service in rounds. Each round begins with an empty cache scope. A plain name is a
    file below .data/benchmarks.

    `compare` gives each change a range that holds, for all figures together, with 95 % confidence. The exit code is 1
    if a figure is really worse, by more than --tolerance.
    """
    if action is BenchmarkAction.SAVE:
        if new is not None or run:
            raise exit_with("save takes one name, and no --run", USAGE_ERROR)
        plan = {
            "rounds": rounds,
            "round_seconds": round_seconds,
            "users": users,
            "seed": seed,
            "questions": str(questions) if questions else None,
            "topics": topics,
            "zipf": zipf,
            "paraphrases": paraphrases,
            "model": model,
            "tenant": tenant,
            "top_k": top_k,
            "answer_tokens": answer_tokens,
        }
        _saved(base, plan, url, as_json=as_json)
    else:
        _compare(base, new, tolerance, url, run=run, as_json=as_json)


def _saved(name: str, plan: Mapping[str, Any], url: str | None, *, as_json: bool) -> None:
    found = measured_rounds(plan, url)
    path = _written(name, found)
    if as_json:
        print_document({**found, "file": str(path)})
        return
    requests = sum(one["requests"] for one in found["rounds"])
    typer.echo(
        f"Wrote {path}: {len(found['rounds'])} rounds, {requests:,} requests, settings {found['service']['digest']}"
    )
    if line := short_rounds(found):
        typer.echo(f"warning: {line}")


def _written(name: str, found: Mapping[str, Any]) -> Path:
    try:
        return write_benchmark(name, found)
    except OSError as error:
        raise exit_with(f"{name}: {error.strerror or error}", USAGE_ERROR) from None


def _compare(base: str, new: str | None, tolerance: float, url: str | None, *, run: bool, as_json: bool) -> None:
    if not run and new is None:
        raise exit_with("compare needs a second benchmark, or --run", USAGE_ERROR)
    try:
        before = read_benchmark(base)
        after = measured_rounds(before["plan"], url) if run or new is None else read_benchmark(new)
    except NotABenchmark as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    if run and new is not None:
        _written(new, after)
    differences = compare(before["rounds"], after["rounds"], tolerance)
    warnings = warnings_of(before, after)
    worse = [one for one in differences if one.regression]
    if as_json:
        found = {"ok": not worse, "tolerance": tolerance, "warnings": warnings}
        rows = [one.document() for one in differences]
        print_document({**found, "differences": rows, "base": _head(before), "new": _head(after)})
    else:
        _show(differences, warnings, tolerance)
    if worse:
        raise typer.Exit(FAILED)


def _head(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("made", "machine", "service", "plan")}


# -- Measure -----------------------------------------------------------------------------------------------------------


def measured_rounds(plan: Mapping[str, Any], url: str | None) -> dict[str, Any]:
    """Runs every round of a plan, after one to warm up, and returns the benchmark. Ctrl-C ends the command."""
    described = machine()
    with connected(url) as service:
        configuration = configuration_of(facts_of(service))
    begun = rfc3339(time.time())
    tallies: list[Tally] = []
    rounds: list[dict[str, Any]] = []
    for number, (tally, seconds) in enumerate(_rounds(plan, url)):
        if number:
            tallies.append(tally)
            rounds.append(round_of(tally, seconds))
    if not any(one["requests"] > one["failed"] for one in rounds):
        raise exit_with("no request was answered; `ragherd load-test` shows the errors")
    return {
        "format": FORMAT,
        "made": begun,
        "machine": described,
        "service": {
            "digest": digest_of(configuration),
            "configuration": configuration,
            "redis": _redis_version() if url is None else None,
        },
        "plan": dict(plan),
        "generator_lag_ms": worst_lag(tallies),
        "rounds": rounds,
    }


def _rounds(plan: Mapping[str, Any], url: str | None) -> Iterator[tuple[Tally, float]]:
    """Runs a round to warm up, then those of the plan. Each has its own questions and its own cache scope."""
    file = plan["questions"]
    wording = Wording(Path(file) if file else None, plan["topics"], plan["zipf"], plan["paraphrases"])
    for number in range(plan["rounds"] + 1):
        seed = plan["seed"] + number
        load = Plan(None, plan["round_seconds"], plan["users"], seed=seed)
        body = body_of(plan["model"], plan["tenant"], plan["top_k"], plan["answer_tokens"], new_scope())
        test, interrupted = driven(load, wording.asked(seed), body, url)
        if interrupted:
            raise exit_with("interrupted: nothing was saved", INTERRUPTED)
        yield test.tally, test.seconds


def _redis_version() -> str | None:
    """Returns the version of the Redis that this environment's settings name, if it can be reached."""
    from redis import Redis, RedisError

    try:
        settings = load_settings().redis
        with Redis.from_url(settings.url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS) as redis:
            return str(redis.info("server")["redis_version"])
    except (SettingsError, RedisError, ValueError, OSError):
        return None


# -- Show --------------------------------------------------------------------------------------------------------------


def _show(differences: Sequence[Difference], warnings: Sequence[str], tolerance: float) -> None:
    console = terminal()
    table = new_table("figure", "base", "new", "change", "range", "verdict")
    for column in table.columns[1:5]:
        column.justify = "right"
    for one in differences:
        verdict = f"{one.verdict} (over {100 * tolerance:g} %)" if one.regression else one.verdict
        change, low, high = (_percent(value) for value in (one.change, one.low, one.high))
        table.add_row(
            one.name, _value(one.base, one.unit), _value(one.new, one.unit), change, f"{low} to {high}", verdict
        )
    console.print(table)
    for line in warnings:
        console.print(f"warning: {line}")
    real = [one for one in differences if one.real]
    if not differences:
        console.print("Nothing to compare: no figure has enough requests in both.")
    elif not real:
        console.print("No difference: every change is within what chance explains.")


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _value(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:,.1f} {unit}" if value >= 10 else f"{value:.3g} {unit}"
