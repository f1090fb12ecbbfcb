"""Traces POST /query through the code and counts the files, file changes and calls of a request.

    .venv/bin/python -m scripts.trace_request                    the table
    .venv/bin/python -m scripts.trace_request --walk exact       every step of an exact hit, for reading

The real application runs in this process with an embedded Redis and a stub of Ollama. Only code in `api/` counts. Three
kinds of requests are traced: an exact hit, a semantic hit and a miss. Needs the extras `embedded` and `dev`.

- files: distinct files that the request enters.
- changes: steps in another file than the step before. A step is a call, or a coroutine or generator that resumes.
- calls: functions, coroutines, generators and comprehensions entered. Resuming is not a new call.
- import depth: modules on the longest chain of imports within `api/`. Ignores imports inside functions and imports for
  type checking.
- files in api/: Python files that are not empty.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import io
import statistics
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, redirect_stderr
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.embedded.redis_server import embedded_redis
from tests.stub_ollama import running_stub
from tests.support.service import make_settings

ROOT: Final = Path(__file__).parents[1]
API: Final = ROOT / "api"
KINDS: Final = ("exact", "semantic", "miss")
ROUNDS: Final = 3
QUESTIONS: Final = (
    ("What is the capital of France?", "What is the capital of France, please?"),
    ("Which river flows through Vienna?", "Which river flows through Vienna, please?"),
    ("How long does a generation take at the most?", "How long does a generation take at the most, please?"),
)
"""A question and a paraphrase for each round. The stub answers with the question."""

_walk: ContextVar[object] = ContextVar("walk", default=None)
"""The walk of the current task. A task inherits it from the task that starts it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A call, or (`resumed`) a coroutine or generator that resumes."""

    file: str
    function: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """The counts of a request."""

    files: int
    changes: int
    calls: int


class Walk:
    """The steps of one request, in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._folder = f"{API}/"
        self._entered: dict[int, FrameType] = {}
        self._loop_thread = threading.get_ident()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the steps of the block and of the tasks and threads that it starts, but not of the worker's own
        tasks.
        """
        token = _walk.set(self)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            _walk.reset(token)
            self._entered.clear()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(self._folder):
            return
        if threading.get_ident() == self._loop_thread and _walk.get() is not self:
            return
        resumed = id(frame) in self._entered
        self._entered[id(frame)] = frame  # keeps the frame alive, so that no other frame gets its id
        self.steps.append(Step(file.removeprefix(self._folder), frame.f_code.co_qualname, resumed))

    @property
    def figures(self) -> Figures:
        """Counts the steps."""
        files = [step.file for step in self.steps]
        changes = sum(before != after for before, after in pairwise(files))
        return Figures(len(set(files)), changes, sum(not step.resumed for step in self.steps))


async def walks(redis_url: str, ollama_url: str) -> dict[str, list[Walk]]:
    """Returns the walks of each kind, one per round, through a worker that has already answered."""
    app = create_app(make_settings(redis_url, ollama_url))
    found: dict[str, list[Walk]] = {kind: [] for kind in KINDS}
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(app.router.lifespan_context(app))

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(served)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://ragherd"))
        for question in ("Say something first", "Say something first", "Say something first, please"):
            await _asked(client, question)
        for question, paraphrase in QUESTIONS:
            for kind, text in (("miss", question), ("exact", question), ("semantic", paraphrase)):
                found[kind].append(await _traced(client, text, kind))
    return found


async def _traced(client: httpx.AsyncClient, question: str, kind: str) -> Walk:
    walk = Walk()
    with walk.recorded():
        answer = await _asked(client, question)
    got = answer["cache"]["kind"] or answer["cache"]["status"]
    assert got == kind, f"{question} is answered by {got}, not {kind}"
    return walk


async def _asked(client: httpx.AsyncClient, question: str) -> Any:
    response = await client.post("/query", json={"question": question})
    assert response.status_code == 200, response.text
    return response.json()


def median(walks: Sequence[Walk]) -> Figures:
    """Returns the median of each count: the order of concurrent tasks varies."""
    rounds = [(walk.figures.files, walk.figures.changes, walk.figures.calls) for walk in walks]
    return Figures(*(int(statistics.median(column)) for column in zip(*rounds, strict=True)))


# -- imports -----------------------------------------------------------------------------------------------------------


def api_files() -> list[Path]:
    """Returns the Python files of `api/` that are not empty."""
    return sorted(path for path in API.rglob("*.py") if path.read_bytes().strip())


def longest_import_chain() -> list[str]:
    """Returns the longest chain of imports, from the importing module to the one at the bottom."""
    paths = {_module(path): path for path in API.rglob("*.py")}

    @cache
    def chain(module: str) -> tuple[str, ...]:
        imported = _imports(paths[module], paths) - {module}
        return (module, *_longest(map(chain, sorted(imported))))

    return list(_longest(map(chain, sorted(paths))))


def _longest(chains: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return max(chains, key=lambda chain: len(chain), default=())


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path, modules: Mapping[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in _when_imported(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules else node.module for name in names}
    return found & modules.keys()


def _when_imported(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _when_imported(node)


# -- the command -------------------------------------------------------------------------------------------------------


async def traced() -> dict[str, list[Walk]]:
    """Starts a Redis and a stub and traces all kinds. Drops the worker's log lines."""
    with embedded_redis(persistent=False) as redis, redirect_stderr(io.TextIOWrapper(io.BytesIO())):
        async with running_stub() as stub:
            return await walks(redis.url, stub.base_url)


def show(found: Mapping[str, Sequence[Walk]]) -> None:
    """Prints the table."""
    print(f"{'':14}{'files':>8}{'changes':>10}{'calls':>8}")
    for kind, of_kind in found.items():
        figures = median(of_kind)
        name = kind if kind == "miss" else f"{kind} hit"
        print(f"{name:14}{figures.files:8}{figures.changes:10}{figures.calls:8}")
    chain = longest_import_chain()
    print(f"import depth {len(chain)}: {' > '.join(chain)}")
    print(f"files in api/: {len(api_files())}")


def show_walk(walk: Walk) -> None:
    """Prints each step. `~` marks a coroutine or generator that resumes."""
    file = ""
    for step in walk.steps:
        if step.file != file:
            print(step.file)
            file = step.file
        print(f"    {'~' if step.resumed else ' '} {step.function}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts.trace_request", description=__doc__.partition("\n")[0])
    parser.add_argument("--walk", choices=KINDS, help="print the steps of one request of this kind")
    arguments = parser.parse_args()
    found = asyncio.run(traced())
    if arguments.walk:
        show_walk(found[arguments.walk][-1])
    else:
        show(found)


if __name__ == "__main__":
    main()
