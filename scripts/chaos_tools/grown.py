"""The application of the fleet under test. A signal makes a worker use more memory than it may."""

from __future__ import annotations

import signal

from api.asgi import app as app
from scripts.chaos_tools.plan import GROW, MEMORY_LIMIT

_held: list[bytearray] = []


def _grow(number: int, frame: object) -> None:
    _held.append(bytearray(b"x") * (MEMORY_LIMIT << 20))


signal.signal(GROW, _grow)
