"""One worker of a fleet in a separate process that has only the circuit breaker.

It reads commands as JSON lines and answers each with one. `BreakerProcess` starts and controls it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pybreaker
import structlog

from api.breaker.fleet_breaker import FleetBreaker, kept_current
from api.breaker.state import BreakerListener, BreakerPolicy, Override, Transition
from api.errors import BreakerOpen
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.breaker import RedisBreakerStore

Reply = dict[str, Any]


class Heard(BreakerListener):
    """Records when each transition was noticed, in milliseconds of this machine's clock, which is also Redis's."""

    def __init__(self) -> None:
        self.transitions: list[Reply] = []

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        self.transitions.append(
            {
                "from": transition.from_state,
                "to": transition.to_state,
                "epoch": transition.epoch,
                "at_ms": transition.at_ms,
                "heard_ms": time.time() * 1000,
            }
        )


class Worker:
    """Executes commands."""

    def __init__(self, breaker: FleetBreaker, heard: Heard, backend: tuple[str, int]) -> None:
        self.breaker = breaker
        self.heard = heard
        self.backend = backend
        self.held: list[asyncio.Task[str]] = []

    async def call(self) -> str:
        """Makes a call of the backend. Returns `ok`, `failed` or `rejected`."""
        try:
            async with self.breaker.attempt() as attempt:
                started = time.monotonic()
                if await self._ask_backend():
                    await attempt.succeeded(time.monotonic() - started)
                    return "ok"
                await attempt.failed(time.monotonic() - started)
                return "failed"
        except BreakerOpen:
            return "rejected"

    async def _ask_backend(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection(*self.backend)
        except OSError:
            return False
        try:
            writer.write(b"call\n")
            return await reader.readline() == b"ok\n"
        except OSError:
            return False
        finally:
            writer.close()

    async def calls(self, times: int, concurrency: int, pause: float = 0.0) -> Reply:
        """Makes calls, some in parallel. Returns their outcomes and the slowest in milliseconds."""
        ends: dict[str, int] = {"ok": 0, "failed": 0, "rejected": 0}
        slowest = 0.0
        left = times

        async def some() -> None:
            nonlocal left, slowest
            while left > 0:
                left -= 1
                started = time.monotonic()
                ends[await self.call()] += 1
                slowest = max(slowest, time.monotonic() - started)
                await asyncio.sleep(pause)

        await asyncio.gather(*(some() for _ in range(concurrency)))
        return {**ends, "slowest_ms": slowest * 1000}

    async def hold(self) -> Reply:
        """Starts a call without waiting for it."""
        self.held.append(asyncio.create_task(self.call()))
        return {}

    async def cancel_held(self) -> Reply:
        """Cancels the calls that were started."""
        for task in self.held:
            task.cancel()
        await asyncio.gather(*self.held, return_exceptions=True)
        self.held.clear()
        return {}

    async def release_held(self) -> Reply:
        """Waits for the calls that were started."""
        ends = await asyncio.gather(*self.held)
        self.held.clear()
        return {"ends": ends}

    async def override(self, action: Override) -> Reply:
        """Makes an operator's override from this worker."""
        await self.breaker.override(action, "operator")
        return {}

    async def jump(self, seconds: float) -> Reply:
        """Makes this worker's wall clock jump."""
        true_time = time.time
        time.time = lambda: true_time() + seconds
        return {}

    async def state(self) -> Reply:
        """Returns what this worker knows locally, and the transitions it noticed."""
        position = self.breaker.view.position
        return {
            "state": position.state,
            "epoch": position.epoch,
            "forced": position.forced,
            "store": self.breaker.store_name,
            "pybreaker": self.breaker.current_state,
            "heard": self.heard.transitions,
        }


async def main(url: str, policy: dict[str, Any], backend: tuple[str, int]) -> None:
    worker_id = f"w{os.getpid()}"
    address = RedisAddress(url, timeout=0.2, connect_timeout=0.2, max_connections=16)
    chosen = BreakerPolicy(**policy)
    heard = Heard()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(short_commands(address))
        gate = HealthGatedRedis(client, 16)
        await gate.check()
        watching = asyncio.create_task(gate.watch())
        stack.callback(watching.cancel)
        store = RedisBreakerStore(gate, partial(blocking_reader, address), Keys(), "ollama", chosen, worker_id)
        breaker = FleetBreaker("ollama", chosen, store, worker_id, listeners=(heard,))
        await stack.enter_async_context(kept_current(breaker))
        gate.after_recovery(breaker.refresh)
        await obey(Worker(breaker, heard, backend))


async def obey(worker: Any) -> None:
    """Executes commands from standard input until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"ready": True}), flush=True)
    while line := await reader.readline():
        command = json.loads(line)
        reply = await getattr(worker, command.pop("do"))(**command)
        print(json.dumps(reply), flush=True)


class BreakerProcess:
    """Starts such a process and sends it commands."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, url: str, policy: dict[str, Any], backend: tuple[str, int], module: str = "tests.support.breaker_process"
    ) -> BreakerProcess:
        arguments = json.dumps({"url": url, "policy": policy, "backend": backend})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        self = cls(process)
        await self._reply()
        return self

    async def ask(self, do: str, **arguments: Any) -> Reply:
        """Sends a command and waits for the response."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return await self._reply()

    async def _reply(self) -> Reply:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        assert line, "the worker's process ended"
        reply: Reply = json.loads(line)
        return reply

    async def kill(self) -> None:
        """Sends SIGKILL, so the worker cannot clean up."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """Closes standard input, which ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), 10)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the replies are on standard output
    given = json.loads(sys.argv[1])
    asyncio.run(main(given["url"], given["policy"], tuple(given["backend"])))
