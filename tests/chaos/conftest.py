"""Fixtures for the chaos tests: one fleet for all, restored to normal before each test. Prints the measurements at the
end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chaos.fleet import Fleet, running_fleet
from tests.chaos.hosts import missing_requirement

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="package")
def whole_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Runs the fleet. Skips the tests with a reason if hosts cannot be created; in CI that is a failure."""
    missing = missing_requirement()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI must show the fleet as hosts: {missing}")
    if missing:
        pytest.skip(missing)
    with running_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Fleet:
    whole_fleet.restore()
    return whole_fleet


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Returns a function that records a measurement as a line."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the measurements."""
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.line(line)
