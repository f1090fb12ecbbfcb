"""Starts what a run needs, each server as a process of its own: Redis, the model's stand-in, one worker, the rivals.

`measured` sends a load to one of them, and returns how much CPU time the server, Redis and the load itself took for
each request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from scripts.benchmarks.load import ROOT, Load, LoadFailed, loaded
from scripts.benchmarks.rival_apps import SITE
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import all_are_gone, children, free_port, gunicorns
from tests.support.waiting import wait_until

RIVALS: Final = ROOT / ".venv-rivals"
KEY: Final = "sk-benchmark-0123456789abcdef0123456789abcdef"
"""LiteLLM's proxy does not start without a key."""
STARTING_SECONDS: Final = 120.0
WIDE: Final = {"CONNECTION_POOL_MAX_SIZE": "64", "BULKHEAD_MAX_CONCURRENT": "64"}
"""As wide as the widest load, so that nothing waits for a permit."""


def cpu_seconds(pids: Sequence[int]) -> float:
    """Returns the CPU time of the processes so far, to the microsecond."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # Linux's clock of another process


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers requests: its address, the processes whose CPU time is its own, and what it writes."""

    url: str
    pids: tuple[int, ...]
    log: Path


class Place:
    """The running servers. Rivals start when they are first needed, and all end with the context."""

    def __init__(self, stack: ExitStack, folder: Path, redis: EmbeddedRedis, stub: StubProcess) -> None:
        self.redis = redis
        self.stub = stub
        self._stack = stack
        self._folder = folder

    def service(self, **settings: str) -> Server:
        """Starts Ragherd with one worker until the context ends, and returns when it is ready."""
        return self._stack.enter_context(self.another_service(**settings))

    @contextmanager
    def another_service(self, **settings: str) -> Iterator[Server]:
        """Runs Ragherd with one worker and other settings."""
        settings = {"EMBEDDER": "onnx", "REDIS_URL": self.redis.url, "OLLAMA_BASE_URL": self.stub.base_url} | settings
        with tempfile.TemporaryDirectory(dir=self._folder) as folder, gunicorns("api.asgi:app", Path(folder)) as begin:
            service = begin(**WIDE, **settings)
            yield Server(service.url(), tuple(service.workers()), Path(folder, "0.log"))

    def endpoint(self, factory: str) -> Server:
        """Starts one of `rival_apps` under uvicorn, with the event loop and the parser that Ragherd has."""
        port, site = free_port(), next(RIVALS.glob("lib/python*/site-packages"), RIVALS)
        command = [sys.executable, "-m", "uvicorn", "--factory", f"scripts.benchmarks.rival_apps:{factory}"]
        command += ["--port", port, "--no-access-log", "--loop", "uvloop", "--http", "httptools"]
        environment = {"REDIS_URL": self.redis.url, "PYTHONPATH": str(ROOT), SITE: str(site), "PIP_NO_INDEX": "1"}
        return self._started(factory, command, environment, f"http://127.0.0.1:{port}", "/docs")

    def litellm(self) -> Server:
        """Starts LiteLLM's proxy with one worker and the same Redis."""
        port, file = free_port(), self._folder / "litellm.json"
        file.write_text(json.dumps(self._litellm_settings()))
        command = [str(RIVALS / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", port]
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
        url = f"http://127.0.0.1:{port}"
        return self._started("litellm", [*command, "--num_workers", "1"], environment, url, "/health/liveliness")

    def _litellm_settings(self) -> dict[str, Any]:
        model = {"model": "ollama_chat/llama3.2", "api_base": self.stub.base_url}
        cache = {"type": "redis", "host": "127.0.0.1", "port": self.redis.port}
        return {
            "model_list": [{"model_name": "llama3.2", "litellm_params": model}],
            "litellm_settings": {"cache": True, "cache_params": cache, "telemetry": False},
            "general_settings": {"master_key": KEY},
        }

    def _started(self, name: str, command: Sequence[str], settings: dict[str, str], url: str, path: str) -> Server:
        inherited = {one: os.environ[one] for one in ("PATH", "LANG") if one in os.environ}
        folders = {"HOME": str(self._folder), "TMPDIR": str(self._folder)}
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, cwd=self._folder, env={**inherited, **folders, **settings}, stdout=log, stderr=log
        )
        self._stack.callback(_end, process)

        def is_ready() -> bool:
            assert process.poll() is None, (self._folder / f"{name}.log").read_text()[-2000:]
            with suppress(httpx.HTTPError):
                return httpx.get(url + path, trust_env=False).is_success
            return False

        wait_until(is_ready, timeout=STARTING_SECONDS)
        return Server(url, (process.pid, *children(process.pid)), self._folder / f"{name}.log")

    def measured(self, server: Server, load: Load) -> dict[str, float]:
        """Sends the load. Returns its figures, and the CPU microseconds of a request. Raises `LoadFailed`."""
        worked, stored = cpu_seconds(server.pids), cpu_seconds([self.redis.pid])
        try:
            found = loaded(load)
        except LoadFailed as failed:
            raise LoadFailed(f"{failed}\n{server.log.read_text(errors='replace')[-4000:]}") from None
        spent = {"worker_us": cpu_seconds(server.pids) - worked, "redis_us": cpu_seconds([self.redis.pid]) - stored}
        return found | {name: seconds * 1e6 / found["requests"] for name, seconds in spent.items()}


def _end(process: subprocess.Popen[bytes]) -> None:
    descendants = children(process.pid)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    wait_until(lambda: all_are_gone(descendants))


@contextmanager
def opened(folder: Path) -> Iterator[Place]:
    """Starts Redis and the stand-in. Ends everything afterwards."""
    with ExitStack() as stack:
        redis = stack.enter_context(embedded_redis(persistent=False))
        stub = stack.enter_context(stub_process())
        yield Place(stack, folder, redis, stub)
