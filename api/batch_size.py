"""How many texts one embedding call takes: few at first, more while that is quick, fewer where it is slow. Pure.

A call holds a permit, and one of Ollama's slots, to its end: a question waits no longer than others' batches take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 4
TARGET_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class BatchSize:
    """`texts` of the next call, between 1 and `most`; `target`: the seconds that one call should take at most."""

    texts: int = FIRST
    most: int = 32
    target: float = TARGET_SECONDS

    def after(self, texts: int, seconds: float) -> BatchSize:
        """The size once a call of so many texts took so long.

        It doubles while a call takes under half of the target. Over it, it shrinks to what the time would have been
        enough for, at least by half.
        """
        if seconds > self.target:
            fits = int(texts * self.target / seconds)
            return self._of(min(fits, self.texts // 2))
        if texts >= self.texts and seconds < self.target / 2:
            return self._of(self.texts * 2)
        return self

    def halved(self) -> BatchSize:
        """The size once a call failed for want of time."""
        return self._of(self.texts // 2)

    def _of(self, texts: int) -> BatchSize:
        return BatchSize(max(1, min(texts, self.most)), self.most, self.target)
