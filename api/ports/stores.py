"""What is wrong with how a Redis is set up, though it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Store = Literal["main", "breaker"]
"""REDIS_URL, and BREAKER_REDIS_URL where it is set."""


@dataclass(frozen=True, slots=True)
class StoreWarning:
    """`name` is one of docs/redis.md; `advice` says what it means and what to do."""

    store: Store
    name: str
    advice: str


class StoreChecks(Protocol):
    """What is known of the Redis servers; no I/O."""

    @property
    def warnings(self) -> Sequence[StoreWarning]: ...
