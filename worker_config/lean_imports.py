"""Imports libraries without packages that they use if these are installed, and that a worker does not need.

Import this module before all others that import the libraries. structlog would import Rich, colorama and greenlet, to
draw on a terminal. httpx would import Rich and Pygments for its command. redis-py would import OpenTelemetry, for
metrics that are never read.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

LIBRARIES: Final = ("structlog", "httpx", "redis")
NOT_NEEDED: Final = ("colorama", "greenlet", "opentelemetry.sdk.metrics", "pygments", "rich")


def import_without(libraries: Sequence[str], packages: Sequence[str]) -> None:
    """Imports the libraries as if the packages were not installed. The packages can be imported afterwards."""
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        for name in libraries:
            importlib.import_module(name)
    finally:
        for name in hidden:
            del sys.modules[name]


import_without(LIBRARIES, NOT_NEEDED)
