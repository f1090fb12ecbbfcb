"""The plugin of `scripts/test --fast`: it fails a run in which an unmarked test takes much CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPENDS_CPU = """
import time

def test_dear():
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass

def test_that_waits():
    time.sleep(0.5)
"""
SLOW_FILE = """
import pytest

pytestmark = [pytest.mark.slow]
raise AssertionError("imported")
"""


def run(folder: Path, most_cpu: float) -> subprocess.CompletedProcess[str]:
    plugins = ("-p", "tests.support.fast_tests", "-p", "no:schemathesis", "-p", "no:cacheprovider")
    command = (sys.executable, "-m", "pytest", *plugins, f"--most-cpu={most_cpu}", "--rootdir", folder, folder)
    return subprocess.run(command, capture_output=True, cwd=ROOT, text=True, check=False)


@pytest.mark.slow
def test_a_test_that_takes_much_cpu_fails_the_run_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SPENDS_CPU)
    (tmp_path / "test_slow.py").write_text(SLOW_FILE)
    refused = run(tmp_path, most_cpu=0.4)
    assert refused.returncode == pytest.ExitCode.TESTS_FAILED
    assert "s of CPU test_some.py::test_dear" in refused.stdout
    assert "s of CPU test_some.py::test_that_waits" not in refused.stdout
    assert "2 passed" in refused.stdout
    assert run(tmp_path, most_cpu=60.0).returncode == pytest.ExitCode.OK
