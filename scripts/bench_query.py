"""Compares exact and semantic hits with an empty FastAPI endpoint: requests per second and latency, in one run.

    .venv/bin/python -m scripts.bench_query

One worker each, 32 connections, EMBEDDER=onnx. Needs `wrk` (Debian: apt install wrk) and the extras `embedded` and
`dev`. The rounds alternate, so that load on the machine affects all of them. Compare the ratios.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx

from api.embedded.redis_server import embedded_redis
from tests.stub_ollama import stub_process
from tests.support.gunicorn_process import gunicorns
from tests.support.waiting import wait_until

ROUNDS = 3
SECONDS = 5
QUESTION = "What is the capital of France?"
PARAPHRASES = [f"Which city is the capital of France{mark}" for mark in ("?", " please?", ", then?")]
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"question": "%s"}'
"""


def main() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed (Debian: apt install wrk)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(embedded_redis(persistent=False))
        stub = stack.enter_context(stub_process())
        settings = {"REDIS_URL": redis.url, "OLLAMA_BASE_URL": stub.base_url, "EMBEDDER": "onnx", "WORKERS": "1"}
        ours = stack.enter_context(gunicorns("api.asgi:app", folder))(**settings).url()
        bare = start_bare(stack)
        httpx.post(f"{ours}/query", json={"question": QUESTION}, timeout=60).raise_for_status()
        kinds = [httpx.post(f"{ours}/query", json={"question": q}).json()["cache"]["kind"] for q in PARAPHRASES[:1]]
        assert kinds == ["semantic"], kinds
        cases = {
            "bare FastAPI": (bare, QUESTION),
            "exact hit": (ours, QUESTION),
            "semantic hit": (ours, PARAPHRASES[0]),
        }
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (url, question) in cases.items():
                results[name].append(wrk(url, question, folder))
    show(results)


def start_bare(stack: ExitStack) -> str:
    """Starts the bare endpoint on uvicorn with the same event loop and parser, without logs."""
    command = [sys.executable, "-m", "uvicorn", "scripts.bare_app:app", "--port", "8009", "--no-access-log"]
    process = stack.enter_context(subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL))
    stack.callback(process.kill)
    wait_until(lambda: _answers("http://127.0.0.1:8009/docs"))
    return "http://127.0.0.1:8009"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def wrk(url: str, question: str, folder: Path) -> tuple[float, float, float]:
    """Runs wrk. Returns requests per second, and the 50th and 99th percentile of latency in milliseconds."""
    script = folder / "query.lua"
    script.write_text(SCRIPT % question)
    command = ["wrk", "-t1", "-c32", f"-d{SECONDS}s", "--latency", "-s", str(script), f"{url}/query"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output, output
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    return float(rate[1]), latency(output, "50%"), latency(output, "99%")


def latency(output: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", output)
    assert found, output
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000}[found[2]]


def show(results: dict[str, list[tuple[float, float, float]]]) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in results.items()
    }
    base = medians["bare FastAPI"][0]
    print(f"1 worker, 32 connections, median of {ROUNDS} rounds of {SECONDS} s")
    print(f"{'':16}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'of bare':>9}")
    for name, (rate, p50, p99) in medians.items():
        print(f"{name:16}{rate:12.0f}{p50:9.1f}{p99:9.1f}{rate / base:9.0%}")


if __name__ == "__main__":
    main()
