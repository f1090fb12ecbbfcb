"""Measures what open live pages cost: python -m scripts.bench_live_page http://127.0.0.1:8001 [seconds]

Asks one cached question again and again, in turns with 0 and with 50 open pages, and counts what the pages receive.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import suppress

import httpx

PAGES = 50
ROUNDS = 3
QUESTION = {"question": "What does the circuit breaker do when Ollama fails?"}


class Received:
    """What all pages received."""

    def __init__(self) -> None:
        self.bytes = 0
        self.events = 0


async def follow(url: str, received: Received) -> None:
    """One open page."""
    async with httpx.AsyncClient(timeout=None) as client, client.stream("GET", f"{url}/dashboard/events") as stream:
        async for chunk in stream.aiter_bytes():
            received.bytes += len(chunk)
            received.events += chunk.count(b"event: figures")


async def hits(url: str, seconds: float) -> list[float]:
    """Milliseconds of each hit, one after another."""
    taken = []
    async with httpx.AsyncClient(timeout=30) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            (await client.post(f"{url}/query", json=QUESTION)).raise_for_status()
            taken.append((time.perf_counter() - began) * 1000)
    return taken


async def main(url: str, seconds: float) -> None:
    received, without, within = Received(), list[float](), list[float]()
    await hits(url, 1)
    for _ in range(ROUNDS):
        without += await hits(url, seconds)
        pages = [asyncio.create_task(follow(url, received)) for _ in range(PAGES)]
        await asyncio.sleep(3)  # each page's first event has every part
        received.bytes = received.events = 0
        within += await hits(url, seconds)
        per_page = received.bytes / PAGES / seconds * 60, received.events / PAGES / seconds * 60
        for page in pages:
            page.cancel()
            with suppress(asyncio.CancelledError):
                await page
    for name, taken in (("no page", without), (f"{PAGES} pages", within)):
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        print(f"{name:10} {len(taken):6} hits   p50 {p50:.2f} ms   p99 {p99:.2f} ms")
    print(f"a page receives {per_page[0] / 1024:.0f} KiB and {per_page[1]:.0f} events a minute, in one request")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/"), float(sys.argv[2]) if len(sys.argv) > 2 else 10.0))
