"""A worker's connections by what they are doing, each kind in the order in which they began it.

A kind has one timeout, so the first of a kind is also the first that is due: neither the deadlines nor the choice of
a connection to close look at more connections than they close. No I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

C = TypeVar("C")


class Phase(StrEnum):
    """What a connection is doing. The value is the reason that metrics give when its time is up."""

    SILENT = "silent"
    """Accepted, and nothing has come."""
    IDLE = "idle"
    """Between two requests."""
    HEAD = "head"
    """A head has begun and not ended."""
    BODY = "body"
    """A body is being read. It has its own deadline, `BODY_TIMEOUT` in the application."""
    REST = "rest"
    """The response is sent, and the body that nobody read is still coming."""
    ANSWERING = "answering"
    UNREAD = "unread"
    """No request is under way, and the client has not yet taken the last response."""


IDLE_PHASES: Final = (Phase.SILENT, Phase.IDLE, Phase.REST)
STATES: Final[Mapping[str, tuple[Phase, ...]]] = {
    "idle": IDLE_PHASES,
    "reading": (Phase.HEAD, Phase.BODY),
    "answering": (Phase.ANSWERING, Phase.UNREAD),
}
"""What the gauge tells apart."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds, and how many connections one worker holds."""

    header_timeout: float = 10.0
    body_timeout: float = 30.0
    keepalive_timeout: float = 75.0
    most: int = 1000


class ConnectionTable(Generic[C]):
    """Times are those of one clock that never goes back."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._phase: dict[C, Phase] = {}
        self._since: dict[Phase, OrderedDict[C, float]] = {phase: OrderedDict() for phase in Phase}
        self._timeout = {
            Phase.SILENT: limits.header_timeout,
            Phase.HEAD: limits.header_timeout,
            Phase.REST: limits.body_timeout,
            Phase.IDLE: limits.keepalive_timeout,
        }

    def __len__(self) -> int:
        return len(self._phase)

    def __contains__(self, connection: C) -> bool:
        return connection in self._phase

    def move(self, connection: C, phase: Phase, now: float) -> None:
        """Enters a connection, or says what it does now. Saying the same again does not prolong it."""
        before = self._phase.get(connection)
        if before is phase:
            return
        if before is not None:
            del self._since[before][connection]
        self._phase[connection] = phase
        self._since[phase][connection] = now

    def forget(self, connection: C) -> None:
        """The connection is closed."""
        phase = self._phase.pop(connection, None)
        if phase is not None:
            del self._since[phase][connection]

    def due(self, now: float) -> list[tuple[C, Phase]]:
        """The connections whose time is up."""
        found: list[tuple[C, Phase]] = []
        for phase, timeout in self._timeout.items():
            for connection, since in self._since[phase].items():
                if since + timeout > now:
                    break
                found.append((connection, phase))
        return found

    def first_to_go(self) -> C | None:
        """Which one gives way to a new connection; None: every request is being answered.

        The one that has been idle for longest; without one the oldest head; without one the oldest body.
        """
        return self._oldest(*IDLE_PHASES) or self._oldest(Phase.HEAD) or self._oldest(Phase.BODY)

    def is_in(self, connection: C, *phases: Phase) -> bool:
        """Whether a connection is in one of these phases."""
        return self._phase.get(connection) in phases

    def of(self, *phases: Phase) -> list[C]:
        """The connections in these phases."""
        return [connection for phase in phases for connection in self._since[phase]]

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        return {state: sum(len(self._since[phase]) for phase in phases) for state, phases in STATES.items()}

    def _oldest(self, *phases: Phase) -> C | None:
        firsts = [next(iter(self._since[phase].items())) for phase in phases if self._since[phase]]
        return min(firsts, key=lambda first: first[1])[0] if firsts else None
