"""gunicorn as `gunicorn -c worker_config/gunicorn_conf.py` starts it: its processes, signals, ports and metrics."""

from __future__ import annotations

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
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "worker_config" / "gunicorn_conf.py")]
COMMAND.append("tests.integration.gunicorn_app.asgi:app")


class Gunicorn:
    """A running master. Its output is a file that the tests read."""

    def __init__(self, log: Path, settings: dict[str, str]) -> None:
        self._log = log
        self._metrics_port = settings.get("METRICS_PORT", "0")
        one_request_each = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(trust_env=False, verify=False, timeout=5.0, limits=one_request_each)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        own = {"PORT": "0", "WORKERS": "1", "METRICS_PORT": "0", "PYTHONPATH": str(ROOT)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                COMMAND, cwd=ROOT, env={**inherited, **own, **settings}, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def url(self) -> str:
        return re.findall(r"Listening at: (\S+) ", "\n".join(self.lines()))[0]

    def get(self, path: str, timeout: float = 5.0) -> httpx.Response:
        return self.client.get(f"{self.url()}{path}", timeout=timeout)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.lines()
        return _is_success(lambda: self.get("/health/ready"))

    def metrics(self) -> str:
        return self.client.get(f"http://127.0.0.1:{self._metrics_port}/metrics").raise_for_status().text

    def misses(self) -> float:
        return float(
            re.findall(r'^ragherd_cache_lookups_total\{result="miss"\} (\S+)$', self.metrics(), re.MULTILINE)[0]
        )

    def workers(self) -> set[int]:
        return {pid for pid, command in children(self.pid).items() if "metrics_server" not in command}

    def metrics_process(self) -> int | None:
        return next((pid for pid, command in children(self.pid).items() if "metrics_server" in command), None)

    def directory(self) -> Path:
        return Path(re.findall(r"--dir (\S+)", children(self.pid)[self.metrics_process() or 0])[0])


def _is_success(request: Callable[[], httpx.Response]) -> bool:
    try:
        return request().is_success
    except (httpx.HTTPError, IndexError):
        return False


def free_port() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def children(parent: int) -> dict[int, str]:
    """The living children of a process, with their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def is_gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


Start = Callable[..., Gunicorn]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts gunicorn with settings; at the end of the test nothing of it is left."""
    started: list[Gunicorn] = []

    def begin(*, ready: bool = True, **settings: str) -> Gunicorn:
        gunicorn = Gunicorn(tmp_path / f"{len(started)}.log", settings)
        started.append(gunicorn)
        if ready:
            wait_until(gunicorn.is_ready)
        return gunicorn

    yield begin
    for gunicorn in started:
        descendants = children(gunicorn.pid)
        gunicorn.client.close()
        gunicorn.process.kill()
        gunicorn.process.wait(5)
        wait_until(lambda pids=descendants: all(is_gone(pid) for pid in pids))


def test_the_metrics_process_adds_up_what_all_workers_counted(start: Start) -> None:
    gunicorn = start(WORKERS="2", METRICS_PORT=free_port())
    answers = [gunicorn.get("/count") for _ in range(20)]

    assert "server" not in answers[0].headers
    assert {int(answer.text) for answer in answers} <= gunicorn.workers()
    assert len(gunicorn.workers()) == 2
    wait_until(lambda: gunicorn.misses() == 20)


def test_every_line_of_the_output_is_json(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port())
    gunicorn.process.terminate()
    assert gunicorn.process.wait(10) == 0

    lines: list[dict[str, Any]] = [json.loads(line) for line in gunicorn.lines()]
    assert "Shutting down: Master" in [line["event"] for line in lines]
    assert not [line for line in lines if line.get("level") in {"warning", "error", "critical"}]


def test_a_killed_metrics_process_is_replaced_and_no_scrape_is_refused(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port())
    gunicorn.get("/count")
    wait_until(lambda: gunicorn.misses() == 1)
    first = gunicorn.metrics_process()
    assert first

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: is_gone(first))

    assert gunicorn.misses() == 1
    assert gunicorn.metrics_process() not in {None, first}
    assert gunicorn.get("/pid").is_success


def test_the_totals_survive_a_killed_worker(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port())
    gunicorn.get("/count")
    [first] = gunicorn.workers()

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gunicorn.workers() and gunicorn.workers() != {first} and gunicorn.is_ready())
    gunicorn.get("/count")

    assert gunicorn.misses() == 2
    wait_until(lambda: not list(gunicorn.directory().glob(f"gauge_live*_{first}.db")))


def test_nothing_outlives_a_killed_master(start: Start) -> None:
    gunicorn = start(WORKERS="2", METRICS_PORT=free_port())
    wait_until(lambda: len(gunicorn.workers()) == 2)
    assert gunicorn.metrics()
    family = children(gunicorn.pid)
    assert len(family) == 3

    gunicorn.process.kill()
    gunicorn.process.wait(5)

    wait_until(lambda: all(is_gone(pid) for pid in family))


