"""Runs gunicorn with worker_config/gunicorn_conf.py for tests: its output, children and ports."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import httpx

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "gunicorn", "-c"]
FILE = str(ROOT / "worker_config" / "gunicorn_conf.py")
MODULE = "python:worker_config.gunicorn_conf"
"""The two names of the configuration: in a checkout and in the container image."""


class Gunicorn:
    """A running master. Its output is a file that the tests read."""

    def __init__(
        self,
        app: str,
        log: Path,
        settings: dict[str, str],
        folder: Path = ROOT,
        before: Sequence[str] = (),
        configuration: str = FILE,
    ) -> None:
        """`before` is a command prefix, for another program that starts gunicorn."""
        self._log = log
        self._url = ""
        self._metrics_port = settings.get("METRICS_PORT", "0")
        self._count = settings.get("WORKERS") or "1"
        one_request_each = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(trust_env=False, verify=False, timeout=5.0, limits=one_request_each)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        own = {
            "PORT": "0",
            "WORKERS": "1",
            "METRICS_PORT": "0",
            "SEMANTIC_CACHE_SHADOW_RATE": "0",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(log.parent),  # a master that is killed leaves its folder of metrics
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*before, *COMMAND, configuration, app],
                cwd=folder,
                env={**inherited, **own, **settings},
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def metrics_port(self) -> str:
        return self._metrics_port

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def url(self) -> str:
        """Where it listens, from its first lines. Raises `IndexError` if it does not listen yet."""
        if not self._url:
            self._url = str(re.findall(r"Listening at: (\S+) ", "\n".join(self.lines()))[0])
        return self._url

    def get(self, path: str, timeout: float = 5.0) -> httpx.Response:
        return self.client.get(f"{self.url()}{path}", timeout=timeout)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.lines()
        return _is_success(lambda: self.get("/health/ready"))

    def is_complete(self) -> bool:
        """Returns whether a worker is ready and the master has started all of them."""
        return self.is_ready() and len(self.workers()) >= int(self._count)

    def metrics(self) -> str:
        return self.client.get(f"http://127.0.0.1:{self._metrics_port}/metrics").raise_for_status().text

    def metric(self, series: str) -> float:
        """Returns the value of one series from the metrics process."""
        return float(re.findall(rf"^{re.escape(series)} (\S+)$", self.metrics(), re.MULTILINE)[0])

    def misses(self) -> float:
        return self.metric('ragherd_cache_lookups_total{result="miss"}')

    def replaced(self, reason: str) -> float:
        return self.metric(f'ragherd_workers_replaced_total{{reason="{reason}"}}')

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


def all_are_gone(pids: Iterable[int]) -> bool:
    return all(is_gone(pid) for pid in pids)


def free_port() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def children(parent: int) -> dict[int, str]:
    """Returns the living children of a process with their command lines."""
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


@contextmanager
def gunicorns(app: str, folder: Path) -> Iterator[Callable[..., Gunicorn]]:
    """Yields a function that starts gunicorn with settings. Ends all of them afterwards."""
    started: list[Gunicorn] = []

    def begin(
        *, ready: bool = True, working_directory: Path = ROOT, configuration: str = FILE, **settings: str
    ) -> Gunicorn:
        log = folder / f"{len(started)}.log"
        gunicorn = Gunicorn(app, log, settings, working_directory, configuration=configuration)
        started.append(gunicorn)
        if ready:
            wait_until(gunicorn.is_complete, timeout=30)
        return gunicorn

    try:
        yield begin
    finally:
        for gunicorn in started:
            descendants = children(gunicorn.pid)
            gunicorn.client.close()
            gunicorn.process.kill()
            gunicorn.process.wait(5)
            wait_until(partial(all_are_gone, descendants))
