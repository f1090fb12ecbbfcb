"""Limits on how much code there is to walk through: files, import depth, and docstrings that point elsewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from scripts.trace_request import api_files, longest_import_chain

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="it reads the source")]

ROOT = Path(__file__).parents[2]
EVENT_INTERFACES = {"Telemetry", "RedisHealthEvents", "BreakerListener"}
"""The last two belong to one server or breaker, and have several implementations each."""


def classes() -> list[ast.ClassDef]:
    trees = (ast.parse(path.read_text("utf-8")) for path in api_files())
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_the_longest_chain_of_imports_has_at_most_14_modules() -> None:
    chain = longest_import_chain()
    assert len(chain) <= 14, " > ".join(chain)


def test_api_has_at_most_274_files() -> None:
    assert len(list((ROOT / "api").rglob("*.py"))) <= 274


def test_rooms_report_to_one_telemetry() -> None:
    names = {node.name for node in classes()}
    assert names >= EVENT_INTERFACES
    found = {name for name in names if re.search(r"(Events|Observer|Listener|Telemetry)$", name)}
    implementations = {"WorkerTelemetry", "TracedTelemetry", "WarmUpTelemetry", "RedisEvents"}
    assert found - implementations == EVENT_INTERFACES


def test_docstrings_say_what_the_code_does_instead_of_where_to_look() -> None:
    documented = (ast.AsyncFunctionDef, ast.FunctionDef, ast.ClassDef)
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in api_files()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, documented) and (ast.get_docstring(node) or "").startswith("See `")
    ]
    assert not wrong, "\n".join(wrong)
