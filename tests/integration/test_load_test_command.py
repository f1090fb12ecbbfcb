"""`ragherd load-test` against the real service."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.stub_ollama import StubOllama, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.service import Service, ask
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

CONTRACT = {"requests", "failed", "seconds", "latency_ms", "by_status", "hit_rate"}
FEW = ("--requests", "60", "--topics", "10", "--concurrency", "4")


@pytest.fixture
def serve(serve: Service) -> Service:
    """The service in this process logs errors only, because its log would be part of what the command prints."""
    return partial(serve, server={"log_level": "error"})


def run_here(*arguments: str, key: str | None = None) -> Result:
    return CliRunner().invoke(commands, ["load-test", *arguments], env={"RAGHERD_API_KEY": key, "COLUMNS": "200"})


async def run(client: httpx.AsyncClient, *arguments: str, key: str | None = None) -> Result:
    """Runs the command in a thread, because the service runs in the test's event loop."""
    return await asyncio.to_thread(partial(run_here, *arguments, "--url", str(client.base_url), key=key))


async def document(client: httpx.AsyncClient, *arguments: str, code: int = 0) -> Any:
    """Returns what the command prints with --json: one document, and nothing else."""
    result = await run(client, *arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


async def test_the_figures_agree_with_the_service_and_with_each_other(serve: Service) -> None:
    client = await serve()
    found = await document(client, *FEW, "--paraphrases", "0")
    assert set(found) >= CONTRACT
    assert (found["requests"], found["failed"], found["by_http_status"]) == (60, 0, {"200": 60})
    latency = found["latency_ms"]
    assert set(latency) == {"avg", "min", "max", "p50", "p95", "p99"}
    assert 0 < latency["min"] <= latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert latency["min"] < latency["avg"] < latency["max"] < 1000 * found["seconds"]
    assert sum(found["by_status"].values()) == sum(found["requests_by_status"].values()) == 60
    served = (await client.get("/api/semantic-cache/metrics")).json()
    counted = {name: found["by_status"].get(name, 0) for name in ("hit", "miss", "coalesced")}
    assert counted == {"hit": served["hits"], "miss": served["misses"], "coalesced": served["coalesced"]}
    assert found["hit_rate"] == served["hit_rate"] > 0.5
    assert counted["miss"] <= 10


async def test_a_run_has_a_cache_scope_for_itself_unless_it_shares_the_users(serve: Service, tmp_path: Path) -> None:
    client = await serve()
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "What is a lease?"}\n{"question": "What is a lock?"}\n')
    for question in ("What is a lease?", "What is a lock?"):
        await ask(client, question)
    log = ("--questions", str(file), "--concurrency", "1", "--requests", "6")
    for _ in range(2):
        assert (await document(client, *log))["by_status"] == {"miss": 2, "hit": 4}
    assert (await document(client, *log, "--shared-cache"))["by_status"] == {"hit": 6}
    assert (await client.get("/api/semantic-cache/metrics")).json()["misses"] == 2 + 2 * 2


async def test_an_open_loop_keeps_to_its_rate(serve: Service) -> None:
    client = await serve()
    found = await document(client, "--rate", "40", "--seconds", "1.5", "--topics", "3")
    assert found["failed"] == 0
    assert 30 <= found["requests"] <= 95
    assert found["plan"]["rate"] == 40
    assert found["latency_ms"]["max"] < 10_000


async def test_a_stalled_model_shows_in_the_percentiles(serve: Service, stub: StubOllama) -> None:
    """A single connection waits for one slow answer. The requests that were due in the meantime count the wait."""
    client = await serve()
    stub.behaviour(delay=1.0, times=1, path="/api/chat")
    arguments = ("--rate", "50", "--seconds", "1.5", "--concurrency", "1", "--topics", "1", "--top-k", "0")
    found = await document(client, *arguments)
    assert found["latency_ms"]["max"] > 1000
    assert found["latency_ms"]["p50"] > 200
    assert found["latency_ms_by_status"]["miss"]["max"] > 1000


