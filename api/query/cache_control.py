"""The request's `Cache-Control` (RFC 9111, section 5.2.1), as far as a cache of answers can obey it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_AGE: Final = 2**31
"""What the RFC (section 1.2.2) has a larger number of seconds stand for."""


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What the caller allows. `max_age` in seconds."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: int | None = None

    @property
    def reads(self) -> bool:
        """Whether a cached answer may be served."""
        return not (self.no_cache or self.no_store)


def parse(header: str) -> CacheControl:
    """Unknown directives are ignored, as the RFC has it; so is a `max-age` that is not a number."""
    directives = dict(_directive(part) for part in header.lower().split(",") if part.strip())
    max_age = directives.get("max-age", "")
    return CacheControl(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age=_seconds(max_age) if max_age.isascii() and max_age.isdigit() else None,
    )


def _seconds(digits: str) -> int:
    """Python refuses to read a number of thousands of digits."""
    significant = digits.lstrip("0") or "0"
    return LONGEST_AGE if len(significant) > 10 else min(int(significant), LONGEST_AGE)


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip().strip('"')
