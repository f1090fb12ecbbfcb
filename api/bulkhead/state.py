"""Plain values of the bulkhead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from api.bulkhead.ticket import tenant_of

Reason = Literal["queue_full", "deadline", "displaced"]
"""Why a call got no permit: no place in line; its wait was over; its place went to a tenant that had fewer."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The bounds of one bulkhead over the fleet. Durations in seconds, `lease_ms` in milliseconds.

    `reserve`: how many of the `limit` permits background work never holds, so that a user finds one free.
    """

    limit: int = 4
    max_queue: int = 64
    max_wait: float = 30.0
    lease_ms: int = 10_000
    reserve: int = 0


class Verdict(IntEnum):
    """What asking for a permit led to."""

    REJECTED = 0
    GRANTED = 1
    QUEUED = 2


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to one who asked. `ticket` is empty when rejected; `retry_after` (seconds) is what the line takes."""

    verdict: Verdict
    ticket: str
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Return:
    """A ticket that goes back, of a permit or of a place in line. `held_ms` is -1 where no call was made."""

    ticket: str
    held_ms: int = -1
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """Told to the worker whose ticket it is: a permit, or (`reason`) that there will be none."""

    ticket: str
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One bulkhead at one moment. `stats`: counts by name, and `service_ms`."""

    in_use: int
    queue: tuple[str, ...]
    stats: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting_by_tenant(self) -> dict[str, int]:
        """Tickets in line by tenant."""
        return dict(Counter(map(tenant_of, self.queue)))
