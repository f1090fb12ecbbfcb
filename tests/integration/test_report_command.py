"""`ragherd report` against the real service, with its history and with a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.stub_ollama import StubOllama, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.prometheus_process import running_prometheus
from tests.support.service import Service, ask
from tests.support.waiting import wait_until, wait_until_async

SHORT = ("--last", "5m", "--at-least", "1m")
NAMES = [
    "breaker_closed", "hit_rate", "error_rate", "latency_reduction", "capacity", "cost_saved", "restarts",
    "false_hit_rate",
]  # fmt: skip


@pytest.fixture
def serve(serve: Service) -> Service:
    """The service in this process logs errors only, because its log would be part of what the command prints."""
    return partial(serve, server={"log_level": "error"})


def run_here(*arguments: str, key: str | None = None) -> Result:
    return CliRunner().invoke(commands, ["report", *arguments], env={"RAGHERD_API_KEY": key, "COLUMNS": "200"})


async def run(client: httpx.AsyncClient, *arguments: str, key: str | None = None) -> Result:
    """Runs the command in a thread, because the service runs in the test's event loop."""
    return await asyncio.to_thread(partial(run_here, *arguments, "--url", str(client.base_url), key=key))


async def questions(client: httpx.AsyncClient, hits: int, misses: int) -> None:
    """Asks, and waits until the history has counted them all."""
    for number in range(misses):
        await ask(client, f"What is written on page {number} of the manual?", top_k=0)
    for _ in range(hits):
        await ask(client, "What is written on page 1 of the manual?", top_k=0)

    async def counted() -> bool:
        points = (await client.get("/api/history")).json()["points"]
        sums = [sum(one.get("queries", {}).get(status, 0) for one in points) for status in ("hit", "miss")]
        return bool(sum(sums) >= hits + misses)

    await wait_until_async(counted)


async def test_a_service_in_use_is_judged_by_its_own_history(serve: Service, stub: StubOllama, tmp_path: Path) -> None:
    client = await serve()
    stub.behaviour(delay=0.05, path="/api/chat")
    await questions(client, hits=90, misses=25)
    file = tmp_path / "report.html"
    result = await run(client, *SHORT, "--json", "--price", "2", "--html", str(file))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    met = {one["name"]: one["met"] for one in found["criteria"]}
    assert list(met) == NAMES
    assert {name for name in NAMES if met[name] is not True} <= {"false_hit_rate"}
    assert found["figures"]["queries"] == {**found["figures"]["queries"], "hit": 90, "miss": 25, "error": 0}
    assert found["capacity"]["ratio"] == pytest.approx(115 / 25)
    assert found["figures"]["latency_ms"]["miss"]["p50"] > 40 > found["figures"]["latency_ms"]["hit"]["p50"]
    assert (found["recommendation"]["verdict"], found["configuration"]["version"]) == ("wait", found["version"])
    assert found["savings"]["money"] > 0
    assert found["calls"]["ollama"]["state"] == "CLOSED"
    written = file.read_text()
    assert "Recommendation: Wait" in written
    assert "<svg viewBox" in written
    shown = await run(client, *SHORT)
    assert shown.exit_code == 0
    assert "| Cache hit rate | over 20 % | 78.3 % | met |" in shown.stdout
    assert (await run(client, *SHORT, "--fail-on-unmeasured")).exit_code == 1


