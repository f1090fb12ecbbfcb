"""What a long-running command prints, one line an event, and how a signal ends it."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import typer

from ragherd.service_client import clean

T = TypeVar("T")
MAX_FAILURES: Final = 1000
"""Failures that are kept for a report. A command may run for months."""
STOPS: Final = (signal.SIGINT, signal.SIGTERM)


class Journal:
    """Prints events as lines of text or JSON, and counts them."""

    def __init__(self, *, as_json: bool, write: Callable[[str], None] = typer.echo, quiet: bool = False) -> None:
        """`quiet`: count only."""
        self._as_json = as_json
        self._write = write
        self._quiet = quiet
        self.counts: Counter[str] = Counter()
        self.chunks = 0
        self.failures: list[str] = []

    def tell(self, event: str, source: str | None = None, why: str = "", **figures: int) -> None:
        """Prints one event, such as `created` with the `source` of the document."""
        self.counts[event] += 1
        self.chunks += figures.get("chunks", 0)
        if event in {"failed", "held"} and len(self.failures) < MAX_FAILURES:
            self.failures.append(": ".join(filter(None, (source, why))))
        if not self._quiet:
            line = _json if self._as_json else _text
            self._write(line(event, source, why, figures))

    def count(self, event: str, number: int = 1) -> None:
        """Counts an event without printing it."""
        self.counts[event] += number

    def begin(self) -> None:
        """Starts to count from zero."""
        self.counts, self.chunks, self.failures = Counter(), 0, []


def _json(event: str, source: str | None, why: str, figures: dict[str, int]) -> str:
    given = {"source": source, "detail": why or None}
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    facts = {name: value for name, value in given.items() if value is not None}
    return json.dumps({"time": time, "event": event, **facts, **figures})


def _text(event: str, source: str | None, why: str, figures: dict[str, int]) -> str:
    told = f"{datetime.now().astimezone():%H:%M:%S} {event}"
    if source is not None:
        told += f" {source}"
    if why:
        told += f": {why}"
    if figures:
        told += f" ({', '.join(f'{value:,} {name}' for name, value in figures.items())})"
    return " ".join(clean(told).split())


async def until_stopped(work: Coroutine[Any, Any, T]) -> T | None:
    """Returns the result of `work`, or None after SIGINT or SIGTERM, which cancel it.

    Only the main thread may handle signals.
    """
    loop, running = asyncio.get_running_loop(), asyncio.ensure_future(work)
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        running.cancel()

    numbers = STOPS if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, stop)
    try:
        return await running
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        return None
    finally:
        for number in numbers:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
