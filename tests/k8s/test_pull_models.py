"""The start script of the Ollama component, with a stand-in for the program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.k8s.rendered import K8S

OLLAMA = """#!/bin/sh
echo "$@" >>{log}
case $1 in
  serve) exec sleep {serves} ;;
  list) test {serves} != 0 ;;
  pull) exit {pull} ;;
  show) exit {show} ;;
esac
"""


def pulled(
    folder: Path, model: str, *, models: str = ".", serves: int = 60, pull: int = 0, show: int = 0
) -> tuple[int, list[str]]:
    """Returns the script's exit code and its requests to Ollama."""
    log, program = folder / "log", folder / "ollama"
    program.write_text(OLLAMA.format(log=log, serves=serves, pull=pull, show=show))
    program.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LLM_MODEL": model, "OLLAMA_MODELS": str(folder / models)}
    command = ["/bin/sh", str(K8S / "components" / "ollama" / "pull-models.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    return done.returncode, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    ("pull", "show", "is_there"),
    [(0, 1, True), (1, 0, True), (1, 1, False)],
    ids=["pulled", "kept", "neither"],
)
def test_ollama_starts_when_the_model_is_on_the_volume(tmp_path: Path, pull: int, show: int, is_there: bool) -> None:
    code, asked = pulled(tmp_path, "llama3.2:1b", pull=pull, show=show)
    assert (code == 0) is is_there
    assert "pull llama3.2:1b" in asked


@pytest.mark.parametrize(("show", "is_there"), [(0, True), (1, False)], ids=["has the model", "lacks it"])
def test_a_volume_that_cannot_be_written_is_not_pulled_to(tmp_path: Path, show: int, is_there: bool) -> None:
    code, asked = pulled(tmp_path, "llama3.2:1b", models="read-only", show=show)
    assert (code == 0) is is_there
    assert "pull llama3.2:1b" not in asked


def test_a_server_that_can_not_start_ends_it(tmp_path: Path) -> None:
    code, asked = pulled(tmp_path, "llama3.2", serves=0)
    assert code != 0
    assert "pull llama3.2" not in asked


def test_an_overlay_that_names_no_model_is_told_so(tmp_path: Path) -> None:
    assert pulled(tmp_path, "") == (2, [])
