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


def held_errors(source: str) -> Iterator[int]:
    """Yields the lines where a name of a function may hold an error that refers to the function's frame.

    That is a ring, which only the garbage collector frees. `except ... as` deletes its name. Any other name that holds
    an error, or a task whose error is raised here, has to be deleted in a `finally`.
    """

    def walk(node: ast.AST, deleted: frozenset[str], caught: str, tasks: frozenset[str]) -> Iterator[int]:
        names: set[str] = set()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            deleted, caught, tasks = frozenset(), "", frozenset(started_tasks(node))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            deleted, caught = deleted | {node.name}, node.name
        elif isinstance(node, ast.Try):
            deletions = [one for one in node.finalbody if isinstance(one, ast.Delete)]
            deleted |= {name.id for one in deletions for name in one.targets if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Raise) and node.exc is not None:
            names = set(raised_from(node.exc))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == caught:
            names = {one.id for one in node.targets if isinstance(one, ast.Name)}
        elif isinstance(node, ast.Call) and ast.unparse(node).endswith(f".append({caught})"):
            names = {ast.unparse(node.func).removesuffix(".append")}
        elif isinstance(node, ast.Await) or (isinstance(node, ast.Return) and isinstance(node.value, ast.Call)):
            names = set(awaited_task(node.value, tasks))
        if any(name not in deleted and name.isidentifier() for name in names):
            yield node.lineno  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deleted, caught, tasks)

    yield from walk(ast.parse(source), frozenset(), "", frozenset())


def started_tasks(function: ast.AST) -> Iterator[str]:
    """Yields the names of the tasks that a function starts."""
    starts = re.compile(r"(create_task|ensure_future|run_in_executor)$")
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names = (one.id for one in node.targets if isinstance(one, ast.Name))
            yield from names if starts.search(ast.unparse(node.value.func)) else ()


def awaited_task(value: ast.expr | None, tasks: frozenset[str]) -> Iterator[str]:
    """Yields the name of the task in `await task`, `await asyncio.shield(task)` or `return task.result()`."""
    if isinstance(value, ast.Name):
        yield from tasks & {value.id}
    elif not isinstance(value, ast.Call):
        return
    elif ast.unparse(value.func) == "asyncio.shield":
        yield from (one.id for one in value.args if isinstance(one, ast.Name))
    elif isinstance(value.func, ast.Attribute) and value.func.attr == "result":
        yield from (one.id for one in (value.func.value,) if isinstance(one, ast.Name))


def raised_from(error: ast.expr) -> Iterator[str]:
    """Yields the variables that hold a raised error: not those that it is made from, and not its class."""
    if isinstance(error, ast.Name):
        yield from () if error.id.lstrip("_")[0].isupper() else (error.id,)
    elif isinstance(error, ast.Subscript):
        yield from raised_from(error.value)
    elif isinstance(error, ast.BoolOp):
        yield from (name for one in error.values for name in raised_from(one))
    elif isinstance(error, ast.IfExp):
        yield from (name for one in (error.body, error.orelse) for name in raised_from(one))
    elif isinstance(error, ast.Call) and isinstance(error.func, ast.Attribute) and error.func.attr == "pop":
        yield from raised_from(error.func.value)
    elif isinstance(error, ast.Call) and ast.unparse(error.func) in ("max", "min", "next"):
        yield from (name for one in error.args for name in raised_from(one))


def test_nothing_holds_an_error_that_it_has_raised() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}" for path in api_files() for line in held_errors(path.read_text("utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "body",
    [
        "    raise error",
        "    raise errors[0]",
        "    try:\n        work()\n    except OSError as error:\n        last = error",
        "    try:\n        work()\n    except OSError as error:\n        errors.append(error)",
        "    task = asyncio.create_task(work())\n    await task",
        "    task = asyncio.create_task(work())\n    await asyncio.shield(task)",
        "    task = asyncio.ensure_future(work())\n    return task.result()",
        "    await asyncio.shield(given)",
    ],
)
def test_a_name_that_holds_an_error_is_found(body: str) -> None:
    assert len(list(held_errors(f"async def function(given, error, errors):\n{body}\n"))) == 1


@pytest.mark.parametrize(
    "body",
    [
        "    raise Error",
        "    await given",
        "    try:\n        work()\n    except OSError as error:\n        raise error",
        "    try:\n        await asyncio.shield(given)\n    finally:\n        del given",
        "    return await asyncio.shield(started())",
        "    task = asyncio.create_task(work())\n    return task",
    ],
)
def test_a_name_that_holds_none_is_not(body: str) -> None:
    assert list(held_errors(f"async def function(given):\n{body}\n")) == []
