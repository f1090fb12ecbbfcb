"""`ragherd config` reads this environment, and the figures that `ragherd monitor` computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.settings import SECRET, variable_names
from ragherd.commands import commands
from ragherd.config import unknown_variables
from ragherd.monitor import bars, latencies


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a .env, and an environment without settings."""
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PORT=8100\nWORKERS=3\nsemantic_cache_ttl=60\nADMIN_KEYS=first-secret-key\n")
    return tmp_path


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(commands, ["config", *arguments], env={"COLUMNS": "300", **environment})


@pytest.mark.usefixtures("folder")
def test_the_environment_overrides_the_file_and_the_file_the_defaults() -> None:
    said = run("--json", WORKERS="5", PORT="")
    assert said.exit_code == 0, said.output
    settings = json.loads(said.stdout)["settings"]
    assert settings["WORKERS"] == {"value": 5, "source": "environment"}
    assert settings["PORT"] == {"value": 8100, "source": ".env"}
    assert settings["SEMANTIC_CACHE_TTL"] == {"value": 60.0, "source": ".env"}
    assert settings["HOST"] == {"value": "127.0.0.1", "source": "default"}
    assert list(settings) == variable_names()


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_no_secret_is_printed() -> None:
    secrets = {
        "API_KEYS": "acme=second-secret-key",
        "BATCH_KEYS": "second-secret-key",
        "ENCRYPTION_KEYS": f"a={('secret' * 8)[:43]}=",
        "REDIS_URL": "redis+sentinel://me:third-secret-key@a:26379,b:26379/main",
        "REDIS_SENTINEL_USERNAME": "me",
        "REDIS_SENTINEL_PASSWORD": "fourth-secret-key",
        "BREAKER_REDIS_URL": "redis://me:fifth-secret-key@c",
        "OLLAMA_BASE_URL": "http://one:11434,http://me:sixth-secret-key@two:11434",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=seventh-secret-key",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:eighth-secret-key@collector:4318",
    }
    for arguments in ((), ("--json",), ("--changed",)):
        said = run(*arguments, **secrets)
        assert said.exit_code == 0, said.output
        assert "secret" not in said.output
    settings = json.loads(run("--json", **secrets).stdout)["settings"]
    assert settings["REDIS_URL"]["value"] == "redis+sentinel://***@a:26379,b:26379/main"
    assert settings["OLLAMA_BASE_URL"]["value"] == "http://one:11434,http://***@two:11434"
    assert all("***" in str(settings[name]["value"]) for name in SECRET)


@pytest.mark.usefixtures("folder")
def test_changed_leaves_out_the_defaults_and_an_unknown_setting_is_named() -> None:
    said = run("--changed", SEMANTIC_CACHE_THRESHOLD="0.9", REDIS_PORT="tcp://10.0.0.1:6379")
    assert [line.split()[0] for line in said.stdout.splitlines()] == [
        *("setting", "PORT", "WORKERS", "ADMIN_KEYS", "SEMANTIC_CACHE_TTL")
    ]
    assert said.stderr == "SEMANTIC_CACHE_THRESHOLD is not a setting and has no effect.\n"


@pytest.mark.usefixtures("folder")
def test_an_invalid_setting_is_a_wrong_use() -> None:
    said = run("--json", PORT="none")
    assert (said.exit_code, said.stdout) == (2, "")
    assert "PORT: " in said.stderr


def test_a_misspelled_setting_is_recognized_and_other_programs_variables_are_not() -> None:
    given = ["SEMANTIC_CACHE_TLL", "REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP", "OLLAMA_HOST", "PATH", "PORT"]
    assert unknown_variables({}, given) == [("SEMANTIC_CACHE_TLL", "SEMANTIC_CACHE_TTL")]


def test_the_latest_latencies_of_each_cache_status_are_taken_from_the_history() -> None:
    times = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    slow = {name: 1000 * value for name, value in times.items()}
    points: list[dict[str, Any]] = [
        {"at": "2026-11-28T15:00:00Z", "latency_ms": {"miss": slow, "hit": slow}},
        {"at": "2026-11-28T15:05:00Z", "latency_ms": {"hit": times}},
        {"at": "2026-11-28T15:10:00Z", "latency_ms": {}},
        {"at": "2026-11-28T15:15:00Z", "gap": True},
    ]
    found = latencies(points)
    assert list(found) == ["hit", "miss"]
    assert found["hit"] == ("2026-11-28T15:05:00Z", (1.0, 2.0, 3.0))
    assert found["miss"].since == "2026-11-28T15:00:00Z"
    assert found["miss"].texts() == ("1,000", "2,000", "3,000")
    assert latencies([]) == {}


def test_bars_are_relative_to_the_highest() -> None:
    assert bars([0.0, 5.0, 10.0]) == "▁▅█"
    assert bars([0.0, 0.0]) == "▁▁"
    assert bars([]) == ""
