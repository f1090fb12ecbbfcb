"""Closes the connections that keep a worker waiting, and keeps their number within its bound.

It looks at every tick of the server. A deadline counts from the look after it, so that what has arrived while the
event loop was busy is read first.

A worker's connections by what they are doing, each kind in the order in which they began it.

A kind has one timeout, so the first of a kind is also the first that is due: neither the deadlines nor the choice of
a connection to close look at more connections than they close. No I/O.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, Generic, Protocol, TypeVar

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


UNREAD_TIMEOUT: Final = 300.0
"""Seconds in which a client takes nothing of a response. A stream has its own, `STREAM_STALL_TIMEOUT`."""
UNREAD_GRACE: Final = 10.0
"""The same where there is no room for a new connection."""
MEASURE: Final = 1.0
"""Seconds between two looks at how much was taken, and two settings of the gauge."""
REPORT: Final = 10.0
"""Seconds between two lines in the log that say that the bound is reached."""


class Connection(Protocol):
    """What the guard asks of a connection."""

    transport: Any

    def turn_away(self, status: HTTPStatus, detail: str) -> None: ...

    def unsent(self) -> int: ...


class ConnectionMetrics(Protocol):
    """Where it counts."""

    def connections_are(self, counts: Mapping[str, int]) -> None: ...

    def connection_closed(self, reason: str) -> None: ...


class ConnectionGuard:
    """Of one worker. `sweep` is called at least every second."""

    def __init__(self, limits: ConnectionLimits, metrics: ConnectionMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._table: ConnectionTable[Connection] = ConnectionTable(limits)
        self._unsent: OrderedDict[Connection, tuple[int, float]] = OrderedDict()
        """Bytes that a client has not taken, and since when so many: the first has taken nothing for longest."""
        self._swept = self._measured = 0.0
        self._reported = -REPORT
        self._full: Counter[str] = Counter()
        self._log = logging.getLogger("worker_config.worker")

    def admit(self, connection: Connection, now: float) -> bool:
        """A new connection, for which another one may have to go. False: there is no room for it."""
        if len(self._table) >= self._limits.most and not self._make_room(now):
            return False
        self._table.move(connection, Phase.SILENT, now)
        return True

    def is_now(self, connection: Connection, phase: Phase, now: float) -> None:
        """What a connection does from now on. One that was refused stays unknown."""
        if connection in self._table:
            self._table.move(connection, phase, now)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._table.forget(connection)
        self._unsent.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Closes those that were due at the last look and still are."""
        for connection, phase in self._table.due(self._swept):
            self._give_up(connection, phase, now)
        self._swept = now
        if now - self._measured >= MEASURE:
            self._measured = now
            self._measure(now)
        if self._full and now - self._reported >= REPORT:
            self._reported = now
            self._report()

    def _give_up(self, connection: Connection, phase: Phase, now: float) -> None:
        self._metrics.connection_closed(phase.value)
        self._table.move(connection, Phase.UNREAD, now)
        if phase is Phase.HEAD:
            seconds = f"{self._limits.header_timeout:g}"
            connection.turn_away(HTTPStatus.REQUEST_TIMEOUT, f"The head of the request did not end within {seconds} s.")
        else:
            connection.transport.close()

    def _make_room(self, now: float) -> bool:
        connection = self._table.first_to_go() or self._unread_for(UNREAD_GRACE, now)
        reason = "refused" if connection is None else "full"
        self._full[reason] += 1
        self._metrics.connection_closed(reason)
        if connection is None:
            return False
        is_reading = self._table.is_in(connection, Phase.HEAD, Phase.BODY)
        self.forget(connection)
        if is_reading:
            detail = "This worker has more connections than it can hold, and the request took long to come."
            connection.turn_away(HTTPStatus.SERVICE_UNAVAILABLE, detail)
        else:
            connection.transport.abort()
        return True

    def _measure(self, now: float) -> None:
        self._metrics.connections_are(self._table.counts())
        for connection in self._table.of(Phase.ANSWERING, Phase.UNREAD):
            size = connection.unsent()
            if size != self._unsent.get(connection, (0, now))[0]:
                self._unsent[connection] = (size, now)
                self._unsent.move_to_end(connection)
            if size == 0:
                self._unsent.pop(connection, None)
                if self._table.is_in(connection, Phase.UNREAD) and not connection.transport.is_closing():
                    self._table.move(connection, Phase.IDLE, now)
        while unread := self._unread_for(UNREAD_TIMEOUT, now):
            self._metrics.connection_closed(Phase.UNREAD.value)
            self.forget(unread)
            unread.transport.abort()

    def _unread_for(self, seconds: float, now: float) -> Connection | None:
        connection, (_, since) = next(iter(self._unsent.items()), (None, (0, now)))
        return connection if now - since >= seconds else None

    def _report(self) -> None:
        closed, refused = self._full["full"], self._full["refused"]
        self._full.clear()
        self._log.warning(
            "MAX_CONNECTIONS (%s) is reached: %s idle or slow connections closed to make room, %s new ones refused",
            self._limits.most,
            closed,
            refused,
        )
