"""`ragherd preflight` before a deployment, and `ragherd smoke` after it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.quality.keeper import NEVER
from api.quality.policies import LAST_LEVEL, Rules
from api.redis_store.acl import acl_commands, acl_line
from api.redis_store.diagnostics import denied_commands
from api.settings import variable_names
from ragherd.commands import commands
from tests.stub_ollama import StubOllama, StubProcess, stub_process
from tests.support.gunicorn_process import free_port, gunicorns
from tests.support.service import Service, ask

ROOT = Path(__file__).parents[2]
KEYS = {"access": {"api_keys": "acme=acme-key-for-tests", "admin_keys": "admin-key-for-tests"}}
MODELS = ["llama3.2:latest", "nomic-embed-text:latest"]


def run(name: str, *arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(commands, [name, *arguments], env={"COLUMNS": "200", **environment})


def failed(found: Any) -> list[str]:
    """Returns the names of the checks that failed."""
    assert found["ok"] == all(one["ok"] for one in found["checks"])
    return [one["name"] for one in found["checks"] if not one["ok"]]


# -- Preflight ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No .env and no setting."""
    for name in (*variable_names(), "OLLAMA_NUM_PARALLEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture(scope="module")
def durable() -> Iterator[EmbeddedRedis]:
    """A Redis as production needs it: an append-only file, a limit, and a user with the least rights."""
    least = acl_line("main", user="ragherd", prefix="rag:", password="secret").split()
    arguments = ("--maxmemory", "256mb", "--maxmemory-policy", "volatile-lfu", "--user", *least[1:])
    with embedded_redis(arguments=arguments) as server:
        yield server


def preflight(scenario: str, code: int, **settings: str) -> dict[str, dict[str, Any]]:
    """Returns the checks by name."""
    ports = {"PORT": free_port(), "METRICS_PORT": free_port()}
    result = run("preflight", "--scenario", scenario, "--json", **{**ports, **settings})
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert (found["scenario"], found["ok"]) == (scenario, code == 0)
    failed(found)
    return {one["name"]: one for one in found["checks"]}


def good_settings(durable: EmbeddedRedis, ollama: StubProcess) -> dict[str, str]:
    ollama.behaviour(models=MODELS)
    return {
        "REDIS_URL": f"redis://ragherd:secret@{durable.url.removeprefix('redis://')}",
        "OLLAMA_BASE_URL": ollama.base_url,
        "API_KEYS": "acme=0123456789abcdef01",
        "ADMIN_KEYS": "0123456789abcdef02",
        "OLLAMA_NUM_CTX": "4096",
        "OLLAMA_NUM_PARALLEL": "4",
    }


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("scenario", ["development", "staging", "production"])
def test_an_environment_as_it_should_be_passes_every_scenario(
    durable: EmbeddedRedis, ollama: StubProcess, scenario: str
) -> None:
    checks = preflight(scenario, 0, **good_settings(durable, ollama))
    assert [one for one in checks.values() if one["advice"]] == []
    parts = ("version", "module", "eviction", "persistence", "memory", "rights", "least rights")
    assert {f"Redis, {part}" for part in parts} < set(checks)
    assert {"settings", "API keys", "admin keys", "clock", "port, PORT", "parallelism"} < set(checks)
    assert f"Ollama {ollama.base_url}, context" in checks


@pytest.mark.usefixtures("bare")
def test_a_laptop_is_fit_for_development_only(redis_url: str, ollama: StubProcess) -> None:
    ollama.behaviour(models=MODELS)
    settings = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url}
    laptop = preflight("development", 0, **settings)
    assert {name for name, one in laptop.items() if one["advice"]} >= {"API keys", "Redis, persistence"}
    missing = {"API keys", "admin keys", "Redis, persistence"}
    staging = preflight("staging", 1, **settings)
    assert {name for name, one in staging.items() if not one["ok"]} == missing
    production = preflight("production", 1, **settings)
    assert {name for name, one in production.items() if not one["ok"]} == missing | {"Redis, least rights"}