def test_the_private_directory_goes_with_the_master_and_a_named_one_is_emptied(start: Start, tmp_path: Path) -> None:
    private = start(METRICS_PORT=free_port())
    wait_until(private.metrics_process)
    directory = private.directory()
    assert list(directory.glob("*.db"))
    assert directory.stat().st_mode & 0o077 == 0
    private.process.terminate()
    assert private.process.wait(10) == 0
    assert not directory.exists()

    named = tmp_path / "metrics"
    named.mkdir()
    (named / "counter_1.db").write_bytes(b"of an earlier master")
    gunicorn = start(PROMETHEUS_MULTIPROC_DIR=str(named))
    assert not (named / "counter_1.db").exists()
    [worker] = gunicorn.workers()
    assert (named / f"counter_{worker}.db").exists()


def _refused(start: Start, **settings: str) -> tuple[int, list[str]]:
    """The exit code of a start that fails, and its lines except for what gunicorn says at `info`."""
    gunicorn = start(ready=False, **settings)
    code = gunicorn.process.wait(10)
    return code, [line for line in gunicorn.lines() if '"level":"info"' not in line]


def test_a_bad_setting_is_one_line_that_names_it(start: Start) -> None:
    code, lines = _refused(start, METRICS_PORT="9090", GRACEFUL_TIMEOUT="soon")

    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("GRACEFUL_TIMEOUT: ")


@pytest.mark.parametrize("variable", ["PORT", "METRICS_PORT"])
def test_a_taken_port_is_one_line_at_once(start: Start, variable: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        began = time.monotonic()
        code, lines = _refused(start, **{variable: port})

    assert code == 2
    assert lines == [
        f"{variable}: 127.0.0.1:{port} is taken; stop what listens there, or set {variable} to a free port"
    ]
    assert time.monotonic() - began < 5


def test_an_address_that_is_not_here_names_host(start: Start) -> None:
    code, lines = _refused(start, HOST="203.0.113.1")

    assert code == 2
    assert lines == ["HOST: this machine has no address '203.0.113.1'"]


def test_without_a_metrics_port_there_is_no_metrics_process(start: Start) -> None:
    gunicorn = start()

    assert gunicorn.metrics_process() is None
    gunicorn.process.terminate()
    assert gunicorn.process.wait(10) == 0


def test_a_draining_worker_says_so_while_it_still_accepts(start: Start) -> None:
    gunicorn = start(DRAIN_DELAY="1.5")

    gunicorn.process.terminate()
    wait_until(lambda: gunicorn.get("/health/ready").status_code == 503, timeout=1.4)

    assert gunicorn.get("/pid").is_success
    assert gunicorn.process.wait(10) == 0


def _in_background(gunicorn: Gunicorn, answers: list[object]) -> threading.Thread:
    """A slow request, begun when this returns."""

    def ask() -> None:
        try:
            answers.append(gunicorn.get("/slow", timeout=30).status_code)
        except httpx.HTTPError as error:
            answers.append(error)

    before = _connections(gunicorn)
    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: _connections(gunicorn) > before)
    return thread


def _connections(gunicorn: Gunicorn) -> int:
    [worker] = gunicorn.workers()
    return sum(1 for fd in (Path("/proc") / str(worker) / "fd").iterdir() if "socket:" in str(fd.readlink()))


def test_a_request_in_flight_is_answered_before_the_worker_leaves(start: Start) -> None:
    gunicorn = start(TEST_SLOW="1")
    answers: list[object] = []
    request = _in_background(gunicorn, answers)

    gunicorn.process.terminate()

    assert gunicorn.process.wait(10) == 0
    request.join(5)
    assert answers == [200]


def test_a_request_that_outlasts_the_graceful_timeout_is_cancelled(start: Start) -> None:
    gunicorn = start(TEST_SLOW="60", GRACEFUL_TIMEOUT="1")
    answers: list[object] = []
    request = _in_background(gunicorn, answers)

    gunicorn.process.terminate()

    assert gunicorn.process.wait(5) == 0
    request.join(5)
    assert answers != [200]
    assert '{"event": "the lifespan ended"}' in gunicorn.lines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_wait_for_no_request(start: Start, number: signal.Signals) -> None:
    gunicorn = start(TEST_SLOW="60")
    answers: list[object] = []
    request = _in_background(gunicorn, answers)

    gunicorn.process.send_signal(number)

    assert gunicorn.process.wait(5) == 0
    request.join(5)
    assert answers != [200]
    assert '{"event": "the lifespan ended"}' in gunicorn.lines()


def test_a_worker_that_still_starts_leaves_at_once(start: Start) -> None:
    gunicorn = start(ready=False, TEST_START="hangs")
    wait_until(lambda: "Booting worker" in "\n".join(gunicorn.lines()))
    wait_until(lambda: gunicorn.workers() and _handles_sigterm(next(iter(gunicorn.workers()))))

    gunicorn.process.terminate()

    assert gunicorn.process.wait(5) == 0
    assert not [line for line in gunicorn.lines() if "Traceback" in line]


def _handles_sigterm(pid: int) -> bool:
    status = (Path("/proc") / str(pid) / "status").read_text()
    caught = int(re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
