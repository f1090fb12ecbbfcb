"""The application of the fleet under test. One signal makes a worker use more memory than it may.

Another fills Python's free lists of tuples. CPython keeps up to 2,000 freed tuples of each length up to 20, 5 MB, and
gives them back only when it collects the oldest garbage. A worker fills its lists within an hour or two.
"""

from __future__ import annotations

import signal
from typing import Final

from api.asgi import app as app
from scripts.chaos_tools.plan import FILL, GROW, MEMORY_LIMIT

KEPT_TUPLES: Final = 2_000
LENGTHS: Final = range(1, 21)

_held: list[bytearray] = []


def _grow(number: int, frame: object) -> None:
    _held.append(bytearray(b"x") * (MEMORY_LIMIT << 20))


def _fill(number: int, frame: object) -> None:
    tuples = [tuple(range(length)) for length in LENGTHS for _ in range(KEPT_TUPLES)]
    tuples.clear()


signal.signal(GROW, _grow)
signal.signal(FILL, _fill)
