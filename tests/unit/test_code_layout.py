"""What the source must keep to: few files, short import chains, docstrings that say it, errors that are let go."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


def raised_by_name(path: Path) -> Iterator[str]:
    """Yields where a function raises an error that one of its names holds afterwards.

    The error refers to the function's frame, and the frame to the error: a ring, which only the garbage collector
    frees. `except ... as` deletes its name. Any other has to be deleted in a `finally`.
    """

    def walk(node: ast.AST, deleted: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            deleted = frozenset()
        elif isinstance(node, ast.ExceptHandler) and node.name:
            deleted |= {node.name}
        elif isinstance(node, ast.Try):
            deletions = [one for one in node.finalbody if isinstance(one, ast.Delete)]
            deleted |= {name.id for one in deletions for name in one.targets if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Raise):
            names = {name.id for name in ast.walk(node.exc) if isinstance(name, ast.Name)} if node.exc else set()
            picks = isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in ("max", "min", "next")
            is_held = picks or isinstance(node.exc, ast.Name | ast.Subscript)
            if is_held and not any(name in deleted or name.lstrip("_")[0].isupper() for name in names):
                yield f"{path.relative_to(ROOT)}:{node.lineno}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deleted)

    yield from walk(ast.parse(path.read_text("utf-8")), frozenset())


def test_nothing_holds_an_error_that_it_has_raised() -> None:
    wrong = [place for path in api_files() for place in raised_by_name(path)]
    assert not wrong, "\n".join(wrong)
