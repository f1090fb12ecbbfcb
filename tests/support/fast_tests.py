"""A plugin of pytest for `scripts/test --fast`: it keeps the fast tests fast.

It does not import files whose tests are all marked `slow`, tries fewer examples of each property, and fails the run if
an unmarked test takes too much CPU. CPU time, unlike time on the wall, says little about what else the machine does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

SECONDS = 2.0
"""Several times what a fast test should take: CPUs that share a core are half as fast."""
EXAMPLES = 20
_SLOW_FILE = re.compile(r"^pytestmark = \[?pytest\.mark\.slow\b", re.MULTILINE)
_SECONDS_OF = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the bound as an option."""
    parser.addoption("--most-cpu", type=float, default=SECONDS, help="CPU seconds that a test without `slow` may take")


def pytest_configure(config: pytest.Config) -> None:
    """Runs after tests/conftest.py has loaded its profile of hypothesis."""
    config.stash[_SECONDS_OF] = {}
    hypothesis.settings.register_profile("fast", hypothesis.settings(), max_examples=EXAMPLES)
    hypothesis.settings.load_profile("fast")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skips files of slow tests, which cost seconds to import and to expand into cases."""
    return (
        collection_path.suffix == ".py" and _SLOW_FILE.search(collection_path.read_text("utf-8")) is not None
    ) or None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measures a test with its fixtures and child processes."""
    before = _cpu_seconds()
    try:
        return (yield)
    finally:
        item.config.stash[_SECONDS_OF][item.nodeid] = _cpu_seconds() - before


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run that passed but was too slow."""
    if _too_slow(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names the tests that took too long, and what the run took."""
    too_slow = _too_slow(config)
    if too_slow:
        terminalreporter.section("too slow: make them cheaper or mark them `slow`", red=True)
    for test, seconds in too_slow.items():
        terminalreporter.line(f"{seconds:6.1f} s of CPU {test}")
    terminalreporter.line(f"{_cpu_seconds():.1f} s of CPU")


def _too_slow(config: pytest.Config) -> dict[str, float]:
    most = config.getoption("most_cpu")
    return {test: seconds for test, seconds in config.stash[_SECONDS_OF].items() if seconds > most}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])
