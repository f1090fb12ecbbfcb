"""Starts modules of these packages as processes, independent of the working directory."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]


def module_command(module: str, *arguments: str) -> list[str]:
    """Returns `python -m module` without the working directory on the search path, which may contain an unrelated
    `api`.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` for `module_command`. In a checkout that is not installed, Python finds the packages with
    it.
    """
    if Path(sysconfig.get_path("purelib")) == ROOT:
        return dict(environment)
    given = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), given)))}
