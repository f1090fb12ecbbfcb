"""`ragherd benchmark` against the real service."""

from __future__ import annotations

import asyncio
import json
import stat
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.stub_ollama import StubOllama
from tests.support.service import Service

SHORT = ("--rounds", "10", "--round-seconds", "0.5", "--users", "10", "--topics", "40", "--top-k", "0")


@pytest.fixture
def serve(serve: Service) -> Service:
    """The service in this process logs errors only, because its log would be part of what the command prints."""
    return partial(serve, server={"log_level": "error"})


def run_here(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["benchmark", *arguments], env={"COLUMNS": "200"})


async def run(client: httpx.AsyncClient, *arguments: str) -> Result:
    """Runs the command in a thread, because the service runs in the test's event loop."""
    return await asyncio.to_thread(partial(run_here, *arguments, "--url", str(client.base_url)))


@pytest.mark.once(reason="it measures, and the statistics have tests on every Python")
async def test_a_slower_model_is_a_regression(serve: Service, stub: StubOllama, tmp_path: Path) -> None:
    client = await serve()
    base, slow = str(tmp_path / "base.json"), str(tmp_path / "slow.json")
    result = await run(client, "save", base, *SHORT)
    assert result.exit_code == 0, result.output
    assert f"Wrote {base}: 10 rounds, " in result.stdout
    found = json.loads(Path(base).read_text())
    assert len(found["rounds"]) == 10
    assert all(one["failed"] == 0 for one in found["rounds"])
    served = (await client.get("/api/semantic-cache/metrics")).json()
    assert 0 < sum(one["hits"] for one in found["rounds"]) < served["hits"]  # the warm-up counts in no round
    assert found["service"]["configuration"]["cache_policy"] == "guarded"

    same = await run(client, "compare", base, base)
    assert same.exit_code == 0, same.output
    assert "No difference: every change is within what chance explains." in same.stdout

    stub.behaviour(delay=0.4, path="/api/chat")
    worse = await run(client, "compare", base, slow, "--run", "--json", "--tolerance", "0.5")
    assert worse.exit_code == 1, worse.output
    document: Any = json.loads(worse.stdout)
    by_name = {one["name"]: one for one in document["differences"]}
    assert by_name["latency p50, miss"]["verdict"] == "worse"
    assert by_name["latency p50, miss"]["low"] > 0
    assert by_name["latency p50, miss"]["regression"]
    assert (document["ok"], document["base"]["plan"]) == (False, document["new"]["plan"])
    assert stat.S_ISREG(Path(slow).stat().st_mode)
    shown = await run(client, "compare", base, slow)
    assert shown.exit_code == 1
    assert "worse (over 5 %)" in shown.stdout
    assert (await run(client, "compare", slow, base, "--tolerance", "10")).exit_code == 0


async def test_a_service_that_answers_nothing_has_no_benchmark(
    serve: Service, stub: StubOllama, tmp_path: Path
) -> None:
    client = await serve()
    stub.behaviour("status", status=500, path="/api/chat")
    file = tmp_path / "base.json"
    result = await run(client, "save", str(file), *SHORT)
    assert result.exit_code == 1
    assert "no request was answered" in result.stderr
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("save", "a", "b"), "save takes one name, and no --run"),
        (("save", "a", "--rounds", "3"), "--rounds"),
        (("compare", "a"), "compare needs a second benchmark, or --run"),
        (("compare", "/nowhere/a.json", "--run"), "/nowhere/a.json: No such file or directory"),
        (("compare", __file__, "--run"), "is not a benchmark of `ragherd benchmark save`"),
        (("delete", "a"), "'delete' is not one of"),
    ],
)
def test_wrong_use_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    result = run_here(*arguments, "--url", "http://127.0.0.1:1")
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_service_that_cannot_be_reached_exits_with_3(tmp_path: Path) -> None:
    result = run_here("save", str(tmp_path / "a.json"), "--url", "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "cannot be reached" in result.stderr
