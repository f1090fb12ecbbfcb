"""Clients that send nothing, or too slowly, to real workers: they are disconnected and block no others."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.gunicorn_app.asgi import LARGE
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.waiting import wait_until
from worker_config.metrics_server import MAX_CONNECTIONS, InheritedSocketServer, application

pytestmark = pytest.mark.processes

Start = Callable[..., Gunicorn]
SOON = {"HEADER_TIMEOUT": "0.5", "BODY_TIMEOUT": "0.5", "KEEPALIVE_TIMEOUT": "0.5"}
LATER = {"HEADER_TIMEOUT": "60", "BODY_TIMEOUT": "60", "KEEPALIVE_TIMEOUT": "60"}
"""Far beyond the test's duration, so only the deadline under test can close a connection."""
REQUEST = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n"
UNFINISHED = b"GET /pid HTTP/1.1\r\nHost: x\r\nX-A: "
HALF = b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
SILENT = 2600
DESCRIPTORS = "1024"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """gunicorn with an app of the tests."""
    with gunicorns("tests.integration.gunicorn_app.asgi:app", tmp_path) as begin:
        yield begin


@pytest.fixture
def few_descriptors(tmp_path: Path) -> Iterator[Gunicorn]:
    """The service with one worker and 1,024 descriptors, a limit that its processes cannot raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the clients' ends
    limited = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh")
    settings = {"METRICS_PORT": free_port(), "ALLOW_ANONYMOUS": "true"}
    service = Gunicorn("api.asgi:app", tmp_path / "log", settings, before=limited)
    try:
        wait_until(lambda: is_live(service), timeout=60)
        yield service
    finally:
        service.client.close()
        service.process.terminate()
        service.process.wait(30)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_live(service: Gunicorn) -> bool:
    with suppress(httpx.HTTPError, IndexError):
        return service.get("/health/live").is_success
    return False


def connected(gunicorn: Gunicorn, sent: bytes = b"") -> socket.socket:
    url = urlsplit(gunicorn.url())
    connection = socket.create_connection((url.hostname, url.port), timeout=10)
    connection.sendall(sent)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """Returns what arrives until the worker closes the connection."""
    came = b""
    while piece := connection.recv(65536):
        came += piece
    return came


def status_of_next(connection: socket.socket) -> int:
    """Reads one response from a connection that stays open."""
    with HTTPResponse(connection) as response:
        response.begin()
        response.read()
        return response.status


def closed(gunicorn: Gunicorn, reason: str) -> float:
    return gunicorn.metric(f'ragherd_connections_closed_total{{reason="{reason}"}}')


def answering(gunicorn: Gunicorn) -> float:
    with suppress(IndexError):
        return gunicorn.metric('ragherd_connections{state="answering"}')
    return 0.0


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_client_that_sends_nothing_is_closed_without_a_word(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port(), **{**LATER, "HEADER_TIMEOUT": "0.5"})
    began = time.monotonic()
    assert all_of(connected(gunicorn)) == b""
    assert time.monotonic() - began > 0.5
    assert all_of(connected(gunicorn, b"\r\n")) == b"", "a line end before a request is nothing (RFC 9112, section 2.2)"
    assert closed(gunicorn, "silent") == 2


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first request", "second request"])
def test_a_head_that_does_not_end_gets_408_though_lines_keep_coming(start: Start, before: bytes) -> None:
    gunicorn = start(METRICS_PORT=free_port(), **{**LATER, "HEADER_TIMEOUT": "0.5"})
    connection = connected(gunicorn, before + b"GET /pid HTTP/1.1\r\nHost: x\r\n")
    stop = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not stop.wait(0.1):
                connection.sendall(b"X-A: a\r\n")

    dripping = threading.Thread(target=drip)
    dripping.start()
    came = b""
    with suppress(ConnectionResetError):  # by a line that arrives after the end
        while piece := connection.recv(65536):
            came += piece
    stop.set()
    dripping.join()
    assert came.count(b"200 OK") == (1 if before else 0)
    head, _, body = came[came.index(b"HTTP/1.1 408") :].partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["detail"] == "The request head was not complete within 0.5 s."
    assert closed(gunicorn, "head") == 1


@pytest.mark.parametrize("after", [b"", b"\r\n"], ids=["nothing", "a line end"])
def test_a_connection_between_requests_is_kept_for_so_long_and_no_longer(start: Start, after: bytes) -> None:
    gunicorn = start(METRICS_PORT=free_port(), **{**LATER, "KEEPALIVE_TIMEOUT": "0.5"})
    with connected(gunicorn, REQUEST) as connection:
        assert status_of_next(connection) == 200
        connection.sendall(REQUEST)
        assert status_of_next(connection) == 200
        connection.sendall(after)
        assert all_of(connection) == b""
    assert closed(gunicorn, "idle") == 1


def test_a_body_that_nobody_reads_does_not_keep_a_connection(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port(), **{**LATER, "BODY_TIMEOUT": "0.5"})
    with connected(gunicorn, b"POST /pid HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf") as connection:
        assert all_of(connection).startswith(b"HTTP/1.1 200")
    assert closed(gunicorn, "rest") == 1


def test_an_answer_may_take_longer_than_every_deadline(start: Start) -> None:
    gunicorn = start(**SOON)
    streamed = gunicorn.get("/stream?3", timeout=20)
    assert streamed.text.endswith("end")
    assert streamed.elapsed.total_seconds() > 4 * float(SOON["KEEPALIVE_TIMEOUT"])


def test_a_slow_reader_has_all_of_its_answer(start: Start) -> None:
    gunicorn = start(**SOON)
    with connected(gunicorn, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        began, came = time.monotonic(), 0
        idle = threading.Event()
        while came < LARGE and (piece := connection.recv(1 << 18)):
            came += len(piece)
            idle.wait(0.03)  # how slowly this reader takes what there is
    assert came >= LARGE
    assert time.monotonic() - began > 2 * float(SOON["KEEPALIVE_TIMEOUT"])


# -- the metrics port --------------------------------------------------------------------------------------------------


def test_silent_clients_do_not_keep_a_scrape_out(start: Start) -> None:
    port = free_port()
    gunicorn = start(METRICS_PORT=port)
    with ExitStack() as stack:
        for sent in (b"", b"GET /metrics HTTP/1.1\r\nX-A: ") * 100:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(port)), timeout=10))
            connection.sendall(sent)
        for _ in range(10):
            assert "ragherd_connections" in gunicorn.metrics()
        process = gunicorn.metrics_process()
        assert process
        assert len(list((Path("/proc") / str(process) / "fd").iterdir())) < MAX_CONNECTIONS + 20
    assert not [line for line in gunicorn.lines() if "Traceback" in line]


def test_a_scrape_that_drips_is_broken_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = InheritedSocketServer(socket.create_server(("127.0.0.1", 0)), application(str(tmp_path)), timeout=0.5)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    try:
        with socket.create_connection(server.server_address, timeout=0.05) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")
            wait_until(lambda: not is_open_after(connection, b"X-A: a\r\n"), interval=0.05)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert capfd.readouterr().err == ""


def is_open_after(connection: socket.socket, sent: bytes) -> bool:
    """Returns whether the server keeps a silent connection open."""
    try:
        connection.sendall(sent)
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


# -- the bound ---------------------------------------------------------------------------------------------------------


def test_requests_that_are_answered_are_never_closed_for_others(start: Start) -> None:
    gunicorn = start(METRICS_PORT=free_port(), MAX_CONNECTIONS="3", TEST_SLOW="3", **LATER)
    slow = b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        busy = [stack.enter_context(connected(gunicorn, slow)) for _ in range(3)]
        wait_until(lambda: answering(gunicorn) == 3)
        refused = all_of(connected(gunicorn)).decode()
        assert refused.startswith("HTTP/1.1 503 Service Unavailable")
        assert "retry-after: 1\r\n" in refused
        assert [all_of(connection)[:15] for connection in busy] == [b"HTTP/1.1 200 OK"] * 3
    assert gunicorn.get("/pid").is_success
    assert closed(gunicorn, "refused") >= 1
    assert closed(gunicorn, "full") == 0


def test_a_bound_above_the_descriptors_stops_the_start(start: Start) -> None:
    gunicorn = start(ready=False, MAX_CONNECTIONS="1000000000")
    assert gunicorn.process.wait(10) == 2
    assert gunicorn.lines()[-1].startswith("MAX_CONNECTIONS: ")


def test_the_soft_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    before = ("sh", "-c", 'ulimit -S -n 300; ulimit -H -n 900; exec "$@"', "sh")
    gunicorn = Gunicorn("tests.integration.gunicorn_app.asgi:app", tmp_path / "log", {}, before=before)
    try:
        wait_until(gunicorn.is_ready, timeout=30)
        for process in (gunicorn.pid, *gunicorn.workers()):
            limits = (Path("/proc") / str(process) / "limits").read_text()
            assert re.search(r"Max open files +900 +900 ", limits)
    finally:
        gunicorn.client.close()
        gunicorn.process.terminate()
        gunicorn.process.wait(10)


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < SILENT + 500, reason="needs as many descriptors as clients"
)
@pytest.mark.parametrize("sent", [b"", UNFINISHED, HALF], ids=["silent", "in the middle of a head", "of a body"])
@pytest.mark.parametrize("busy", [False, True], ids=["one after the other", "all at once, on a full queue"])
def test_thousands_of_silent_clients_lock_nobody_out(few_descriptors: Gunicorn, sent: bytes, busy: bool) -> None:
    service = few_descriptors
    [worker] = service.workers()
    with ExitStack() as stack:
        if busy:
            os.kill(worker, signal.SIGSTOP)
        url = urlsplit(service.url())
        for _ in range(SILENT):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(0 if busy else 10)
            with suppress(BlockingIOError):
                connection.connect((url.hostname, url.port))
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                connection.sendall(sent)
        if busy:
            os.kill(worker, signal.SIGCONT)
        assert [service.get("/health/live", timeout=5).status_code for _ in range(10)] == [200] * 10
        assert service.workers() == {worker}
        wait_until(lambda: closed(service, "full") >= SILENT - int(DESCRIPTORS))
    said = [line for line in service.lines() if "MAX_CONNECTIONS" in line]
    assert 1 <= len(said) <= 3
    assert not [line for line in service.lines() if "Traceback" in line]
