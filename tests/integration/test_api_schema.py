"""The API against its own description: schemathesis makes requests that it allows and that it forbids, with all checks.

API_SCHEMA_EXAMPLES: random requests per endpoint and phase, beside the systematic ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.service import Service

CONFIG = Path(__file__).parents[1] / "schemathesis.toml"
EXAMPLES = os.environ.get("API_SCHEMA_EXAMPLES", "3")
LEAST_CASES = 1500
SECONDS = 420


@pytest.mark.timeout(SECONDS + 30)
async def test_every_request_is_answered_as_described(
    serve: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await serve()
    report = tmp_path / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *(
            "run",
            str(client.base_url.join("/openapi.json")),
            "--checks",
            "all",
            "--phases",
            "examples,coverage,fuzzing,stateful",
        ),
        *("--max-examples", EXAMPLES, "--report-json-path", str(report), "--warnings", "off", "--no-color"),
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
    assert found["test_cases"]["generated"] >= LEAST_CASES
    assert "Traceback" not in log.out + log.err
    assert '"level":"error"' not in log.out + log.err
    with capfd.disabled():
        print(f" schemathesis: {found['test_cases']['generated']} cases, 0 failures")


def _shortened(output: str) -> str:
    return "\n".join(line[:400] for line in output.splitlines())[-20_000:]
