"""What the official npm packages do through the service: runs tests/npm/check.js, whose checks are listed here.

The packages are installed once, at the versions of tests/npm/package-lock.json, into .data/npm.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "tests" / "npm"
INSTALLED: Final = ROOT / ".data" / "npm"
FILES: Final = ("check.js", "package.json", "package-lock.json")
INSTALL: Final = ("ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
SECONDS: Final = 120.0

FEATURES: Final = ("chat", "stream", "tools", "structured output", "embeddings", "models", "other")
"""The checks of each package in check.js."""


def _run_check(package: str, feature: str, url: str) -> None:
    from tests.support.needed_tools import need_tool

    node = need_tool("node")
    install()
    check = (node, "check.js", package, feature, url)
    done = subprocess.run(check, cwd=INSTALLED, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr


def install() -> None:
    """Installs the packages, unless they are installed. Processes that run tests side by side take turns."""
    from tests.support.needed_tools import need_tool, not_here

    npm = need_tool("npm")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in FILES)).hexdigest()
        stamp = INSTALLED / ".digest"
        if stamp.exists() and stamp.read_text() == digest:
            return
        for name in FILES:
            shutil.copy(SOURCE / name, INSTALLED)
        done = subprocess.run((npm, *INSTALL), cwd=INSTALLED, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode != 0:
            not_here(f"npm cannot install tests/npm/package.json: {done.stderr.strip()}")
        stamp.write_text(digest)


def _checks(package: str) -> Mapping[str, Callable[[str], None]]:
    return {feature: functools.partial(_run_check, package, feature) for feature in FEATURES}


NPM_CLIENTS: Final = {f"{package} (npm)": _checks(package) for package in ("ollama", "openai")}
