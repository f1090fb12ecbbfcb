"""gunicorn with worker_config/gunicorn_conf.py: processes, signals, ports and metrics."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gunicorn_process import Gunicorn, children, free_port, gunicorns, is_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

Start = Callable[..., Gunicorn]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """gunicorn with an app of the test's own."""
    with gunicorns("tests.integration.gunicorn_app.asgi:app", tmp_path) as begin:
        yield begin


def test_the_metrics_process_adds_up_what_all_workers_counted(start: Start) -> None:
    gunicorn = start(WORKERS="2", METRICS_PORT=free_port())
    answers = [gunicorn.get("/count") for _ in range(20)]

    assert "server" not in answers[0].headers
    assert {int(answer.text) for answer in answers} <= gunicorn.workers()
    wait_until(lambda: len(gunicorn.workers()) == 2)
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
    gunicorn.process.wait(20)

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
    code = gunicorn.process.wait(20)
    return code, [line for line in gunicorn.lines() if '"level":"info"' not in line]


def test_a_bad_setting_is_one_line_that_names_it(start: Start) -> None:
    code, lines = _refused(start, METRICS_PORT="9090", GRACEFUL_TIMEOUT="soon")

    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("GRACEFUL_TIMEOUT: ")


@pytest.mark.parametrize("variable", ["PORT", "METRICS_PORT"])
def test_a_taken_port_is_one_line_without_another_try(start: Start, variable: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        code, lines = _refused(start, **{variable: port})

    assert code == 2
    assert lines == [
        f"{variable}: 127.0.0.1:{port} is in use; stop the process that listens there, or set {variable} to a free port"
    ]


def test_an_address_that_is_not_here_names_host(start: Start) -> None:
    code, lines = _refused(start, HOST="203.0.113.1", ALLOW_ANONYMOUS="true")

    assert code == 2
    assert lines == ["HOST: this machine has no address '203.0.113.1'"]


@pytest.mark.parametrize("given", [{"HOST": "0.0.0.0"}, {"GUNICORN_CMD_ARGS": "--bind=0.0.0.0:0"}])
def test_without_keys_no_other_address_is_listened_on_whoever_gives_it(start: Start, given: dict[str, str]) -> None:
    code, lines = _refused(start, **given)

    assert code == 2
    assert lines == [
        "API_KEYS: without keys, anyone who can reach 0.0.0.0 may use the service; "
        "set API_KEYS=tenant=key,... or REQUIRE_KEYS=true, or allow it with ALLOW_ANONYMOUS=true"
    ]


def test_where_callers_without_a_key_are_meant_the_log_says_so(start: Start) -> None:
    gunicorn = start(GUNICORN_CMD_ARGS="--bind=0.0.0.0:0 --bind=127.0.0.1:0", ALLOW_ANONYMOUS="true", ready=False)
    wait_until(
        lambda: (
            "anyone who can reach 0.0.0.0 may use the service, because no key is required" in "".join(gunicorn.lines())
        )
    )


def test_a_directory_that_can_not_be_made_is_one_line(start: Start) -> None:
    code, lines = _refused(start, PROMETHEUS_MULTIPROC_DIR="/dev/null/metrics")

    assert code == 2
    assert lines == ["PROMETHEUS_MULTIPROC_DIR: /dev/null/metrics: Not a directory"]


def test_without_a_metrics_port_there_is_no_metrics_process(start: Start) -> None:
    gunicorn = start()

    assert gunicorn.metrics_process() is None
    gunicorn.process.terminate()
    assert gunicorn.process.wait(10) == 0


def test_a_second_master_is_refused_and_the_counters_stay(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port())
    gunicorn.get("/count")
    wait_until(lambda: gunicorn.misses() == 1)
    before = children(gunicorn.pid)

    os.kill(gunicorn.pid, signal.SIGUSR2)
    wait_until(lambda: any("SIGUSR2 is not supported" in line for line in gunicorn.lines()))

    assert children(gunicorn.pid) == before
    assert gunicorn.misses() == 1


def test_a_draining_worker_says_so_while_it_still_accepts(start: Start) -> None:
    gunicorn = start(DRAIN_DELAY="1.5")
    assert "connection" not in gunicorn.get("/pid").headers

    gunicorn.process.terminate()
    wait_until(lambda: gunicorn.get("/health/ready").status_code == 503, timeout=1.4)

    answer = gunicorn.get("/pid")
    assert answer.is_success
    assert answer.headers["connection"] == "close"
    assert gunicorn.process.wait(10) == 0


def test_a_request_on_a_connection_that_was_open_before_is_answered(start: Start) -> None:
    gunicorn = start()
    url = httpx.URL(gunicorn.url())
    with socket.create_connection((url.host, url.port), timeout=5) as connection:
        wait_until(lambda: gunicorn.get("/pid").is_success)  # the worker has accepted it by then
        gunicorn.process.terminate()
        wait_until(lambda: _refuses(url), interval=0.005)
        connection.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert gunicorn.process.wait(10) == 0


def _refuses(url: httpx.URL) -> bool:
    try:
        socket.create_connection((url.host, url.port), timeout=5).close()
    except OSError:
        return True
    return False


def _in_background(gunicorn: Gunicorn, answers: list[object]) -> threading.Thread:
    """A slow request, begun when this returns."""

    def ask() -> None:
        try:
            answers.append(gunicorn.get("/slow", timeout=30).status_code)
        except httpx.HTTPError as error:
            answers.append(error)

    before = _sockets(gunicorn)
    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: _sockets(gunicorn) - before)
    return thread


