"""Commands against programs that are not Ragherd, texts that cannot be sent or printed, and secrets in URLs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.support.gunicorn_process import free_port

ROOT = Path(__file__).parents[2]
SPEAKING: dict[str, tuple[str, ...]] = {
    "ask": ("ask", "Who?"),
    "explain": ("explain", "Who?"),
    "warm": ("warm", "-"),
    "invalidate": ("invalidate", "--all", "--yes"),
    "breaker": ("breaker",),
    "breaker history": ("breaker", "history"),
    "breaker open": ("breaker", "open", "--yes"),
    "status": ("status",),
    "monitor": ("monitor", "--count", "1"),
    "backends": ("backends",),
    "workers": ("workers",),
    "doctor": ("doctor",),
    "smoke": ("smoke",),
    "quality": ("quality",),
    "ingest": ("ingest", "README.md"),
}
HTML = b"<!doctype html>\n<html><head><title>Sign in</title></head>\n<body>Sign in</body></html>"
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "html": (200, {"content-type": "text/html"}, HTML),
    "refusal": (403, {"content-type": "text/html"}, HTML),
    "redirect": (302, {"location": "https://login.example/"}, b""),
    "object": (200, {}, b'{"status": "ok"}'),
    "list": (200, {}, b"[]"),
    "text": (200, {}, b'"ok"'),
    "null": (200, {}, b"null"),
    "wrong compression": (200, {"content-encoding": "gzip"}, b"{}"),
    "cut event": (200, {"content-type": "text/event-stream"}, b"event: token\ndata: {\n\n"),
    "broken events": (
        200,
        {"content-type": "text/event-stream"},
        b"event: token\ndata: 1\n\n",
    ),
}


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    """A program that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(*arguments: str, **environment: Any) -> Result:
    variables = {"RAGHERD_API_KEY": None, "COLUMNS": "200", **environment}
    return CliRunner().invoke(commands, list(arguments), env=variables, input="Who?\n")


def ended_by_itself(result: Result) -> bool:
    return result.exception is None or isinstance(result.exception, SystemExit)


# -- Other programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ANSWERS)
def test_another_program_gets_a_line_and_never_a_traceback(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with answering(*ANSWERS[answer]) as url:
        for name, arguments in SPEAKING.items():
            for more in ((), ("--json",)):
                result = run(*arguments, *more, "--url", url)
                assert ended_by_itself(result), (name, more, repr(result.exception))
                assert result.exit_code == 1, (name, more, result.output)
                assert "<" not in result.output, (name, more, result.output)
                if more and result.stdout:
                    json.loads(result.stdout)
                else:
                    assert result.output.strip(), (name, more)


def test_a_gateway_is_named_without_its_markup() -> None:
    with answering(502, {"content-type": "text/html"}, b"<html><title>502 Bad Gateway</title><h1>nginx</h1>") as url:
        result = run("status", "--url", url)
    assert result.exit_code == 3
    assert result.stderr == f"ragherd: {url}/health: 502: Bad Gateway\n"


# -- Secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SPEAKING if name != "ingest"])
def test_a_password_in_a_url_is_not_printed(name: str) -> None:
    with answering(502, {}, b"") as url:
        gateway = url.replace("//", "//me:hush-hush@")
        for wrong in (
            gateway,
            "ftp://me:hush-hush@host",
            "http://me:hush-hush@127.0.0.1:99999",
            "http://me:hush-hush@h:x",
        ):
            result = run(*SPEAKING[name], "--url", wrong)
            assert result.exit_code == (3 if wrong == gateway else 2), result.output
            assert "hush" not in result.output


@pytest.mark.parametrize("url", ["ftp://me:hush-hush@host", "http://hush-hush@host:x", "http://me:hush-hush@h:x"])
def test_an_invalid_ollama_url_is_named_without_its_password(url: str) -> None:
    for command in (("config",), ("preflight",), ("status",), ("redis-acl",)):
        result = run(*command, OLLAMA_BASE_URL=url)
        assert result.exit_code == (1 if command == ("preflight",) else 2), result.output
        assert "OLLAMA_BASE_URL" in result.output
        assert "hush" not in result.output


def test_a_token_as_user_of_a_url_is_a_secret_too() -> None:
    assert "hush" not in run("config", OLLAMA_BASE_URL="http://hush-hush@host").output


# -- Ingest ------------------------------------------------------------------------------------------------------------


def test_ingest_tells_a_wrong_url_from_a_service_that_is_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ragherd.ingest.MAX_OUTAGE_SECONDS", 0.1)
    (tmp_path / "page.md").write_text("# Page\n\nText.\n")
    for url in ("ftp://me:hush-hush@host", "host:8001", "http://me:hush-hush@h:x"):
        wrong = run("ingest", str(tmp_path), "--url", url)
        assert wrong.exit_code == 2, wrong.output
        assert "hush" not in wrong.output
    down = ("ingest", str(tmp_path), "--json", "--url", f"http://127.0.0.1:{free_port()}")
    assert (run(*down).exit_code, run(*down).stdout) == (3, "")
    named = run(*down, "--collection", "handbook")
    assert (named.exit_code, json.loads(named.stdout)["failed"]) == (3, 1)
    assert run("ingest", str(tmp_path), "--key", "kéy with a space").exit_code == 2


# -- Texts and terminals -----------------------------------------------------------------------------------------------


def process(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-P", "-m", "ragherd", *arguments], env=variables, capture_output=True, timeout=60
    )


@pytest.mark.processes
@pytest.mark.parametrize("name", ["ask", "explain"])
def test_a_question_that_is_not_utf_8_is_a_wrong_use(name: str) -> None:
    done = process(name, b"caf\xe9?", "--url", f"http://127.0.0.1:{free_port()}", PYTHONUTF8="1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == "ragherd: the text is not UTF-8\n"


@pytest.mark.processes
def test_an_answer_reaches_a_terminal_that_lacks_its_characters() -> None:
    events = (
        'event: sources\ndata: []\n\nevent: token\ndata: {"text": "caf\\u00e9 \\ud83d"}\n\n'
        'event: error\ndata: {"status": 502, "detail": "\\u4e2d"}\n\n'
    )
    with answering(200, {"content-type": "text/event-stream"}, events.encode()) as url:
        latin = process("ask", "Who?", "--url", url, PYTHONIOENCODING="latin-1")
        assert (latin.returncode, latin.stdout) == (1, b"caf\xe9 ?\n")
        assert latin.stderr == b"ragherd: 502: ?\n"
        wide = process("ask", "Who?", "--url", url, PYTHONIOENCODING="utf-8")
        assert wide.stdout == "café ?\n".encode()


@pytest.mark.processes
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_full_disk_is_said_in_a_line(more: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-P", "-m", "ragherd", "config", *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr == b"ragherd: the output cannot be written: No space left on device\n"
