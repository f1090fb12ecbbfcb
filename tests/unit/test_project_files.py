"""The project's configuration files are valid and refer to existing scripts and tools."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SECOND_TRY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def shell_scripts() -> list[Path]:
    """Returns every shell script of the project, including sourced files."""
    folders = [ROOT / name for name in ("scripts", ".ci", "k8s", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix in {"", ".sh"}]
    return [path for path in files if re.match(rb"#!.*\b(ba)?sh\b|# shellcheck shell=", path.read_bytes())]


def test_shellcheck_finds_nothing() -> None:
    scripts = shell_scripts()
    assert {"run", "test", "venv.sh"} <= {path.name for path in scripts}
    checked = subprocess.run(
        [BIN / "shellcheck", "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.stdout + checked.stderr == ""


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
)
def test_github_files_match_their_schemas(schema: str, files: list[Path]) -> None:
    command: list[str | Path] = [BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_workflows_run_the_scripts_in_scripts() -> None:
    steps = [step for path in WORKFLOWS for job in read(path)["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    scripts = [word for command in commands for word in shlex.split(command) if re.match(r"scripts/|\.ci/", word)]
    assert len(commands) == len(scripts), "a step runs one script and nothing else"
    assert {path for path in scripts if not (ROOT / path).is_file()} == set()
    assert ".ci/run" in scripts


def test_workflows_name_actions_by_the_digest_of_a_commit() -> None:
    used = [match for path in WORKFLOWS for match in re.findall(r"uses: *(\S+)(.*)", path.read_text())]
    assert len(used) > 3
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.match(r" # v\d+\.\d+\.\d+\b", comment), f"{action}: name its version in a comment"


def test_scripts_install_only_what_is_locked() -> None:
    lines = [line.strip() for path in shell_scripts() for line in path.read_text().splitlines()]
    python = [line for line in lines if re.search(r"(^| )pip_install |-m pip install (?!--progress-bar)", line)]
    locked = [line for line in python if '"${LOCKED[@]}" -r' in line]
    own = [line for line in python if "--no-deps --no-build-isolation -e ." in line]
    assert (len(locked), len(own)) == (3, 1)
    assert set(python) == {*locked, *own}
    npm = [line for line in lines if re.match(r"npm [a-z]", line)]
    assert npm
    assert all(line.startswith("npm ci ") and " --ignore-scripts " in line for line in npm)
    locks = [path for folder in ("scripts", "tests") for path in (ROOT / folder).rglob("package-lock.json")]
    assert len(locks) == 2
    for lock in locks:
        packages = json.loads(lock.read_text())["packages"]
        assert all("integrity" in one for name, one in packages.items() if name)


def test_pre_commit_runs_the_tools_of_the_virtual_environment() -> None:
    subprocess.run([BIN / "pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml"], check=True)
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    for hook in hooks:
        tool = shlex.split(hook["entry"])[0]
        assert (BIN / tool.removeprefix(".venv/bin/") if tool.startswith(".venv/") else ROOT / tool).is_file()


def test_the_contributing_page_names_scripts_that_exist() -> None:
    named = set(re.findall(r"(?<![\w/])(?:scripts|\.ci|tests)/[\w/.-]*\w", (ROOT / "CONTRIBUTING.md").read_text()))
    assert len(named) > 5
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_only_tests_that_watch_processes_or_time_are_run_again(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        watches = any(item.get_closest_marker(name) for name in SECOND_TRY)
        assert (item.get_closest_marker("flaky") is not None) == watches, item.nodeid
    for script in (ROOT / "scripts" / "test", ROOT / ".ci" / "run"):
        assert "--reruns" not in script.read_text()


def test_what_runs_on_one_python_gives_the_reason(request: pytest.FixtureRequest) -> None:
    marks = [mark for item in request.session.items for mark in item.iter_markers("once")]
    assert [mark for mark in marks if not str(mark.kwargs.get("reason", "")).strip()] == []
