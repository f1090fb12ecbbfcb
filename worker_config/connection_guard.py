"""Closes connections that keep a worker waiting, and limits their number.

The guard sweeps at every tick of the server. A connection is closed only if it was due at the previous sweep too, so
that data that arrived while the event loop was busy is read first.

The table groups connections by phase, in the order in which they entered it. Each phase has one timeout, so the first
connection of a phase is also the first that is due. Neither the deadlines nor the choice of a connection to close
inspect more connections than they close. No I/O.
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
    """The state of a connection. The value is the `reason` in the metrics after a timeout."""

    SILENT = "silent"
    """Accepted; no bytes received."""
    IDLE = "idle"
    """Between two requests."""
    HEAD = "head"
    """Receiving a head."""
    BODY = "body"
    """Receiving a body. The application has a deadline for it, `BODY_TIMEOUT`."""
    REST = "rest"
    """The response is sent, and the rest of an unread body is still arriving."""
    ANSWERING = "answering"
    UNREAD = "unread"
    """No request is in progress, and the client has not read the last response yet."""


IDLE_PHASES: Final = (Phase.SILENT, Phase.IDLE, Phase.REST)
STATES: Final[Mapping[str, tuple[Phase, ...]]] = {
    "idle": IDLE_PHASES,
    "reading": (Phase.HEAD, Phase.BODY),
    "answering": (Phase.ANSWERING, Phase.UNREAD),
}
"""The states of the gauge."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Timeouts in seconds, and the maximum number of connections of a worker."""

    header_timeout: float = 10.0
    body_timeout: float = 30.0
    keepalive_timeout: float = 75.0
    max_connections: int = 1000


class ConnectionTable(Generic[C]):
    """Connections by phase. Times come from one monotonic clock."""

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
        """Adds a connection, or changes its phase. The same phase again does not extend its deadline."""
        before = self._phase.get(connection)
        if before is phase:
            return
        if before is not None:
            del self._since[before][connection]
        self._phase[connection] = phase
        self._since[phase][connection] = now

    def forget(self, connection: C) -> None:
        """Removes a closed connection."""
        phase = self._phase.pop(connection, None)
        if phase is not None:
            del self._since[phase][connection]

    def due(self, now: float) -> list[tuple[C, Phase]]:
        """Returns the connections whose time is up."""
        found: list[tuple[C, Phase]] = []
        for phase, timeout in self._timeout.items():
            for connection, since in self._since[phase].items():
                if since + timeout > now:
                    break
                found.append((connection, phase))
        return found

    def next_to_close(self) -> C | None:
        """Returns the connection to close for a new one, or None if every request is being answered.

        The longest idle connection comes first, then the oldest head, then the oldest body.
        """
        return self._oldest(*IDLE_PHASES) or self._oldest(Phase.HEAD) or self._oldest(Phase.BODY)

    def is_in(self, connection: C, *phases: Phase) -> bool:
        """Returns whether a connection is in one of these phases."""
        return self._phase.get(connection) in phases

    def of(self, *phases: Phase) -> list[C]:
        """Returns the connections in these phases."""
        return [connection for phase in phases for connection in self._since[phase]]

    def counts(self) -> dict[str, int]:
        """Returns the number of connections in each state."""
        return {state: sum(len(self._since[phase]) for phase in phases) for state, phases in STATES.items()}

    def _oldest(self, *phases: Phase) -> C | None:
        firsts = [next(iter(self._since[phase].items())) for phase in phases if self._since[phase]]
        return min(firsts, key=lambda first: first[1])[0] if firsts else None


UNREAD_TIMEOUT: Final = 300.0
"""Seconds without progress after which a client that does not read its response is closed. Streams use
`STREAM_STALL_TIMEOUT`.
"""
UNREAD_GRACE: Final = 10.0
"""The same timeout if there is no room for a new connection."""
MEASURE_SECONDS: Final = 1.0
"""Interval of the gauge and of the check for unread responses."""
REPORT_SECONDS: Final = 10.0
"""Interval between log lines about the connection limit."""


class Connection(Protocol):
    """The part of a connection that the guard uses."""

    transport: Any

    def refuse(self, status: HTTPStatus, detail: str) -> None: ...

    def unsent(self) -> int: ...


class ConnectionMetrics(Protocol):
    """Receives the guard's counts."""

    def connections_are(self, counts: Mapping[str, int]) -> None: ...

    def connection_closed(self, reason: str) -> None: ...


class ConnectionGuard:
    """Guards the connections of one worker. Call `sweep` at least once per second."""

    def __init__(self, limits: ConnectionLimits, metrics: ConnectionMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._table: ConnectionTable[Connection] = ConnectionTable(limits)
        self._unsent: OrderedDict[Connection, tuple[int, float]] = OrderedDict()
        """Bytes that a client has not read, and since when. The first has made no progress for the longest time."""
        self._swept = self._measured = 0.0
        self._reported = -REPORT_SECONDS
        self._full: Counter[str] = Counter()
        self._log = logging.getLogger("worker_config.worker")

    def admit(self, connection: Connection, now: float) -> bool:
        """Adds a new connection and closes another if necessary. Returns False if there is no room."""
        if len(self._table) >= self._limits.max_connections and not self._make_room(now):
            return False
        self._table.move(connection, Phase.SILENT, now)
        return True

    def move(self, connection: Connection, phase: Phase, now: float) -> None:
        """Changes the phase of a connection. Refused connections stay unknown."""
        if connection in self._table:
            self._table.move(connection, phase, now)

    def forget(self, connection: Connection) -> None:
        """Removes a closed connection."""
        self._table.forget(connection)
        self._unsent.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Closes connections that were due at the previous sweep and still are."""
        for connection, phase in self._table.due(self._swept):
            self._close_due(connection, phase, now)
        self._swept = now
        if now - self._measured >= MEASURE_SECONDS:
            self._measured = now
            self._measure(now)
        if self._full and now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._report()

    def _close_due(self, connection: Connection, phase: Phase, now: float) -> None:
        self._metrics.connection_closed(phase.value)
        self._table.move(connection, Phase.UNREAD, now)
        if phase is Phase.HEAD:
            seconds = f"{self._limits.header_timeout:g}"
            connection.refuse(HTTPStatus.REQUEST_TIMEOUT, f"The request head was not complete within {seconds} s.")
        else:
            connection.transport.close()

    def _make_room(self, now: float) -> bool:
        connection = self._table.next_to_close() or self._unread_for(UNREAD_GRACE, now)
        reason = "refused" if connection is None else "full"
        self._full[reason] += 1
        self._metrics.connection_closed(reason)
        if connection is None:
            return False
        is_reading = self._table.is_in(connection, Phase.HEAD, Phase.BODY)
        self.forget(connection)
        if is_reading:
            detail = "This worker has reached its connection limit, and the request arrived too slowly."
            connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE, detail)
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
            "MAX_CONNECTIONS (%s) reached: closed %s idle or slow connections, refused %s new ones",
            self._limits.max_connections,
            closed,
            refused,
        )