def _sockets(gunicorn: Gunicorn) -> set[str]:
    [worker] = gunicorn.workers()
    found = set()
    for fd in (Path("/proc") / str(worker) / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(fd.readlink()))
    return {name for name in found if name.startswith("socket:")}


def test_a_request_in_flight_is_answered_before_the_worker_leaves(start: Start) -> None:
    gunicorn = start(TEST_SLOW="1")
    answers: list[object] = []
    request = _in_background(gunicorn, answers)

    gunicorn.process.terminate()

    assert gunicorn.process.wait(10) == 0
    request.join(20)
    assert answers == [200]


def test_a_request_that_outlasts_the_graceful_timeout_is_cancelled(start: Start) -> None:
    gunicorn = start(TEST_SLOW="60", GRACEFUL_TIMEOUT="1")
    answers: list[object] = []
    request = _in_background(gunicorn, answers)

    gunicorn.process.terminate()

    assert gunicorn.process.wait(20) == 0
    request.join(20)
    assert answers != [200]
    assert '{"event": "the lifespan ended"}' in gunicorn.lines()
    _says_once_that_one_was_cut_off(gunicorn, "Cancel 1 running task(s)")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_wait_for_no_request(start: Start, number: signal.Signals) -> None:
    gunicorn = start(TEST_SLOW="60")
    answers: list[object] = []
    request = _in_background(gunicorn, answers)

    gunicorn.process.send_signal(number)

    assert gunicorn.process.wait(20) == 0
    request.join(20)
    assert answers != [200]
    assert '{"event": "the lifespan ended"}' in gunicorn.lines()
    _says_once_that_one_was_cut_off(gunicorn, "cancelled 1 requests")


def _says_once_that_one_was_cut_off(gunicorn: Gunicorn, words: str) -> None:
    assert "\n".join(gunicorn.lines()).count(words) == 1
    assert not [line for line in gunicorn.lines() if "Traceback" in line]


def test_a_worker_that_still_starts_leaves_at_once(start: Start) -> None:
    gunicorn = start(ready=False, TEST_START="hangs")
    wait_until(lambda: "Booting worker" in "\n".join(gunicorn.lines()))
    wait_until(lambda: gunicorn.workers() and _handles_sigterm(next(iter(gunicorn.workers()))))

    gunicorn.process.terminate()

    assert gunicorn.process.wait(20) == 0
    assert not [line for line in gunicorn.lines() if "Traceback" in line]


def _handles_sigterm(pid: int) -> bool:
    status = (Path("/proc") / str(pid) / "status").read_text()
    caught = int(re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
