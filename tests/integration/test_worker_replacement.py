"""Workers are replaced under load by MAX_REQUESTS, SIGHUP and WORKER_MEMORY_LIMIT."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.gunicorn_process import FILE, MODULE, Gunicorn, free_port, gunicorns, is_gone
from tests.support.load import Load, constant_load
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

Start = Callable[..., Gunicorn]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """gunicorn with an app of the tests."""
    with gunicorns("tests.integration.gunicorn_app.asgi:app", tmp_path) as begin:
        yield begin


@contextmanager
def every_kind_of_load(gunicorn: Gunicorn) -> Iterator[list[Load]]:
    """Clients with and without keep-alive, and readers of streams. None of them may fail."""
    url = gunicorn.url()
    with ExitStack() as stack:
        loads = [
            stack.enter_context(constant_load(lambda client: client.get(f"{url}/pid"), 3)),
            stack.enter_context(constant_load(lambda client: client.get(f"{url}/pid"), 2, keep_alive=False)),
            stack.enter_context(constant_load(lambda client: whole_stream(client, url), 2)),
        ]
        yield loads
    assert [load.failures for load in loads] == [[], [], []]
    assert all(load.answered for load in loads)


def whole_stream(client: httpx.Client, url: str, seconds: float = 0.5) -> httpx.Response:
    response = client.get(f"{url}/stream?{seconds}")
    assert response.text.endswith("end"), response.text
    return response


@contextmanager
def a_long_stream(gunicorn: Gunicorn, seconds: float) -> Iterator[None]:
    """Reads a stream in the background. It must be complete in the end."""
    read: list[str] = []
    with httpx.stream("GET", f"{gunicorn.url()}/stream?{seconds}", trust_env=False, timeout=30) as response:
        parts = response.iter_text()
        read.append(next(parts))
        rest = threading.Thread(target=lambda: read.extend(parts))
        rest.start()
        yield
        rest.join()
    assert "".join(read).endswith("end")


def successors_serve(gunicorn: Gunicorn, before: set[int], count: int) -> bool:
    """Returns whether all workers of `before` are gone and as many new ones serve."""
    now = gunicorn.workers()
    return not now & before and len(now) == count


# -- MAX_REQUESTS ------------------------------------------------------------------------------------------------------


def test_workers_are_replaced_after_max_requests_and_no_request_fails(start: Start) -> None:
    gunicorn = start(WORKERS="2", MAX_REQUESTS="400", MAX_REQUESTS_JITTER="100", METRICS_PORT=free_port())
    with every_kind_of_load(gunicorn):
        wait_until(lambda: gunicorn.replaced("requests") >= 4, timeout=60)
    wait_until(lambda: len(gunicorn.workers()) == 2)
    assert (gunicorn.replaced("memory"), gunicorn.replaced("reload")) == (0, 0)


def test_totals_never_fall_and_files_do_not_pile_up_while_workers_are_replaced(start: Start) -> None:
    gunicorn = start(WORKERS="2", MAX_REQUESTS="200", METRICS_PORT=free_port())
    seen: list[float] = []

    def were_replaced() -> bool:
        seen.append(gunicorn.misses())
        return gunicorn.replaced("requests") >= 4

    with constant_load(lambda client: client.get(f"{gunicorn.url()}/count"), 3) as load:
        wait_until(were_replaced, timeout=60)
    assert load.failures == []
    assert seen == sorted(seen)
    wait_until(lambda: len(gunicorn.workers()) == 2)
    wait_until(lambda: gunicorn.misses() == load.answered)
    wait_until(lambda: len(list(gunicorn.directory().glob("counter_*.db"))) <= 4)  # two workers, the master, the gone


def test_the_only_worker_leaves_no_gap_and_its_stream_ends(start: Start) -> None:
    gunicorn = start(MAX_REQUESTS="20", GRACEFUL_TIMEOUT="1")
    [first] = gunicorn.workers()
    with a_long_stream(gunicorn, 4), constant_load(lambda client: client.get(f"{gunicorn.url()}/pid"), 1) as load:
        wait_until(lambda: gunicorn.get("/pid").text != str(first))
        assert not is_gone(first)  # its stream goes on, for longer than GRACEFUL_TIMEOUT
        assert gunicorn.is_ready()
    wait_until(lambda: is_gone(first))
    assert load.failures == []


# -- SIGHUP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """The `.env` of a separate working directory."""
    folder = tmp_path / "service"
    folder.mkdir()
    return folder / ".env"


@pytest.mark.parametrize("configuration", [FILE, MODULE], ids=["file", "module"])
def test_a_reload_takes_new_settings_and_no_request_fails(start: Start, env_file: Path, configuration: str) -> None:
    env_file.write_text("WORKERS=2\nPORT=0\n")
    where = {"working_directory": env_file.parent, "configuration": configuration}
    gunicorn = start(WORKERS="", PORT="", METRICS_PORT=free_port(), **where)
    wait_until(lambda: len(gunicorn.workers()) == 2)
    before, metrics_process = gunicorn.workers(), gunicorn.metrics_process()
    env_file.write_text("WORKERS=3\nPORT=1234\n")
    with every_kind_of_load(gunicorn), a_long_stream(gunicorn, 3):
        gunicorn.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gunicorn.replaced("reload") == 2, timeout=30)
        wait_until(lambda: successors_serve(gunicorn, before, 3), timeout=30)
    assert gunicorn.metrics_process() == metrics_process
    assert any("PORT: changes take effect only after a restart" in line for line in gunicorn.lines())
    wait_until(lambda: not {int(file.stem.split("_")[-1]) for file in live_gauges(gunicorn)} & before)


def live_gauges(gunicorn: Gunicorn) -> list[Path]:
    return list(gunicorn.directory().glob("gauge_live*.db"))


def test_bad_settings_change_nothing(start: Start, env_file: Path) -> None:
    gunicorn = start(working_directory=env_file.parent)
    before = gunicorn.workers()
    env_file.write_text("DRAIN_DELAY=soon\n")
    gunicorn.process.send_signal(signal.SIGHUP)
    wait_until(lambda: any("Cannot apply the new settings" in line for line in gunicorn.lines()))
    [line] = [json.loads(line) for line in gunicorn.lines() if "Cannot apply the new settings" in line]
    assert line["level"] == "error"
    assert "DRAIN_DELAY: " in line["event"]
    assert gunicorn.is_ready()
    assert gunicorn.workers() == before


def test_workers_that_can_not_start_replace_nobody(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    gunicorn = start(TEST_BROKEN=str(broken))
    [first] = gunicorn.workers()
    broken.touch()
    gunicorn.process.send_signal(signal.SIGHUP)
    wait_until(lambda: sum("The other workers keep serving" in line for line in gunicorn.lines()) >= 2, timeout=20)
    assert gunicorn.get("/pid").text == str(first)
    broken.unlink()
    wait_until(lambda: successors_serve(gunicorn, {first}, 1), timeout=20)
    assert gunicorn.is_ready()


def test_a_first_worker_that_can_not_start_ends_the_master(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    gunicorn = start(ready=False, TEST_BROKEN=str(broken))
    assert gunicorn.process.wait(15) == 3


def test_sigterm_in_the_middle_of_a_reload_ends_everything_in_time(start: Start) -> None:
    gunicorn = start(WORKERS="2", GRACEFUL_TIMEOUT="1")
    with httpx.stream("GET", f"{gunicorn.url()}/stream?60", trust_env=False, timeout=30) as response:
        next(response.iter_text())
        gunicorn.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("Replacing worker" in line for line in gunicorn.lines()))
        gunicorn.process.terminate()
        assert gunicorn.process.wait(1 + 5 + 5) == 0  # GRACEFUL_TIMEOUT, what is added for closing, and a busy machine


# -- WORKER_MEMORY_LIMIT -----------------------------------------------------------------------------------------------


LOOKED_AT = 4.0
"""Seconds: a worker's master, which looks once a second, knows by then what it started with."""


