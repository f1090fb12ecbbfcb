"""The commands that speak to a running service, against the real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from api import __version__
from ragherd.ask import candidate_table
from ragherd.commands import COMMANDS, commands
from ragherd.service_client import opened
from tests.stub_ollama import StubOllama, running_stub, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.service import Service, ask
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until, wait_until_async

ROOT = Path(__file__).parents[2]
KEYS = {"access": {"api_keys": "acme=acme-key-for-tests", "admin_keys": "admin-key-for-tests"}}
MODELS = ["llama3.2:latest", "nomic-embed-text:latest"]
SPEAKING = {
    "ask": ("Who?",),
    "explain": ("Who?",),
    "warm": ("-",),
    "invalidate": ("--all", "--yes"),
    "breaker": ("history",),
    "eval": ("--retrieval",),
    "status": (),
    "monitor": (),
    "backends": (),
    "workers": (),
    "load-test": ("--requests", "2"),
    "report": (),
    "benchmark": ("save", "new.json", "--rounds", "10", "--round-seconds", "0.1"),
    "experiment": (),
    "audit": (),
}
"""Commands that need a service, with arguments."""


@pytest.fixture
def serve(serve: Service) -> Service:
    """The service in this process logs errors only, because its log would be part of what the commands print."""
    return partial(serve, server={"log_level": "error"})


def run_here(*arguments: str, key: str | None = None, given: str = "Who?\nWhere?\n", **environment: str) -> Result:
    variables = {"RAGHERD_API_KEY": key, "COLUMNS": "200", **environment}
    return CliRunner().invoke(commands, list(arguments), env=variables, input=given)


async def run(client: httpx.AsyncClient, name: str, *arguments: str, **more: Any) -> Result:
    """Runs a command in a thread, because the service runs in the test's event loop."""
    url = str(client.base_url)
    return await asyncio.to_thread(partial(run_here, name, *arguments, "--url", url, **more))


async def document(client: httpx.AsyncClient, name: str, *arguments: str, code: int = 0, **more: Any) -> Any:
    """Returns what a command prints with --json: one document, and nothing else."""
    result = await run(client, name, *arguments, "--json", **more)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


# -- Ask and explain ---------------------------------------------------------------------------------------------------


async def test_an_answer_goes_to_stdout_and_its_origin_to_stderr(serve: Service) -> None:
    client = await serve()
    first = await run(client, "ask", "What is a lease?")
    assert (first.exit_code, first.stdout) == (0, "echo: What is a lease?\n")
    assert first.stderr.startswith("cache miss; llama3.2, ")
    again = await run(client, "ask", "What is a lease?")
    assert again.stdout == first.stdout
    assert again.stderr.startswith("cache hit (exact, similarity 1.000)")


async def test_ask_takes_the_question_from_standard_input_and_prints_json(serve: Service) -> None:
    client = await serve()
    answer = await document(client, "ask", "-", "--tenant", "acme", "--top-k", "0", given="What is a lock?\n")
    assert (answer["answer"], answer["cache"]["status"]) == ("echo: What is a lock?", "miss")
    assert (await ask(client, "What is a lock?", tenant="acme", top_k=0))["cache"]["status"] == "hit"
    afresh = await document(client, "ask", "What is a lock?", "--tenant", "acme", "--top-k", "0", "--cache", "no-cache")
    assert afresh["cache"]["status"] == "bypass"


async def test_a_batch_question_shows_its_place_while_it_waits(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1})
    stub.behaviour(mode="hang", path="/api/chat")

    async def figures() -> dict[str, Any]:
        found: dict[str, Any] = (await client.get("/api/bulkhead/metrics")).json()
        return found

    async def is_held() -> bool:
        return bool((await figures())["in_use"])

    async def waits() -> bool:
        return bool((await figures())["waiting_by_priority"]["batch"])

    holding = asyncio.create_task(client.post("/query", json={"question": "Who has the permit?"}))
    await wait_until_async(is_held)
    command = asyncio.create_task(run(client, "ask", "Who waits?", "--priority", "batch"))
    await wait_until_async(waits)
    body, batch = {"question": "Who waits longer?", "stream": True}, {"X-Ragherd-Priority": "batch"}
    async with client.stream("POST", "/query", json=body, headers=batch) as stream:  # begins when both know their place
        stub.behaviour("ok")
        stub.break_connections()
        await stream.aread()
    await holding
    result = await command
    assert (result.exit_code, result.stdout) == (0, "echo: Who waits?\n")
    assert result.stderr.startswith("waiting: position 1\n")


