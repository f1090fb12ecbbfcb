"""The form of the keys in Redis, as a number: docs/upgrades.md has the rule. Imports nothing local."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True, order=True)
class Schema:
    """Releases with the same `major` share a Redis, whatever their `minor`, which grows with each further field."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """None for what is no schema."""
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
        return cls(int(found[1]), int(found[2])) if found else None


SCHEMA: Final = Schema(1, 0)
"""That of this release."""
FIRST: Final = Schema(1, 0)
"""That of releases which did not say theirs."""
