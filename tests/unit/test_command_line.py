"""The commands of `ragherd` match the page that describes them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api import __version__
from ragherd.commands import COMMANDS, commands
from scripts.generate_docs import command_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "command-line.md").read_text()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(commands, list(arguments), env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_version_matches_the_package() -> None:
    assert run("--version") == f"ragherd {__version__}\n"


def test_the_help_lists_every_command_with_its_line() -> None:
    listed = run("--help")
    for name, entry in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(entry.help)}", listed), name


@pytest.mark.slow
def test_the_help_imports_no_command() -> None:
    program = """
import sys
from typer.testing import CliRunner
from ragherd.commands import commands
assert CliRunner().invoke(commands, ["--help"]).exit_code == 0
ours = sorted(name for name in sys.modules if name.startswith(("api.", "ragherd", "worker_config")))
print(*ours, *({"redis", "httpx", "numpy", "gunicorn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ragherd", "ragherd.commands", "ragherd.exits"]


def test_an_unknown_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(commands, ["ingset"])
    assert result.exit_code == 2
    assert "Did you mean 'ingest'" in result.output


def test_two_hyphens_precede_a_file_name_that_looks_like_an_option(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["ingest", "--dry-run", "--", "-x"])
    assert "path '-x' does not exist" in result.output.lower()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_documents_every_command(name: str) -> None:
    part = rf"^## {name}\n\n<!-- generated: command {name} -->\n\n(.*?)\n<!-- end"
    found = re.search(part, PAGE, re.MULTILINE | re.DOTALL)
    assert found, name
    assert found[1] == command_table(name), "run python -m scripts.generate_docs"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_documents_every_option(name: str) -> None:
    """The table is made from annotations, the help by typer."""
    first_column = re.findall(r"^\| (`.*?) \|", command_table(name), re.MULTILINE)
    box = run(name, "--help").rpartition("Options")[2]
    taken = re.findall(r"^\W+((?:--[\w-]+ +)+)", box, re.MULTILINE)
    assert set(re.findall(r"--[\w-]+", " ".join(first_column))) == set(" ".join(taken).split()) - {"--help"}
