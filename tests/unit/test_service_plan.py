"""The decisions of `ragherd dev`: settings that a person made stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.embedded.model_process import generates_text
from api.embedded.service_plan import (
    Addresses,
    BackendPlan,
    addresses,
    first_error,
    is_set,
    language_model,
    service_environment,
)
from api.settings import Settings, load_settings, variable_names
from ragherd.config import without_password

WHERE = Addresses("127.0.0.1", 8001, 9090)
STAND_IN = BackendPlan(redis_url="redis://127.0.0.1:16379", stand_in_url="http://127.0.0.1:5000")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)


def settings(tmp_path: Path, *lines: str) -> Settings:
    """Returns the settings of a `.env` with these lines."""
    (tmp_path / ".env").write_text("\n".join(lines))
    return load_settings(str(tmp_path / ".env"))


def test_the_service_uses_the_embedded_servers(tmp_path: Path) -> None:
    environment = service_environment(settings(tmp_path), STAND_IN, WHERE, {"HOME": "/home/me"})
    assert environment == {
        "HOME": "/home/me",
        "PORT": "8001",
        "METRICS_PORT": "9090",
        "WORKERS": "2",
        "REDIS_URL": "redis://127.0.0.1:16379",
        "OLLAMA_BASE_URL": "http://127.0.0.1:5000",
        "LLM_MODEL": "smollm2:135m",
        "EMBED_MODEL": "all-minilm",
        "EMBEDDER": "onnx",
        "GRACEFUL_TIMEOUT": "2",
    }


def test_explicit_settings_are_kept(tmp_path: Path) -> None:
    mine = settings(tmp_path, "LLM_MODEL=qwen3", "EMBEDDER=ollama", "EMBED_MODEL=bge-m3", "WORKERS=5")
    environment = service_environment(mine, STAND_IN, WHERE, {})
    assert environment["LLM_MODEL"] == "qwen3"
    assert environment["WORKERS"] == "5"
    assert "EMBEDDER" not in environment
    assert "EMBED_MODEL" not in environment


def test_external_ollama_and_redis_come_from_the_settings(tmp_path: Path) -> None:
    mine = settings(tmp_path, "REDIS_URL=redis://db:6379", "OLLAMA_BASE_URL=http://gpu:11434")
    environment = service_environment(mine, BackendPlan(ollama_model="qwen3:8b"), WHERE, {})
    assert is_set(mine.redis, "url")
    assert environment["LLM_MODEL"] == "qwen3:8b"
    assert not {"REDIS_URL", "OLLAMA_BASE_URL", "EMBED_MODEL"} & set(environment)


def test_an_empty_redis_url_counts_as_unset(tmp_path: Path) -> None:
    assert not is_set(settings(tmp_path, "REDIS_URL=").redis, "url")


def test_the_configured_model_takes_precedence(tmp_path: Path) -> None:
    assert language_model(settings(tmp_path, "LLM_MODEL=qwen3"), BackendPlan(ollama_model="llama3.2:1b")) == "qwen3"


def test_port_0_is_any_free_port_and_metrics_port_0_disables_metrics(tmp_path: Path) -> None:
    where = addresses(settings(tmp_path, "PORT=0", "METRICS_PORT=0"))
    assert where.port > 0
    assert where.metrics_port == 0
    assert where.metrics_url == f"{where.url}/metrics"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001"),
        ("0.0.0.0", "http://127.0.0.1:8001"),
        ("::", "http://[::1]:8001"),
        ("my.host", "http://my.host:8001"),
    ],
)
def test_the_url_is_reachable_from_this_machine(host: str, url: str) -> None:
    assert Addresses(host, 8001, 9090).url == url


@pytest.mark.parametrize(
    ("model", "shown", "expected"),
    [
        ({"name": "llama3.2"}, {"capabilities": ["completion", "tools"]}, True),
        ({"name": "bge-m3"}, {"capabilities": ["embedding"]}, False),
        ({"name": "nomic-embed-text", "details": {"family": "nomic-bert"}}, {}, False),
        ({"name": "llama2", "details": {"family": "llama"}}, {}, True),
        ({"name": "old", "details": None}, {}, True),
    ],
)
def test_an_embedding_model_is_not_used_for_answers(
    model: dict[str, object], shown: dict[str, object], expected: bool
) -> None:
    assert generates_text(model, shown) is expected


def test_a_password_is_not_shown() -> None:
    assert without_password("rediss://me:secret@db:6380") == "rediss://***@db:6380"
    assert without_password("redis://db:6379") == "redis://db:6379"


def test_the_reason_for_an_exit_is_the_first_error() -> None:
    log = (
        '{"event": "booting", "level": "info"}\n{"event": "Traceback:\\n  File x\\nKeyError: 3\\n", "level": "error"}\n'
    )
    assert first_error(log + '{"event": "Worker failed to boot.", "level": "error"}\n') == "KeyError: 3"


def test_the_reason_is_the_error_message_and_not_the_event() -> None:
    assert first_error('{"event": "settings_wrong", "message": "EMBEDDER: no", "level": "error"}\n') == "EMBEDDER: no"


def test_a_reason_that_is_not_json_is_shown_unchanged() -> None:
    assert first_error("REDIS_URL: wrong\n\n") == "REDIS_URL: wrong"
