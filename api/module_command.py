"""How a process starts another one from a module of these packages, whatever the working directory holds."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]


def module_command(module: str, *arguments: str) -> list[str]:
    """`python -m module`, without the working directory on the search path: a folder `api` there is somebody else's."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for `module_command`: in a checkout that was never installed, Python finds the packages by it."""
    if Path(sysconfig.get_path("purelib")) == ROOT:
        return dict(environment)
    given = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), given)))}
