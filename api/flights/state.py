"""The words of single flight: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LEASE_MS: Final = 5_000
"""How long a leader that is not heard of keeps its lead, and a follower its place."""

KEPT_MS: Final = 10_000
"""How long the words of a flight outlive it, for followers that have not read them."""


class Verdict(StrEnum):
    """What a worker is to a flight."""

    LEAD = "lead"
    FOLLOW = "follow"
    STORED = "stored"


@dataclass(frozen=True, slots=True)
class Joined:
    """`fence` is the leader's; empty where the answer has been stored since it was asked for.

    `place` names a follower's place among the others, as it was last renewed.
    """

    verdict: Verdict
    fence: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker is told: `followed` and `left`, who reads its flight has changed; `more`, there are words."""

    what: str
    flight: str


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a flight's stream: its id there, the fence of who wrote it, and what (see `wire`)."""

    id: str
    fence: str
    body: str
