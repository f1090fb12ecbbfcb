"""`ragherd serve` and `ragherd serve --check` from an unrelated directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.embedded.redis_server import EmbeddedRedis
from api.settings import variable_names
from tests.stub_ollama.process import StubProcess, stub_process
from tests.support.gunicorn_process import children, free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
Start = Callable[..., "Serving"]


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a package `api`, as many projects have. Importing it fails."""
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "__init__.py").write_text("raise ImportError('not Ragherd')\n")
    return tmp_path


def environment(**settings: str) -> dict[str, str]:
    """Returns this process's environment with only the given settings of Ragherd. By default it reaches no server."""
    inherited = {name: value for name, value in os.environ.items() if name not in variable_names()}
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}", "OLLAMA_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    return inherited | {"PYTHONPATH": str(ROOT), "METRICS_PORT": "0"} | nowhere | settings


COMMAND = [sys.executable, "-P", "-m", "ragherd", "serve"]


class Serving:
    """A running `ragherd serve` with its log."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], settings: dict[str, str]) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as output:
            command = [*COMMAND, *arguments]
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(TMPDIR=str(folder), **settings),  # a master that is killed leaves its folder of metrics
                stdout=output,
                stderr=output,
            )

    def is_ready(self, port: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).is_success
        except httpx.HTTPError:
            return False


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    started: list[Serving] = []

    def begin(*arguments: str, **settings: str) -> Serving:
        started.append(Serving(folder, arguments, settings))
        return started[-1]

    yield begin
    for serving in started:
        serving.process.kill()
        serving.process.wait()


def check(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs `ragherd serve --check` and returns its output."""
    command = [*COMMAND, "--check", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(**settings), capture_output=True, text=True, timeout=60, check=False
    )


def test_it_serves_from_any_directory_and_sigterm_drains_it(start: Start) -> None:
    port, metrics_port = free_port(), free_port()
    serving = start("--bind", f"127.0.0.1:{port}", "--workers", "2", PORT="1", WORKERS="1", METRICS_PORT=metrics_port)
    wait_until(lambda: serving.is_ready(port), timeout=30)
    wait_until(lambda: serving.log.read_text().count("worker_started") == 2, timeout=30)
    assert len(children(serving.process.pid)) == 3  # two workers, and the process that serves the metrics
    wait_until(lambda: "ragherd_workers" in metrics(metrics_port), timeout=30)

    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(30) == 0
    assert serving.log.read_text().count("Draining: stop accepting") == 2
    assert "Traceback" not in serving.log.read_text()


def metrics(port: str) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.HTTPError:
        return ""


def test_sighup_reads_the_settings_again_and_keeps_the_options(start: Start, folder: Path) -> None:
    port = free_port()
    (folder / ".env").write_text("WORKERS=3\nLOG_LEVEL=info\n")
    serving = start("--bind", f"127.0.0.1:{port}", "--workers", "1")
    wait_until(lambda: serving.is_ready(port), timeout=30)
    before = set(children(serving.process.pid))

    (folder / ".env").write_text("WORKERS=3\nMAX_REQUESTS=1000\n")
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(children(serving.process.pid)), timeout=30)
    wait_until(lambda: serving.is_ready(port), timeout=30)
    wait_until(lambda: len(children(serving.process.pid)) == 1, timeout=30)
    assert "Cannot apply the new settings" not in serving.log.read_text()


def test_a_check_can_print_json(folder: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    checked = check(folder, "--json", REDIS_URL=f"redis://{nowhere}", OLLAMA_BASE_URL=f"http://{nowhere}")
    assert checked.returncode == 1
    found = json.loads(checked.stdout)
    assert [(one["name"], one["ok"]) for one in found["checks"]] == [
        *(("Settings", True), ("Redis", False), (f"Ollama at http://{nowhere}", False))
    ]
    assert found["ok"] is False


@pytest.mark.parametrize(
    "given", ["8001", "nowhere", "127.0.0.1:port", "127.0.0.1:70000", "http://127.0.0.1:1", "a@b:1"]
)
def test_an_address_that_is_none_is_refused(folder: Path, given: str) -> None:
    refused = check(folder, "--bind", given)
    assert refused.returncode == 2
    assert "HOST:PORT" in refused.stderr


def test_the_check_finds_everything_ready_and_opens_no_port(
    folder: Path, redis_server: EmbeddedRedis, ollama: StubProcess
) -> None:
    redis_server.start()
    settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "EMBEDDER": "onnx"}
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = check(folder, "--bind", f"127.0.0.1:{other.getsockname()[1]}", LLM_MODEL="llama3.2", **settings)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "Settings: valid"
    assert "Redis: ready" in lines
    assert f"Ollama at {ollama.base_url}: ready, with llama3.2" in lines
    assert lines[-1].startswith("Embedder: ready, all-MiniLM-L6-v2")


def test_the_check_names_what_cannot_be_reached(folder: Path) -> None:
    done = check(folder, BREAKER_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if "cannot be used" in line]
    assert [line.split(" ")[0] for line in failed] == ["Redis:", "Redis", "Ollama"]
    assert "correct REDIS_URL" in failed[0]
    assert "correct BREAKER_REDIS_URL" in failed[1]
    assert "correct OLLAMA_BASE_URL" in failed[2]


def test_the_check_names_models_that_are_missing(
    folder: Path, redis_server: EmbeddedRedis, ollama: StubProcess
) -> None:
    redis_server.start()
    settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url}
    done = check(folder, LLM_MODEL="no-such-model", EMBED_MODEL="nor-this", **settings)
    assert done.returncode == 1
    assert "no-such-model and nor-this not found. Run: ollama pull no-such-model; ollama pull nor-this" in done.stdout


def test_the_check_writes_nothing_to_redis(folder: Path, redis_server: EmbeddedRedis) -> None:
    import redis

    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        check(folder, REDIS_URL=redis_server.url)
        assert client.keys("*") == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"PORT": "many"}, "ragherd: PORT: "),
        ({"HOST": "0.0.0.0"}, "ragherd: API_KEYS: "),
        ({"MAX_CONNECTIONS": "1000000000"}, "ragherd: MAX_CONNECTIONS: "),
        ({"EMBEDDER": "onnx", "EMBED_MODEL_PATH": "nowhere"}, "ragherd: EMBED_MODEL_PATH: "),
    ],
)
def test_a_bad_setting_is_one_line_and_code_2(folder: Path, settings: dict[str, str], named: str) -> None:
    done = check(folder, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(named)
    assert done.stderr.count("\n") == 1


def test_the_check_passes_on_what_the_log_would_warn_of(folder: Path) -> None:
    done = check(folder, HOST="0.0.0.0", ALLOW_ANONYMOUS="true", API_KEYS="", ADMIN_KEYS="short")
    assert "Settings: warning: ALLOW_ANONYMOUS: anyone" in done.stdout
    assert "Settings: warning: ADMIN_KEYS: " in done.stdout