@pytest.mark.usefixtures("bare")
def test_what_is_missing_or_taken_fails(durable: EmbeddedRedis, ollama: StubProcess) -> None:
    settings = good_settings(durable, ollama)
    ollama.behaviour(models=["nomic-embed-text:latest"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        checks = preflight("development", 1, **settings, METRICS_PORT=port)
    assert {name for name, one in checks.items() if not one["ok"]} == {
        "port, METRICS_PORT",
        f"Ollama {ollama.base_url}, llama3.2",
    }
    assert "in use" in checks["port, METRICS_PORT"]["detail"]
    nowhere = f"127.0.0.1:{free_port()}"
    gone = {**settings, "REDIS_URL": f"redis://:secret@{nowhere}", "OLLAMA_BASE_URL": f"http://{nowhere}"}
    result = run("preflight", **gone, PORT=free_port(), METRICS_PORT=free_port())
    assert result.exit_code == 1
    assert f"FAIL  Redis: redis://***@{nowhere} cannot be used: " in result.stdout
    assert f"FAIL  Ollama http://{nowhere}: cannot be used: " in result.stdout


SCENARIOS = {"development": "dev", "staging": "staging", "production": "production"}


def env_file(scenario: str) -> Path:
    return ROOT / "k8s" / "overlays" / SCENARIOS[scenario] / "settings.env"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_env_file_of_each_scenario_passes_it(durable: EmbeddedRedis, ollama: StubProcess, scenario: str) -> None:
    settings = good_settings(durable, ollama)
    ollama.behaviour(models=[*MODELS, "llama3.2:1b"])
    file = str(env_file(scenario))
    ports = {"PORT": free_port(), "METRICS_PORT": free_port()}
    result = run("preflight", "--scenario", scenario, "--env-file", file, "--json", **settings, **ports)
    assert result.exit_code == 0, result.output
    warned = {one["name"] for one in json.loads(result.stdout)["checks"] if one["advice"]}
    assert warned == (
        {"anonymous callers", "parallelism"} - {"anonymous callers"} if scenario == "development" else set()
    )


@pytest.mark.usefixtures("bare")
def test_what_a_rollout_relies_on_must_be_on(durable: EmbeddedRedis, ollama: StubProcess, tmp_path: Path) -> None:
    off = "SEMANTIC_CACHE_ENABLED=false\nCIRCUIT_BREAKER_ENABLED=false\nHISTORY_ENABLED=false\nLOG_QUESTIONS=true\n"
    (tmp_path / ".env").write_text(off)
    settings = good_settings(durable, ollama)
    staging = preflight("staging", 0, **settings)
    assert {name for name, one in staging.items() if one["advice"]} == {"cache", "breaker", "history", "questions"}
    production = preflight("production", 1, **settings)
    assert {name for name, one in production.items() if not one["ok"]} == {"breaker", "history"}
    assert production["history"]["advice"] == "Set HISTORY_ENABLED=true."
    missing = run("preflight", "--env-file", "absent.env")
    assert missing.exit_code == 2


@pytest.mark.processes
@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_env_file_of_each_scenario_starts_the_service(
    durable: EmbeddedRedis, ollama: StubProcess, tmp_path: Path, scenario: str
) -> None:
    settings = good_settings(durable, ollama)
    ollama.behaviour(models=[*MODELS, "llama3.2:1b"])
    shutil.copy(env_file(scenario), tmp_path / ".env")
    with gunicorns("api.asgi:app", tmp_path) as begin:
        service = begin(working_directory=tmp_path, OLLAMA_WARM_UP="false", **settings)
        for key, code in ((settings["ADMIN_KEYS"], 0), ("", 1)):
            found = run("smoke", "--json", "--url", service.url(), RAGHERD_API_KEY=key)
            assert found.exit_code == code, found.output
    found = json.loads(run("config", "--json", "--changed", **settings).stdout)
    given = {line.partition("=")[0] for line in env_file(scenario).read_text().splitlines() if "=" in line}
    assert {name for name, one in found["settings"].items() if one["source"] == ".env"} == given
    assert found["unknown"] == []


@pytest.mark.processes
@pytest.mark.usefixtures("bare")
def test_a_port_where_ragherd_itself_listens_is_a_warning(
    durable: EmbeddedRedis, ollama: StubProcess, tmp_path: Path
) -> None:
    settings = good_settings(durable, ollama)
    ports = {"PORT": free_port(), "METRICS_PORT": free_port()}
    with gunicorns("api.asgi:app", tmp_path) as begin:
        begin(**{**settings, **ports, "REDIS_PREFIX": "rag:"})
        checks = preflight("production", 0, **{**settings, **ports})
    for variable, port in ports.items():
        found = checks[f"port, {variable}"]
        assert (found["ok"], found["detail"]) == (True, f"a running Ragherd listens at 127.0.0.1:{port}")
        assert found["advice"] == f"Stop it first, or set {variable}."


@pytest.mark.usefixtures("bare")
def test_no_key_is_printed_and_a_weak_one_is_named(durable: EmbeddedRedis, ollama: StubProcess) -> None:
    settings = {**good_settings(durable, ollama), "API_KEYS": "acme=weakling", "SEMANTIC_CACHE_TLL": "5"}
    result = run("preflight", "--scenario", "staging", **settings, PORT=free_port(), METRICS_PORT=free_port())
    assert result.exit_code == 1
    assert "FAIL  key strength: API_KEYS: a key of fewer than 16 characters" in result.stdout
    assert "warn  unknown setting: SEMANTIC_CACHE_TLL" in result.stdout
    assert not any(secret in result.output for secret in ("weakling", "0123456789abcdef", "secret@"))
    refused = run("preflight", OLLAMA_BASE_URL=f"{ollama.base_url.replace('//', '//user:hunter2@')}/nothing")
    assert "cannot be used: it answers 404" in refused.stdout
    assert "hunter2" not in refused.output
    invalid = run("preflight", "--json", PORT="none")
    assert (invalid.exit_code, failed(json.loads(invalid.stdout))) == (1, ["settings"])


async def test_missing_rights_are_found_without_running_a_command(redis: Redis, redis_url: str) -> None:
    rights = acl_commands("main")
    line = acl_line("main", user="less", prefix="rag:", password="secret").split()
    lacking = {"zadd", "evalsha", "ft.search", "script|load", "hset"}
    allowed = [word for word in line[2:] if word.removeprefix("+") not in lacking]
    admin: Any = redis
    await admin.execute_command("ACL", "SETUSER", "less", "reset", *allowed)
    try:
        async with Redis.from_url(f"redis://less:secret@{redis_url.removeprefix('redis://')}") as client:
            assert await denied_commands(client, rights, "rag:probe") == sorted(lacking)
            assert set(await denied_commands(client, rights, "other:probe")) > lacking
            assert await client.ping()
        assert await denied_commands(redis, rights, "rag:probe") == []
        assert await redis.dbsize() == 0
    finally:
        await admin.execute_command("ACL", "DELUSER", "less")
        await redis.acl_log_reset()


# -- Smoke -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(serve: Service) -> Service:
    """The service in this process logs errors only, because its log would be part of what the commands print."""
    return partial(serve, server={"log_level": "error"})


async def smoke(client: httpx.AsyncClient, *arguments: str, code: int = 0, key: str = "") -> Any:
    command = partial(run, "smoke", "--url", str(client.base_url), "--json", *arguments, RAGHERD_API_KEY=key)
    result = await asyncio.to_thread(command)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


ALL = [
    *("health", "readiness", "circuit-breaker metrics", "connection-pool metrics", "semantic-cache metrics"),
    *("prometheus", "question", "same question", "paraphrase", "stream", "isolation"),
]


async def test_a_good_service_passes_every_check_again_and_again(serve: Service, redis: Redis) -> None:
    client = await serve()
    for _ in range(2):
        found = await smoke(client)
        assert [one["name"] for one in found["checks"]] == ALL
        assert failed(found) == []
    details = {one["name"]: one["detail"] for one in found["checks"]}
    assert "an exact hit" in details["same question"]
    assert "a semantic hit" in details["paraphrase"]
    assert details["isolation"] == "another tenant does not get the cached answer"
    metrics = (await client.get("/api/semantic-cache/metrics")).json()
    assert metrics["cache_size"] == 0, "it leaves answers behind"


async def test_it_meets_no_answer_of_users(serve: Service) -> None:
    client = await serve()
    await ask(client, "How do I reset my password?")
    assert failed(await smoke(client)) == []
    assert (await ask(client, "How do I reset my password?"))["cache"]["status"] == "hit"


@pytest.mark.parametrize(
    ("key", "wrong", "isolation"),
    [
        ("acme-key-for-tests", [], "the key cannot ask as another tenant"),
        ("admin-key-for-tests", [], "another tenant does not get the cached answer"),
        ("", ["question", "same question", "paraphrase", "stream", "isolation"], ""),
    ],
)
async def test_keys(serve: Service, key: str, wrong: list[str], isolation: str) -> None:
    found = await smoke(await serve(**KEYS), key=key, code=1 if wrong else 0)
    assert failed(found) == wrong
    if isolation:
        assert found["checks"][-1]["detail"] == isolation
    assert "for-tests" not in json.dumps(found)


async def test_a_service_without_cache_or_with_observe_is_not_asked_for_hits(serve: Service) -> None:
    for cache in ({"enabled": False}, {"policy": "observe"}):
        found = await smoke(await serve(cache=cache))
        skipped = [one["name"] for one in found["checks"] if one["detail"].startswith("not checked")]
        assert skipped == ["same question", "paraphrase", "isolation"]


async def test_a_fleet_that_has_tightened_is_not_asked_for_a_paraphrase(
    serve: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Rules(threshold=NEVER, level=LAST_LEVEL)
    monkeypatch.setattr("api.quality.keeper.QualityView.rules", lambda *_: strict)
    found = await smoke(await serve())
    [paraphrase] = [one["detail"] for one in found["checks"] if one["name"] == "paraphrase"]
    assert paraphrase.startswith("not checked: the fleet has tightened")


async def test_what_is_broken_fails(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("status", status=500)
    assert "question" in failed(await smoke(client, code=1))
    stub.behaviour()
    await client.post("/api/circuit-breaker/force-open")
    forced = failed(await smoke(client, code=1))
    assert {"health", "question"} <= set(forced)


async def test_a_leak_between_tenants_fails(serve: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _of_one_tenant()
    for module in ("query", "semantic_cache"):
        monkeypatch.setattr(f"api.endpoints.{module}.build_query", shared)
    assert failed(await smoke(await serve(), code=1)) == ["isolation"]


def _of_one_tenant() -> Any:
    from dataclasses import replace

    from api.endpoints.query import build_query

    return lambda *arguments: replace(build_query(*arguments), tenant="everyone")


def test_a_service_that_cannot_be_reached_exits_with_3_and_a_document() -> None:
    result = run("smoke", "--json", "--url", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 3
    assert failed(json.loads(result.stdout)) == ["health"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("embedder", "unchecked"), [("onnx", 0), ("ollama", 5)], ids=["embedder in the worker", "embedder on Ollama"]
)
def test_without_ollama(redis_url: str, tmp_path: Path, embedder: str, unchecked: int) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with gunicorns("api.asgi:app", tmp_path) as begin:
        service = begin(REDIS_URL=redis_url, OLLAMA_BASE_URL=nowhere, EMBEDDER=embedder, REDIS_PREFIX=f"{embedder}:")
        found = run("smoke", "--json", "--without-ollama", "--url", service.url())
        assert found.exit_code == 0, found.output
        details = [one["detail"] for one in json.loads(found.stdout)["checks"]]
        assert sum(detail.startswith("not checked") for detail in details) == unchecked
        assert details[-1] == "a new question gets 502"
        assert run("smoke", "--json", "--url", service.url()).exit_code == 1