async def test_an_outage_is_an_issue_and_a_missed_criterion(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await questions(client, hits=60, misses=5)
    stub.behaviour("status", status=500, path="/api/chat")
    for number in range(40):
        assert not (await client.post("/query", json={"question": f"What fails {number}?", "top_k": 0})).is_success

    async def seen() -> bool:
        points = (await client.get("/api/history")).json()["points"]
        return bool(sum(one.get("queries", {}).get("error", 0) for one in points) == 40)

    await wait_until_async(seen)
    result = await run(client, *SHORT, "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    error_rate = criterion(found, "error_rate")
    assert (error_rate["met"], error_rate["measured"]) == (False, pytest.approx(40 / 105, abs=1e-6))
    assert found["recommendation"]["verdict"] == "roll back"
    issues = "\n".join(found["issues"])
    assert "the answer was the error circuit-breaker-open." in issues
    assert "Breaker ollama: outage from " in issues
    assert "The service is degraded now" in issues
    shown = await run(client, *SHORT)
    assert shown.exit_code == 1
    assert "## Recommendation: Roll back" in shown.stdout


async def test_a_load_test_measures_the_capacity(serve: Service, stub: StubOllama, tmp_path: Path) -> None:
    client = await serve()
    stub.behaviour(delay=0.1, path="/api/chat")
    arguments = ["load-test", "--requests", "300", "--topics", "40", "--json", "--url", str(client.base_url)]
    result = await asyncio.to_thread(CliRunner().invoke, commands, arguments)
    file = tmp_path / "load-test.json"
    file.write_text(result.stdout)
    tested = json.loads(result.stdout)
    found = json.loads((await run(client, *SHORT, "--load-test", str(file), "--json")).stdout)
    alone = 10_000 / tested["latency_ms_by_status"]["miss"]["avg"]
    assert found["capacity"]["ratio"] == pytest.approx(tested["requests_per_second"] / alone, rel=0.01)
    assert found["capacity"]["formula"].startswith("From the load test")


async def test_secrets_and_a_history_that_is_off(serve: Service) -> None:
    client = await serve(
        server={"log_level": "error", "history_enabled": False},
        access={"api_keys": "acme=acme-key-for-tests", "admin_keys": "admin-key-for-tests"},
    )
    result = await run(client, key="admin-key-for-tests")
    assert result.exit_code == 1
    assert "HISTORY_ENABLED=false" in result.stderr
    assert "admin-key-for-tests" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--last", "soon"), "--last soon: must be a number with s, m, h or d"),
        (("--from", "2999-01-01"), "--from must be before --to"),
        (("--from", "yesterday"), "must be an RFC 3339 time"),
        (("--load-test", "nowhere.json"), "nowhere.json: No such file"),
        (("--load-test", __file__), "is not a result of `ragherd load-test --json`"),
        (("--matchers", 'a="b"'), "--matchers needs --prometheus"),
        (("--prometheus", "http://127.0.0.1:1", "--matchers", "} or vector(1)"), "must be label matchers"),
        (("--prometheus", "127.0.0.1:9090"), "--prometheus must be http"),
    ],
)
def test_wrong_use_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    result = run_here(*arguments, "--url", "http://127.0.0.1:1")
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_what_cannot_be_reached_exits_with_3() -> None:
    for arguments in ((), ("--prometheus", "http://user:secret@127.0.0.1:1")):
        result = run_here(*arguments, "--url", "http://127.0.0.1:1")
        assert result.exit_code == 3, result.output
        assert "cannot be reached" in result.stderr
        assert "secret" not in result.output


# -- Prometheus --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(redis_server: Any, tmp_path: Path) -> Iterator[Gunicorn]:
    redis_server.start()
    with sync_redis.Redis.from_url(redis_server.url) as server:
        server.flushall()  # the history of other tests' fleets
    with stub_process() as ollama, gunicorns("api.asgi:app", tmp_path) as begin:
        settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "REDIS_TIMEOUT": "1"}
        yield begin(WORKERS="2", METRICS_PORT=free_port(), **settings)


@pytest.mark.processes
def test_prometheus_and_the_history_say_the_same(fleet: Gunicorn, tmp_path: Path) -> None:
    client = httpx.Client(base_url=fleet.url(), timeout=30)
    run_id = secrets.token_hex(4)  # the server keeps the answers of other tests

    def asked(number: int) -> None:
        question = {"question": f"What is on page {number} of {run_id}?", "top_k": 0}
        assert client.post("/query", json=question).is_success

    with running_prometheus(tmp_path, {"a": f"127.0.0.1:{fleet.metrics_port}"}) as prometheus, closing(client):

        def counted(expression: str, expected: float) -> None:
            wait_until(lambda: [one["value"][1] for one in prometheus.query(expression)] == [f"{expected:g}"], 30)

        asked(0)  # increase() counts from the first sample of a series, so each series must have been scraped
        asked(0)
        counted('sum(ragherd_queries_total{status=~"hit|miss"})', 2)
        for number in range(30):
            asked(number)
        for _ in range(90):
            asked(1)
        counted('sum(ragherd_queries_total{status=~"hit|miss"})', 122)
        source = (*SHORT, "--prometheus", prometheus.url, "--url", fleet.url(), "--matchers")
        by_prometheus = json.loads(run_here(*source, 'namespace="ragherd"', "--json").stdout)
        by_history = json.loads(run_here(*SHORT, "--json", "--url", fleet.url()).stdout)
        for name in ("hit_rate", "error_rate", "cost_saved", "breaker_closed", "restarts"):
            assert measured(by_prometheus, name) == pytest.approx(measured(by_history, name), abs=0.05), name
        assert by_prometheus["source"] == "prometheus"
        assert by_prometheus["figures"]["uncached_ms"] > by_prometheus["figures"]["mean_ms"] > 0
        other = run_here(*source, 'namespace="other"')
        assert (other.exit_code, "nothing is known of" in other.stderr) == (1, True)

        arguments = (*SHORT, "--json", "--prometheus", prometheus.url, "--url", "http://127.0.0.1:1")
        gone = json.loads(run_here(*arguments).stdout)
        assert gone["figures"]["queries"]["hit"] > 80
        assert (gone["version"], gone["configuration"]) == (None, {})
        assert gone["issues"][-1] == "The service did not answer: its configuration and its state are not known."

        os.kill(min(fleet.workers()), signal.SIGKILL)
        counted("sum(ragherd_workers_started_total)", 3)
        killed = json.loads(run_here(*source, 'namespace="ragherd"', "--json").stdout)
        assert criterion(killed, "restarts")["met"] is not True


def criterion(found: Any, name: str) -> Any:
    return next(one for one in found["criteria"] if one["name"] == name)


def measured(found: Any, name: str) -> Any:
    return criterion(found, name)["measured"]
