"""A worker in a separate process that reports how long its event loop was blocked, and where.

`python -m tests.support.loop_watch` serves the app of `api.asgi` with the settings of its environment, prints its URL,
and ends when its standard input closes. GET /watch returns the longest block since the previous call.

A block is measured in CPU time, so that a busy machine causes none: the time of one callback on the loop's thread, and,
for threads that hold the GIL, of the whole process while a tick of the loop was late.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

ROOT = Path(__file__).parents[2]
TICK = 0.005
SAMPLED_AFTER = 0.02


def seconds_without_cpu() -> float:
    """Returns how long the current thread has waited for a CPU, by Linux's count; 0 on other systems."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


class Watch:
    """Watches the event loop of the current thread."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._began = 0.0
        self.forget()
        self._watch_callbacks()
        threading.Thread(target=self._sample, daemon=True).start()

    def forget(self) -> None:
        self.callback = 0.0
        self.late = 0.0
        self._stacks: dict[float, str] = {}

    def report(self) -> dict[str, Any]:
        """`callback` and `late` are in seconds, with the innermost calls of the longest block."""
        worst = sorted(self._stacks.items(), reverse=True)[:3]
        return {"callback": self.callback, "late": self.late, "stacks": [stack for _, stack in worst]}

    async def tick(self) -> None:
        """Measures forever how late a tick is, as far as this process used the CPU meanwhile.

        Time in which this thread could run, but other processes had the CPUs, does not count.
        """
        while True:
            waited = seconds_without_cpu()  # read first: each of its system calls waits for the GIL
            wall, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(TICK)
            late = time.monotonic() - wall - TICK - (seconds_without_cpu() - waited)
            self.late = max(self.late, min(late, time.process_time() - cpu))

    def _watch_callbacks(self) -> None:
        run = asyncio.events.Handle._run

        def timed(handle: asyncio.events.Handle) -> None:
            self._began, cpu = time.monotonic(), time.thread_time()
            run(handle)
            self._began = 0.0
            self.callback = max(self.callback, time.thread_time() - cpu)

        setattr(asyncio.events.Handle, "_run", timed)  # noqa: B010 -- a private method, which mypy knows

    def _sample(self) -> None:
        while True:
            time.sleep(TICK)
            began = self._began
            if began and (held := time.monotonic() - began) > SAMPLED_AFTER:
                stack = traceback.extract_stack(sys._current_frames()[self._thread])
                self._stacks[held] = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in stack[:-7:-1])


class Watched:
    """The app plus GET /watch."""

    def __init__(self, app: ASGIApp, watch: Watch) -> None:
        self._app = app
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != "/watch":
            await self._app(scope, receive, send)
            return
        body = json.dumps(self._watch.report()).encode()
        self._watch.forget()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


async def _main() -> None:
    from api.asgi import app

    watch = Watch()
    server = uvicorn.Server(uvicorn.Config(Watched(app, watch), port=0, log_config=None, lifespan="on", ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    ticking = asyncio.create_task(watch.tick())
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving
    ticking.cancel()


@contextmanager
def watched_worker(settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    """Yields a client of a watched worker."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    command = [sys.executable, "-m", "tests.support.loop_watch"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**inherited, **settings},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = (line.strip() for line in process.stdout)
            url = next(line for line in lines if line.startswith("http"))
            threading.Thread(target=lambda: list(lines), daemon=True).start()  # so that its log never fills the pipe
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
        finally:
            process.stdin.close()
            process.wait(20)


if __name__ == "__main__":
    asyncio.run(_main())
