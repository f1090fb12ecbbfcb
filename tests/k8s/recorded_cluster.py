"""A cluster that answers `kubectl` as a real one did. Records are made on a real cluster:

    python -m tests.k8s.recorded_cluster tests/k8s/recorded/staging.jsonl.gz k8s/overlays/staging --image ... --small

The arguments after the file are those of `ragherd rehearse`. Answers are kept in the order of the calls, without those
that equal the last answer to the same call.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final
from unittest.mock import patch

import httpx

from ragherd.rehearsal import kubectl as module
from ragherd.rehearsal.added import probe_program
from ragherd.rehearsal.kubectl import Kubectl, KubectlError

NAMESPACE: Final = "ragherd-recorded"
FORWARD: Final = "HTTP GET /metrics"
POLLS: Final = 10


def call_of(arguments: tuple[str, ...], text: str | None) -> str:
    """Returns the name of a call. A probe's job is part of it, without what differs between runs."""
    words = ["PROBE" if one == probe_program() else one for one in arguments]
    if "PROBE" in words:
        job = json.loads(text or "{}")
        sent = [*job.get("requests", []), *([job["first"]] if "first" in job else [])]
        what = [one["url"].partition("/")[2].partition("/")[2].partition("/")[2] for one in sent]
        words += [job["do"], *what, *(str(one["port"]) for one in job.get("targets", []))]
    if words[-2:-1] == ["sleep"]:
        words[-1] = "SECONDS"
    return " ".join(words)


class RecordedCluster:
    """Replays the answers of a file. `alter` changes an answer before it is given: a cluster with a fault."""

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            self._rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(self._rows):
            self._numbers[row["call"]].append(number)
        self._position = -1
        self._changes: list[tuple[str, Any]] = []
        self.calls: list[str] = []
        self.applied: list[Any] = []

    def alter(self, part: str, change: Any) -> None:
        """Changes the answers to calls with `part` in their name. `change` gets and returns parsed JSON, or text."""
        self._changes.append((part, change))

    def run(self, _kubectl: Kubectl, *arguments: str, text: str | None = None, seconds: float = 60.0) -> str:
        """Stands in for `Kubectl.run`."""
        del seconds
        call = call_of(arguments, text)
        self.calls.append(call)
        if arguments[0] == "apply":
            self.applied.append(json.loads(text or "{}"))
        row = self._answer(call)
        if "error" in row:
            raise getattr(module, row["kind"])(row["error"])
        return self._changed(call, row["printed"])

    def _answer(self, call: str) -> dict[str, Any]:
        """Returns the next answer. A call that the record does not have here got the same answer as the last time.

        After `POLLS` calls in a row, somebody waits for a change, so time goes on.
        """
        following = next((number for number in self._numbers[call] if number > self._position), None)
        before = next((number for number in reversed(self._numbers[call]) if number <= self._position), None)
        waited = self.calls[-POLLS:] == [call] * POLLS
        if following is not None and (following == self._position + 1 or before is None or waited):
            before = self._position = following
        assert before is not None, f"the record has no answer to: {call}"
        return self._rows[before]

    def _changed(self, call: str, printed: str) -> str:
        for part, change in self._changes:
            if part in call:
                try:
                    printed = json.dumps(change(json.loads(printed)))
                except ValueError:
                    printed = change(printed)
        return printed

    @contextmanager
    def forwarded(self, _kubectl: Kubectl, what: str, port: int) -> Iterator[str]:
        """Stands in for `Kubectl.forwarded`, and serves the recorded metrics."""
        self.calls.append(f"port-forward {what} :{port}")
        body = self._changed(FORWARD, self._answer(FORWARD)["printed"]).encode()

        class Metrics(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Logs nothing."""

        with HTTPServer(("127.0.0.1", 0), Metrics) as server:
            Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


# -- Making a record ---------------------------------------------------------------------------------------------------


def record(path: Path, arguments: list[str]) -> None:
    """Rehearses on the cluster of kubectl's context, and keeps every answer."""
    from typer.testing import CliRunner

    from ragherd.commands import commands

    rows: list[dict[str, Any]] = []
    run, forwarded = Kubectl.run, Kubectl.forwarded

    def recording(self: Kubectl, *given: str, text: str | None = None, seconds: float = 60.0) -> str:
        row: dict[str, Any] = {"call": call_of(given, text)}
        rows.append(row)
        try:
            printed = run(self, *given, text=text, seconds=seconds)
        except KubectlError as error:
            row |= {"error": str(error), "kind": type(error).__name__}
            raise
        row["printed"] = _trimmed(printed)
        return printed

    @contextmanager
    def recording_forward(self: Kubectl, what: str, port: int) -> Iterator[str]:
        with forwarded(self, what, port) as url:
            rows.append({"call": FORWARD, "printed": httpx.get(f"{url}/metrics", trust_env=False).text})
            yield url

    with patch.object(Kubectl, "run", recording), patch.object(Kubectl, "forwarded", recording_forward):
        result = CliRunner().invoke(commands, ["rehearse", *arguments, "--namespace", NAMESPACE])
    print(result.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for row in _without_repeats(rows):
            file.write(json.dumps(row).encode() + b"\n")
    print(f"{len(rows)} calls, {path.stat().st_size:,} bytes, exit code {result.exit_code}")


def _trimmed(printed: str) -> str:
    """Leaves out what no step reads and what makes records large."""
    try:
        found = json.loads(printed)
    except ValueError:
        return printed
    if isinstance(found, dict):
        for each in [found, *found.get("items", [])]:
            if isinstance(each, dict) and isinstance(each.get("metadata"), dict):
                each["metadata"].pop("managedFields", None)
                each["metadata"].pop("annotations", None)
    return json.dumps(found)


def _without_repeats(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leaves out an answer that equals the one before it to the same call: polls."""
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        if last.get(row["call"]) != row:
            yield row
        last[row["call"]] = row


if __name__ == "__main__":
    record(Path(sys.argv[1]), sys.argv[2:])