async def test_a_failed_answer_exits_with_1_and_its_reason(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    nothing = await run(client, "ask", "Who?", "--cache", "only-if-cached")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "504: " in nothing.stderr
    stub.behaviour("error_line")
    broken = await run(client, "ask", "Who?")
    assert broken.exit_code == 1
    assert "502: " in broken.stderr
    stub.behaviour(models=MODELS)
    unknown = await run(client, "ask", "Who?", "--model", "missing")
    assert unknown.exit_code == 1
    assert "404: " in unknown.stderr
    assert (await run(client, "ask", " ")).exit_code == 2


async def test_an_answer_cannot_control_the_terminal(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(answer="a\x1b]0;title\x07b\u009b2Jc\nd")
    assert (await run(client, "ask", "Who?")).stdout == "a]0;titleb2Jc\nd\n"


async def test_explain_names_the_nearest_question_and_what_objects_to_it(serve: Service) -> None:
    client = await serve(cache={"similarity_threshold": 0.5})
    await ask(client, "What was the revenue in 2023?")
    said = (await run(client, "explain", "What was the revenue in 2024?")).stdout
    assert said.startswith("miss: ")
    assert "What was the revenue in 2023?" in said
    assert "numbers: 2024 / 2023" in said
    assert "labels" not in said, "there are none"
    found = await document(client, "explain", "What was the revenue in 2023?")
    assert (found["decision"], found["tenant"]) == ("exact_hit", "default")


async def test_explain_shows_the_labels_of_a_candidate_and_the_verifier_s_score(serve: Service) -> None:
    client = await serve(cache={"similarity_threshold": 0.5})
    await ask(client, "What was the revenue in 2023?")
    found = await document(client, "explain", "What was the revenue in 2024?")
    (candidate,) = found["candidates"]
    candidate |= {"labels": {"same": 3, "different": 1, "unsure": 0}, "verifier": {"score": -2.5, "verdict": "refused"}}
    candidates = candidate_table([candidate])
    assert [column.header for column in candidates.columns][:3] == ["cosine", "verifier", "labels"]
    assert [next(iter(column.cells)) for column in candidates.columns][1:3] == ["-2.50", "3 same, 1 different"]


# -- The cache ---------------------------------------------------------------------------------------------------------


async def test_warm_waits_until_all_questions_are_done(serve: Service) -> None:
    client = await serve()
    done = await document(client, "warm", "-", given="What is a lease?\n\nWhat is a lock?\n")
    assert (done["status"], done["total"], done["stored"], done["failed"]) == ("done", 2, 2, 0)
    assert (await ask(client, "What is a lock?"))["cache"]["status"] == "hit"
    again = await run(client, "warm", "-", given='{"question": "What is a lock?"}\n')
    assert again.stdout.startswith("done: 1 of 1 questions; stored 0, skipped 1, failed 0")
    started = await document(client, "warm", "-", "--no-wait", given="What is a permit?\n")
    assert started["total"] == 1


async def test_warm_exits_with_1_if_a_question_failed(serve: Service, stub: StubOllama, tmp_path: Path) -> None:
    stub.behaviour(models=MODELS)
    client = await serve()
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "Who?", "model": "missing"}\n"Where?"\n')
    result = await run(client, "warm", str(file))
    assert result.exit_code == 1
    assert "stored 1, skipped 0, failed 1" in result.stdout
    assert "missing" in result.stderr


@pytest.mark.parametrize(
    ("text", "reason"), [("", "has no question"), ('{"question": "Who?"}\n{', "line 2: not JSON"), (None, "No such")]
)
def test_warm_rejects_an_unusable_file(tmp_path: Path, text: str | None, reason: str) -> None:
    file = tmp_path / "questions.txt"
    if text is not None:
        file.write_text(text)
    result = run_here("warm", str(file))
    assert result.exit_code == 2
    assert reason in result.stderr


async def test_invalidate_counts_first_and_deletes_only_with_consent(serve: Service) -> None:
    client = await serve()
    for question in ("What is a lease?", "What is a lock?"):
        await ask(client, question)
    assert await document(client, "invalidate", "--all", "--dry-run") == {"matched": 2, "deleted": 0, "dry_run": True}
    unasked = await run(client, "invalidate", "--all")
    assert (unasked.exit_code, unasked.stdout) == (2, "")
    assert "2 cached answers would be deleted; give --yes" in unasked.stderr
    one = await run(client, "invalidate", "--question", "What is a lock?", "--yes")
    assert one.stdout == "Deleted 1 cached answer.\n"
    assert await document(client, "invalidate", "--all", "--yes") == {"matched": 1, "deleted": 1, "dry_run": False}


async def test_invalidate_by_release_and_by_age(serve: Service) -> None:
    client = await serve()
    await ask(client, "What is a lock?")
    counted = {"matched": 1, "deleted": 0, "dry_run": True}
    assert await document(client, "invalidate", "--since", "2m", "--dry-run") == counted
    assert await document(client, "invalidate", "--since", "0s", "--dry-run") == {**counted, "matched": 0}
    assert await document(client, "invalidate", "--release", "9.9.9", "--yes") == {**counted, "matched": 0}
    gone = await run(client, "invalidate", "--release", __version__, "--yes")
    assert gone.stdout == "Deleted 1 cached answer.\n"
    wrong = await run(client, "invalidate", "--since", "soon", "--yes")
    assert (wrong.exit_code, "RFC 3339" in wrong.stderr) == (1, True)


def test_an_age_without_a_unit_deletes_nothing() -> None:
    result = run_here("invalidate", "--yes", "--since", "120")
    assert (result.exit_code, "such as 120m" in result.stderr) == (2, True)


def test_invalidate_needs_to_know_what() -> None:
    result = run_here("invalidate", "--yes", "--model", "llama3.2")
    assert result.exit_code == 2
    assert "give one of --question" in result.stderr


async def test_two_kinds_of_deletion_at_once_are_refused_by_the_service(serve: Service) -> None:
    client = await serve()
    result = await run(client, "invalidate", "--all", "--tenant", "acme", "--yes")
    assert result.exit_code == 1
    assert "422: Set exactly one of" in result.stderr


# -- The fleet ---------------------------------------------------------------------------------------------------------


async def test_the_breaker_is_forced_and_reset_and_its_status_is_an_exit_code(serve: Service) -> None:
    client = await serve()
    assert "CLOSED" in (await run(client, "breaker")).stdout
    forced = await run(client, "breaker", "open", "--yes")
    assert forced.exit_code == 0
    assert "OPEN (forced OPEN)" in forced.stdout
    shown = await document(client, "breaker", "status", code=1)
    assert {one["state"] for one in shown["breakers"].values()} == {"OPEN"}
    one = await document(client, "breaker", "close", "--yes", "--breaker", "ollama-embed")
    assert list(one["breakers"]) == ["ollama-embed"]
    assert one["forced"] == "CLOSED"
    assert (await document(client, "breaker", "reset", "--yes"))["state"] == "CLOSED"
    assert (await run(client, "breaker", "--breaker", "nobody")).exit_code == 2
    assert (await run(client, "breaker", "open", "--yes", "--breaker", "nobody")).exit_code == 1
    history = await document(client, "breaker", "history", "--limit", "2")
    assert [one["to"] for one in history["transitions"]] == ["CLOSED", "OPEN"]
    assert "forced_open" in (await run(client, "breaker", "history")).stdout
    assert "422: " in (await run(client, "breaker", "history", "--since", "yesterday")).stderr


async def test_an_override_of_the_breaker_needs_consent(serve: Service) -> None:
    client = await serve()
    for action in ("open", "close", "reset"):
        for more in ((), ("--json",)):
            unasked = await run(client, "breaker", action, *more)
            assert (unasked.exit_code, unasked.stdout) == (2, "")
            assert unasked.stderr == f"ragherd: `{action}` changes every breaker of the fleet; give --yes\n"
    assert (await document(client, "breaker"))["state"] == "CLOSED"


async def test_status_is_good_only_while_the_service_is_healthy(serve: Service) -> None:
    client = await serve()
    await ask(client, "Who?")
    await ask(client, "Who?")
    good = await run(client, "status")
    assert good.exit_code == 0
    assert good.stdout.startswith(f"healthy: {str(client.base_url).rstrip('/')}, version ")
    found = await document(client, "status")
    assert found["health"]["status"] == "healthy"
    assert set(found) == {"url", "health", "breaker", "cache", "pool", "bulkhead", "workers"}
    await client.post("/api/circuit-breaker/force-open")
    bad = await run(client, "status")
    assert bad.exit_code == 1
    assert "ollama OPEN (forced)" in bad.stdout


async def test_workers_and_backends_list_the_fleet(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await serve()
    workers = (await document(client, "workers"))["workers"]
    assert len(workers) == 2
    listed = (await run(client, "workers")).stdout
    assert all(one["id"] in listed for one in workers)
    [backend] = (await document(client, "backends"))["backends"]
    assert (backend["name"], backend["breakers"]) == ("ollama", {"ollama": "CLOSED", "ollama-embed": "CLOSED"})
    assert backend["limit"] > 0
    assert "ollama" in (await run(client, "backends")).stdout


async def test_backends_drains_and_resumes_and_asks_before_the_last(serve: Service, stub: StubOllama) -> None:
    async with running_stub() as other:
        urls = f"{stub.base_url},{other.base_url}#tier=2"
        client = await serve(ollama={"ollama_base_url": urls}, access={"admin_keys": "root-key"})
        refused = await run(client, "backends", "drain", "ollama-2")
        assert (refused.exit_code, "Set RAGHERD_API_KEY" in refused.stderr) == (1, True)
        key: dict[str, Any] = {"key": "root-key"}
        found = await document(client, "backends", "drain", "ollama-2", **key)
        assert [(one["name"], one["tier"], one["drained"]) for one in found["backends"]] == [
            ("ollama", 1, False),
            ("ollama-2", 2, True),
        ]
        last = await run(client, "backends", "drain", "ollama", **key)
        assert (last.exit_code, "--force" in last.stderr) == (2, True)
        assert [one["drained"] for one in (await document(client, "backends"))["backends"]] == [False, True]
        await document(client, "backends", "drain", "ollama", "--force", **key)
        assert "drained, up" in (await run(client, "backends")).stdout
        status = await run(client, "status")
        assert (status.exit_code, "drained   ollama, ollama-2" in status.stdout) == (1, True)
        for name in ("ollama", "ollama-2"):
            await document(client, "backends", "resume", name, **key)
        assert "drained" not in (await run(client, "status")).stdout
        unknown = await run(client, "backends", "resume", "ollama-3", **key)
        assert (unknown.exit_code, "No backend 'ollama-3'" in unknown.stderr) == (1, True)
        for wrong in (("drain",), ("list", "ollama"), ("stop", "ollama")):
            assert (await run(client, "backends", *wrong)).exit_code == 2


async def test_monitor_without_a_terminal_prints_a_line_for_each_refresh(serve: Service) -> None:
    client = await serve()
    await ask(client, "Who?")

    async def is_in_the_history() -> bool:
        points = (await client.get("/api/history")).json()["points"]
        return any(point.get("latency_ms") for point in points)

    await wait_until_async(is_in_the_history)
    lines = (await run(client, "monitor", "--count", "2", "--interval", "0.2")).stdout.splitlines()
    assert len(lines) == 2
    assert all("healthy; ollama CLOSED" in line and "1 workers" in line for line in lines)
    assert " queries/s" not in lines[0]
    assert "0.0 queries/s" in lines[1]
    assert all("; p50/p95/p99 ms: miss " in line for line in lines), "the history has the answer"
    assert (await document(client, "monitor"))["health"]["status"] == "healthy"


async def test_monitor_does_without_the_history(serve: Service) -> None:
    client = await serve(server={"log_level": "error", "history_enabled": False})
    line = (await run(client, "monitor", "--count", "1")).stdout
    assert "p50/p95/p99 ms: not known; " in line


async def test_doctor_finds_what_is_wrong_with_a_service(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    good = await document(client, "doctor")
    assert good["ok"]
    warned = {one["name"] for one in good["checks"] if one["advice"]}
    assert warned == {"Redis, not_persistent"}
    await client.post("/api/circuit-breaker/force-open")
    forced = await run(client, "doctor")
    assert forced.exit_code == 1
    assert "FAIL  breaker ollama: forced OPEN" in forced.stdout
    assert "ragherd breaker reset" in forced.stdout


async def test_doctor_without_a_url_checks_this_environment_too(serve: Service, redis_url: str, tmp_path: Path) -> None:
    settings = {
        "PORT": free_port(),
        "REDIS_URL": redis_url,
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{free_port()}",
        "SEMANTIC_CACHE_TLL": "60",
    }
    result = await asyncio.to_thread(partial(run_here, "doctor", "--json", **settings))
    assert result.exit_code == 3
    checks = {one["name"]: one for one in json.loads(result.stdout)["checks"]}
    assert checks["Redis, from here"]["ok"]
    assert not checks[f"Ollama at {settings['OLLAMA_BASE_URL']}, from here"]["ok"]
    assert "SEMANTIC_CACHE_TTL" in checks["variable"]["detail"]
    assert not checks["service"]["ok"]
    assert "ragherd serve" in checks["service"]["advice"]
    invalid = run_here("doctor", PORT="none")
    assert invalid.exit_code == 1
    assert invalid.stdout.startswith("FAIL  settings: PORT: ")


# -- Keys and services that do not answer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("ask", None, "401: "),
        ("ask", "wrong-key", "RAGHERD_API_KEY has an unknown key."),
        ("warm", None, "Set RAGHERD_API_KEY."),
        ("warm", "acme-key-for-tests", "403: "),
        ("invalidate", "acme-key-for-tests", "RAGHERD_API_KEY needs an admin key."),
    ],
)
async def test_a_bad_key_is_said_in_a_line_and_never_printed(
    serve: Service, name: str, key: str | None, reason: str
) -> None:
    client = await serve(**KEYS)
    result = await run(client, name, *SPEAKING[name], key=key)
    assert (result.exit_code, result.stdout) == (1, "")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert key is None or key not in result.output


async def test_the_right_key_opens_every_command(
    serve: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the benchmark writes a file
    client = await serve(**KEYS)
    assert (await run(client, "ask", "Who?", key="acme-key-for-tests")).exit_code == 0
    for name, arguments in SPEAKING.items():
        await document(client, name, *arguments, key="admin-key-for-tests")
    doctor = await document(client, "doctor", code=1, key="wrong-key")
    assert [one["name"] for one in doctor["checks"] if not one["ok"]] == ["key"]


def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent() -> None:
    result = run_here("status", "--url", "http://127.0.0.1:1", key="kéy with a space")
    assert result.exit_code == 2
    assert "kéy" not in result.output


@pytest.mark.parametrize("name", SPEAKING)
def test_a_service_that_cannot_be_reached_exits_with_3(name: str) -> None:
    result = run_here(name, *SPEAKING[name], "--json", "--url", f"http://127.0.0.1:{free_port()}")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "cannot be reached" in result.stderr


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8001", "http://[::1", "http://127.0.0.1:99999"])
def test_an_invalid_url_is_a_wrong_use(url: str) -> None:
    result = run_here("status", "--url", url)
    assert result.exit_code == 2
    assert "--url" in result.stderr


def test_without_a_url_the_settings_name_the_service() -> None:
    port = free_port()
    result = run_here("status", HOST="::", PORT=port, ALLOW_ANONYMOUS="true")
    assert result.exit_code == 3
    assert f"http://[::1]:{port}: cannot be reached" in result.stderr
    assert run_here("status", PORT="none").exit_code == 2


@pytest.fixture
def other_program() -> Iterator[str]:
    """A program that is not Ragherd and answers 200 with text to everything but /proxied, which gets 502."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(502 if self.path.startswith("/proxied") else 200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_another_program_at_the_address_is_recognized(other_program: str) -> None:
    result = run_here("status", "--url", other_program)
    assert result.exit_code == 1
    assert "is not an answer of Ragherd" in result.stderr
    proxied = run_here("status", "--url", f"{other_program}/proxied")
    assert proxied.exit_code == 3
    assert "502: hello" in proxied.stderr
    doctor = run_here("doctor", "--url", other_program)
    assert doctor.exit_code == 1
    assert "FAIL  service: " in doctor.stdout


# -- Terminals and processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """A replica with two workers."""
    redis_server.start()
    with stub_process() as ollama, gunicorns("api.asgi:app", tmp_path_factory.mktemp("fleet")) as begin:
        yield begin(REDIS_URL=redis_server.url, OLLAMA_BASE_URL=ollama.base_url, WORKERS="2", REDIS_TIMEOUT="1")


@pytest.mark.processes
def test_monitor_follows_an_outage_and_ctrl_c_leaves_a_clean_terminal(fleet: Gunicorn) -> None:
    terminal = Terminal("monitor", "--interval", "0.2", "--url", fleet.url())
    wait_until(partial(terminal.shows, "circuit breakers"), timeout=30)
    wait_until(partial(terminal.shows, "healthy"))
    fleet.client.post(f"{fleet.url()}/api/circuit-breaker/force-open")
    wait_until(partial(terminal.shows, "OPEN (forced OPEN)"))
    fleet.client.post(f"{fleet.url()}/api/circuit-breaker/reset")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown
    assert terminal.shown.rstrip().endswith("workers")
    assert terminal.shown.rindex("\x1b[?1049l") > terminal.shown.rindex("\x1b[?1049h")
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")


@pytest.mark.processes
@pytest.mark.parametrize(("typed", "code", "left"), [("n\n", 1, 1), ("y\n", 0, 0)])
def test_on_a_terminal_invalidate_asks(fleet: Gunicorn, typed: str, code: int, left: int) -> None:
    question = f"Is {typed.strip()} typed?"
    asked = fleet.client.post(f"{fleet.url()}/query", json={"question": question}).raise_for_status()
    entry = asked.json()["cache"]["entry"]
    terminal = Terminal("invalidate", "--entry", entry, "--url", fleet.url())
    wait_until(partial(terminal.shows, "Delete 1 cached answer? [y/N]"), timeout=30)
    terminal.types(typed)
    assert terminal.end() == code
    params = {"entry": entry, "dry_run": "true"}
    assert fleet.client.delete(f"{fleet.url()}/api/semantic-cache", params=params).json()["matched"] == left


@pytest.mark.processes
@pytest.mark.parametrize(("typed", "code", "state"), [("n\n", 1, None), ("\x03", 130, None), ("y\n", 0, "OPEN")])
def test_on_a_terminal_an_override_of_the_breaker_asks(
    fleet: Gunicorn, typed: str, code: int, state: str | None
) -> None:
    terminal = Terminal("breaker", "open", "--breaker", "ollama-embed", "--url", fleet.url())
    wait_until(partial(terminal.shows, "Open the breaker ollama-embed"), timeout=30)
    wait_until(partial(terminal.shows, "[y/N]"))
    if typed == "\x03":
        terminal.process.send_signal(signal.SIGINT)
    else:
        terminal.types(typed)
    assert terminal.end() == code
    breakers = fleet.client.get(f"{fleet.url()}/api/circuit-breaker/metrics").json()["breakers"]
    assert breakers["ollama-embed"]["forced"] == state
    fleet.client.post(f"{fleet.url()}/api/circuit-breaker/reset")


@pytest.mark.processes
def test_monitor_prints_lines_on_a_terminal_without_a_cursor(fleet: Gunicorn) -> None:
    terminal = Terminal("monitor", "--count", "2", "--interval", "0.2", "--url", fleet.url(), term="dumb")
    assert terminal.end() == 0
    assert len(terminal.shown.splitlines()) == 2
    assert "\x1b" not in terminal.shown


@pytest.mark.processes
def test_monitor_waits_for_a_service_that_went_away(redis_server: Any, tmp_path: Path) -> None:
    redis_server.start()
    with stub_process() as ollama, gunicorns("api.asgi:app", tmp_path) as begin:
        port = free_port()
        settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "PORT": port}
        gone = begin(**settings)
        terminal = Terminal("monitor", "--interval", "0.2", "--url", gone.url())
        wait_until(partial(terminal.shows, "healthy"), timeout=30)
        gone.process.terminate()
        wait_until(partial(terminal.shows, "the figures are old"), timeout=30)
        gone.process.wait(30)
        terminal.shown = ""
        begin(**settings)
        wait_until(partial(terminal.shows, "healthy"), timeout=30)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("ragherd inv", 1, {"invalidate"}),
        ("ragherd breaker ", 2, {"status", "open", "close", "reset", "history"}),
        ("ragherd ask --cache ", 3, {"no-cache", "no-store", "only-if-cached"}),
    ],
)
def test_the_shell_completes_commands_and_their_values(words: str, number: int, offered: set[str]) -> None:
    program = "from ragherd.commands import commands; commands(prog_name='ragherd')"
    variables = {"_RAGHERD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("from ragherd.commands import load; load('serve')", {"rich", "httpx"}),
        ("import api.asgi", {"typer", "ragherd"}),  # httpx imports rich for its own command
    ],
)
def test_the_service_starts_without_what_the_commands_need(program: str, unwanted: set[str]) -> None:
    code = f"{program}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not unwanted & set(done.stdout.split())


def test_each_command_that_prints_a_result_can_print_json() -> None:
    for name in COMMANDS.keys() - {"dev"}:  # runs until it is stopped
        assert "--json" in run_here(name, "--help").stdout, name


def test_a_silent_service_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(opened)["__wrapped__"].__kwdefaults__, "read_seconds", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        result = run_here("doctor", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert result.exit_code == 3
    assert "cannot be reached: timed out" in result.stdout
