"""`scripts/benchmark --quick` measures everything once, and its load generator refuses wrong answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from scripts.benchmarks import __main__ as benchmark
from scripts.benchmarks.figures import TARGETS, figures_of
from scripts.benchmarks.load import Load, LoadFailed, loaded

BEYOND_QUICK = {"chat"}
"""LiteLLM's proxy has a separate environment."""


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.once(reason="it measures no differently on another version of Python")
def test_the_quick_benchmark_measures_every_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/benchmark", "--quick", "--out", str(tmp_path)])
    benchmark.main()
    found = json.loads((tmp_path / "performance.json").read_text())
    figures = figures_of(found)
    assert set(figures) == {target.key for target in TARGETS} - BEYOND_QUICK
    assert all(value > 0 for name, value in figures.items() if not name.startswith(("miss", "stream")))
    assert {"cpu", "cores", "python", "load_average"} <= set(found["machine"])
    assert (tmp_path / "performance.svg").read_text().count("<svg") == 1
    printed = capsys.readouterr().out
    assert all(target.name in printed for target in TARGETS)


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[str]:
    """Answers each request with the same bytes. Empty bytes close the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"Content-Length: 2" in await reader.readuntil(b"\r\n\r\n") and answer:
            await reader.readexactly(2)
            writer.write(answer)
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/query"
    finally:
        running.close()


def document(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


GOOD = document(b'{"kind":"exact","timings_ms":{"embed":1000}}')


async def test_each_body_is_sent_once_and_what_is_apart_is_taken_off() -> None:
    async with server(GOOD) as url:
        found = await asyncio.to_thread(loaded, Load(url, ["{}"] * 100, 3, expect="exact", apart="embed"))
    assert found["requests"] == 100
    assert found["p50_ms"] < 0  # the answer says that embedding took a second
    assert found["load_us"] > 0


async def test_an_open_load_sends_as_many_as_are_due() -> None:
    async with server(GOOD) as url:
        found = await asyncio.to_thread(loaded, Load(url, ["{}"], 4, seconds=0.5, rate=100.0))
    assert found["requests"] == 50


@pytest.mark.parametrize(
    ("answer", "said"),
    [(document(b"no"), "b'no'"), (document(b"busy", b"503 Busy"), "503"), (b"", "the connection was closed")],
)
async def test_a_wrong_answer_is_no_measurement(answer: bytes, said: str) -> None:
    async with server(answer) as url:
        with pytest.raises(LoadFailed, match=said):
            await asyncio.to_thread(loaded, Load(url, ["{}"] * 10, 2, expect="exact"))
