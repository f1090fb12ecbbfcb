"""How large a part of an index each scope is, as one worker last saw it: it decides how a graph is searched."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SECONDS: Final = 10.0
"""How long a count is believed: a scope grows to another part of its index more slowly."""
SCOPES: Final = 1_000
"""As many are known; the longest unasked is forgotten."""


@dataclass(frozen=True, slots=True)
class _Counted:
    entries: int
    until: float


class ScopeShares:
    """Of the scopes in one partition. Pure: who searches counts as well, where it `is_due`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, _Counted] = OrderedDict()

    def is_due(self, scope: str) -> bool:
        """Whether it is to be counted with this search."""
        known = self._known.get(scope)
        return known is None or self._clock() >= known.until

    def note(self, scope: str, entries: int) -> None:
        """As many entries has the scope."""
        self._known[scope] = _Counted(entries, self._clock() + SECONDS)
        self._known.move_to_end(scope)
        if len(self._known) > SCOPES:
            self._known.popitem(last=False)

    def of(self, scope: str, entries: int) -> float | None:
        """Its part of an index of so many `entries`; None where it is not known."""
        known = self._known.get(scope)
        return known.entries / entries if known is not None and entries else None
