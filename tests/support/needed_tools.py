"""Tools that some tests need. If one is missing, a local run skips the tests and CI fails."""

from __future__ import annotations

import os
import shutil

import pytest


def need_tool(name: str) -> str:
    """Returns the path of the program."""
    found = shutil.which(name)
    if found is None:
        not_here(f"{name} is not on the path (as root: scripts/install-test-tools)")
    assert found is not None
    return found


def not_here(reason: str) -> None:
    """Skips the test on a developer's machine and fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI must run this")
    pytest.skip(reason)
