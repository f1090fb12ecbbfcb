"""`ragherd experiment` against the real service."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

TRIAL = """
name = "trial"

[[variants]]
name = "control"
share = 50

[[variants]]
name = "pirate"
share = 50
settings = { TOP_K = 2, PROMPT_TEMPLATE_PATH = "pirate.toml" }
"""
PIRATE = """
version = "pirate-1"
nothing_relevant = "Nothing."
[plain]
system = "Answer like a pirate."
[grounded]
system = "Answer like a pirate from the passages."
passage = "[$number] $text"
user = "$passages $question"
"""


@pytest.fixture
def serve(serve: Service) -> Service:
    """The service in this process logs errors only, because its log would be part of what the commands print."""
    return partial(serve, server={"log_level": "error"})


@pytest.fixture
def trial(tmp_path: Path) -> str:
    (tmp_path / "pirate.toml").write_text(PIRATE)
    file = tmp_path / "trial.toml"
    file.write_text(TRIAL)
    return str(file)


def run_here(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["experiment", *arguments], env={"COLUMNS": "200", "RAGHERD_API_KEY": None})


async def run(client: httpx.AsyncClient, *arguments: str) -> Result:
    return await asyncio.to_thread(partial(run_here, *arguments, "--url", str(client.base_url)))


async def document(client: httpx.AsyncClient, *arguments: str, code: int = 0) -> Any:
    result = await run(client, *arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


async def test_an_experiment_from_its_file_to_its_end(serve: Service, trial: str) -> None:
    client = await serve()
    shown = await run(client, "start", trial)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("trial: running, started 20")
    found = await document(client, "status")
    assert [one["name"] for one in found["variants"]] == ["control", "pirate"]
    assert found["variants"][1]["settings"] == {"TOP_K": 2, "PROMPT_TEMPLATE": PIRATE}
    await ask(client, "What is a breaker?", headers={"X-Ragherd-Client": "ann"})

    async def counted() -> bool:
        shown = await document(client, "status", "trial")
        return bool(sum(one["requests"] for one in shown["variants"]) == 1)

    await wait_until_async(counted)
    table = await run(client, "status")
    assert "settings              as usual" in table.stdout
    assert "TOP_K=2 PROMPT_TEMPLATE=..." in table.stdout
    assert "pirate: too early to say anything." in table.stdout
    stopped = await document(client, "stop")
    assert (stopped["state"], stopped["stopped"] is not None) == ("stopped", True)
    assert (await document(client, "status"))["state"] == "stopped"
    assert (await run(client, "stop")).exit_code == 1


async def test_a_variant_that_is_worse_ends_status_with_1(serve: Service, redis: Redis, trial: str) -> None:
    client = await serve()
    await document(client, "start", trial)
    figures: dict[Any, Any] = {}
    for group in range(20):
        for name, errors in (("control", 0), ("pirate", 100)):
            place = f"{name}:group:{group}"
            figures |= {f"{place}:answer": 100, f"{place}:hit": 100, f"{place}:log": 100_000, f"{place}:error": errors}
    await redis.hset("rag:experiment:trial:figures", mapping=figures)
    result = await run(client, "status")
    assert result.exit_code == 1, result.output
    assert "pirate is worse: errors +50.0 points (+" in result.stdout
    assert (await document(client, "status", code=1))["comparisons"][0]["verdict"] == "worse"


async def test_refusals_say_what_to_do(serve: Service, trial: str, tmp_path: Path) -> None:
    client = await serve()
    none = await run(client, "status")
    assert (none.exit_code, none.stdout) == (0, "No experiment has run in the last 30 days.\n")
    assert (await document(client, "status"))["name"] is None
    assert (await run(client, "status", "unknown")).exit_code == 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"name": "other", "variants": [{"name": "a", "share": 1}, {"name": "b", "share": 1}]}))
    await document(client, "start", str(other))
    busy = await run(client, "start", trial)
    assert (busy.exit_code, "The experiment other is running. Only one can: stop it first." in busy.stderr) == (1, True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.toml", None, "missing.toml: No such file or directory"),
        ("broken.toml", "name =", "broken.toml: not TOML: Invalid value"),
        ("broken.json", "{", "broken.json: not JSON: "),
        ("empty.toml", "name = 'x'", "empty.toml: has no [[variants]]"),
        ("prompt.toml", TRIAL, "pirate.toml: No such file or directory"),
        ("date.toml", "name = 2026-11-28\n[[variants]]", "date.toml: has a value that JSON lacks: Object of type date"),
        ("nan.toml", "[[variants]]\nshare = nan", "nan.toml: has a value that JSON lacks: Out of range float"),
    ],
)
def test_a_file_that_cannot_be_used_exits_with_2(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    result = run_here("start", str(tmp_path / name))
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert run_here("start").exit_code == 2
