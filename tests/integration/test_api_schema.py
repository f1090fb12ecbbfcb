"""The API matches its OpenAPI description: schemathesis sends valid and invalid requests, with all checks.

API_SCHEMA_EXAMPLES: random requests per endpoint and phase, in addition to the systematic ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.service import Service

CONFIG = Path(__file__).parents[1] / "schemathesis.toml"
EXAMPLES = os.environ.get("API_SCHEMA_EXAMPLES", "3")
SECONDS = 420
ALL = "examples,coverage,fuzzing,stateful"
KEYS = {"api_keys": "acme=a-key-of-acme", "admin_keys": "the-admin-key", "wrong_key_delay": "0"}


@dataclass(frozen=True)
class Run:
    """What is tried, and how many cases it has at least."""

    access: dict[str, str]
    phases: str
    least: int


RUNS = {"an admin": Run(KEYS, ALL, 1500), "anyone": Run({}, "examples,fuzzing", 50)}
"""Where there are keys it is also tried whether an endpoint that needs one answers without it."""
LONG = pytest.mark.once(reason="the description is that of one FastAPI; the short run is on every Python")


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("caller", [pytest.param("an admin", marks=LONG), "anyone"])
async def test_every_request_is_answered_as_described(
    serve: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str], caller: str
) -> None:
    run = RUNS[caller]
    client = await serve(access=run.access)
    report = tmp_path / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", str(client.base_url.join("/openapi.json")), "--checks", "all", "--phases", run.phases),
        *("--max-examples", EXAMPLES, "--report-json-path", str(report), "--warnings", "off", "--no-color"),
        *(("--header", "Authorization: Bearer the-admin-key") if run.access else ()),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    log = capfd.readouterr()
    assert process.returncode == 0, _shortened(output.decode())
    found = json.loads(report.read_text())
    assert (found["failures"], found["errors"], found["complete"]) == ([], [], True)
    assert found["operations"]["tested"] == found["operations"]["total"] > 30
    assert found["test_cases"]["generated"] >= run.least
    assert "Traceback" not in log.out + log.err
    assert '"level":"error"' not in log.out + log.err
    with capfd.disabled():
        print(f" schemathesis: {found['test_cases']['generated']} cases as {caller}, 0 failures")


def _shortened(output: str) -> str:
    return "\n".join(line[:400] for line in output.splitlines())[-20_000:]