async def test_failures_are_counted_by_kind_and_are_a_bad_result(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("error_line")
    found = await document(client, "--requests", "8", "--topics", "8", "--concurrency", "1", code=1)
    assert (found["requests"], found["failed"], found["error_rate"]) == (8, 8, 1.0)
    assert sum(found["errors"].values()) == 8
    assert set(found["errors"]) <= {"HTTP 502", "HTTP 503"}
    assert all(found["error_examples"].values())
    assert found["latency_ms"]["p95"] is None
    assert [(one["name"], one["met"]) for one in found["criteria"]] == [("error_rate", False)]
    shown = await run(client, "--requests", "1")
    assert shown.exit_code == 1
    assert shown.stderr == "ragherd: error_rate is 1, the limit is 0.05\n"
    assert "1 x HTTP 50" in shown.stdout
    assert (await run(client, "--requests", "1", "--max-error-rate", "1")).exit_code == 0


async def test_a_limit_on_latency_is_a_criterion(serve: Service) -> None:
    client = await serve()
    assert (await document(client, *FEW, "--max-p95", "60000"))["criteria"][1]["met"]
    result = await run(client, *FEW, "--max-p95", "0.001")
    assert result.exit_code == 1
    assert "p95_ms is " in result.stderr
    assert "60 requests in" in result.stdout


async def test_a_load_can_wait_behind_interactive_questions(serve: Service) -> None:
    client = await serve(access={"api_keys": "jobs=key-of-the-jobs", "batch_keys": "key-of-the-jobs"})
    load = ("--requests", "2", "--top-k", "0", "--priority")
    assert (await run(client, *load, "batch", key="key-of-the-jobs")).exit_code == 0
    refused = await run(client, *load, "interactive", key="key-of-the-jobs")
    assert refused.exit_code == 1
    assert "The key is limited to batch priority." in refused.output


async def test_a_request_that_takes_too_long_is_a_timeout(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(delay=30.0, path="/api/chat")
    found = await document(client, "--requests", "2", "--timeout", "0.3", "--top-k", "0", code=1)
    assert found["errors"] == {"timeout": 2}
    assert 300 <= found["latency_ms"]["min"] < 10_000


async def test_an_unknown_key_ends_the_test_at_once(serve: Service) -> None:
    client = await serve(access={"api_keys": "acme=acme-key-for-tests", "admin_keys": "admin-key-for-tests"})
    for key, hint in ((None, "Set RAGHERD_API_KEY."), ("wrong-key", "RAGHERD_API_KEY has an unknown key.")):
        result = await run(client, "--seconds", "60", key=key)
        assert (result.exit_code, result.stdout) == (1, "")
        assert hint in result.stderr
    assert (await run(client, *FEW, key="acme-key-for-tests")).exit_code == 0


async def test_the_report_is_written_into_a_new_folder(serve: Service, tmp_path: Path) -> None:
    client = await serve()
    out = tmp_path / "new" / "folder"
    result = await run(client, *FEW, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert {one.name for one in out.iterdir()} == {"load-test.json", "load-test.png", "load-test.html"}
    found = json.loads((out / "load-test.json").read_text())
    assert set(found) >= CONTRACT
    page = (out / "load-test.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "60 requests in" in page
    assert f"Wrote {out}/load-test.json" in result.stdout


# -- Wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "5", "--think", "1"), "--think needs users"),
        (("--spike-seconds", "30"), "--spike-seconds must be less than --spike-every"),
        (("--questions", "nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("--requests", "0"), "--requests"),
        (("--questions", "PAIRS"), "needs a column question, not pairs"),
        (("--questions", "LOG", "--paraphrases", "0.5"), "needs --zipf and a column intent"),
        (("--questions", "LOG", "--paraphrases", "0.5", "--zipf", "1"), "needs --zipf and a column intent"),
        (("--out", "LOG"), "File exists"),
    ],
)
def test_wrong_use_exits_with_2_before_anything_is_sent(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    files = {"PAIRS": "a,b,same\nx,y,1\n", "LOG": "question\nx\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    given = [str(tmp_path / f"{one}.csv") if one in files else one for one in arguments]
    result = run_here(*given, "--url", "http://127.0.0.1:1")
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_without_matplotlib_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run_here("--out", str(tmp_path / "out"), "--url", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "pip install 'ragherd[reports]'" in result.stderr


def test_a_service_that_goes_away_before_the_first_question_exits_with_3() -> None:
    """It answers the health check, and nothing after it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.socket.close()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "1.0", "database": true}')

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        result = run_here("--requests", "5", "--json", "--url", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert result.exit_code == 3, result.output
    assert "cannot be reached" in result.stderr
    assert json.loads(result.stdout)["errors"] == {"no connection": 5}


# -- Terminals and processes -------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(redis_server: Any, tmp_path: Path) -> Iterator[Gunicorn]:
    redis_server.start()
    with stub_process() as ollama, gunicorns("api.asgi:app", tmp_path) as begin:
        yield begin(REDIS_URL=redis_server.url, OLLAMA_BASE_URL=ollama.base_url, WORKERS="2", REDIS_TIMEOUT="1")


@pytest.mark.processes
def test_progress_is_shown_and_ctrl_c_prints_the_result_so_far(fleet: Gunicorn, tmp_path: Path) -> None:
    out = tmp_path / "report"
    terminal = Terminal("load-test", "--seconds", "600", "--think", "0.05", "--out", str(out), "--url", fleet.url())

    def has_answers() -> bool:
        terminal.shows("")
        return re.search(r"[1-9] requests \([\d.,]+/s\), 0 failed, .* p50/p95/p99", terminal.shown) is not None

    wait_until(has_answers, timeout=30)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown
    assert re.search(r"\d requests in", terminal.shown)
    assert terminal.shown.rstrip().endswith("ragherd: interrupted")
    found = json.loads((out / "load-test.json").read_text())
    assert found["interrupted"]
    assert found["failed"] == 0
    assert found["requests"] > 0