def test_workers_over_the_memory_limit_are_replaced_one_at_a_time_and_no_request_fails(start: Start) -> None:
    gunicorn = start(WORKERS="2", WORKER_MEMORY_LIMIT="300Mi", METRICS_PORT=free_port())
    before = gunicorn.workers()
    wait_until(lambda: min(map(seconds_lived, before)) > LOOKED_AT)
    most: list[int] = []

    def have_successors() -> bool:
        most.append(len(gunicorn.workers()))
        return successors_serve(gunicorn, before, 2)

    with every_kind_of_load(gunicorn):
        for worker in before:
            leak_in(gunicorn, worker)
        wait_until(have_successors, timeout=60)
    assert gunicorn.replaced("memory") == 2
    assert max(most) == 3  # never more than one extra worker
    lines = [line for line in gunicorn.lines() if "WORKER_MEMORY_LIMIT is 300 MiB" in line]
    assert len(lines) == 2


def seconds_lived(pid: int) -> float:
    """Returns the age of a process in seconds."""
    began = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - began


def leak_in(gunicorn: Gunicorn, worker: int) -> None:
    """Makes one worker allocate 400 MiB."""
    with httpx.Client(trust_env=False, base_url=gunicorn.url(), timeout=10) as client:
        wait_until(lambda: on_worker(client, worker))
        assert client.get("/leak?400").text == str(worker)


def on_worker(client: httpx.Client, worker: int) -> bool:
    """Connects until the connection reaches this worker."""
    return client.get("/pid").text == str(worker) or bool(client.get("/pid", headers={"Connection": "close"}).is_error)


def test_a_limit_below_what_a_worker_starts_with_is_a_warning(start: Start) -> None:
    gunicorn = start(WORKER_MEMORY_LIMIT="1Mi")
    before = gunicorn.workers()
    wait_until(lambda: any("is too close to a worker's initial memory" in line for line in gunicorn.lines()))
    os.kill(gunicorn.pid, signal.SIGTTIN)  # the master's loop turns on
    wait_until(lambda: len(gunicorn.workers()) == 2)
    assert before < gunicorn.workers()
