"""Closes the connections that keep a worker waiting, and keeps their number within its bound.

It looks at every tick of the server. A deadline counts from the look after it, so that what has arrived while the
event loop was busy is read first.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

from worker_config.connection_table import ConnectionLimits, ConnectionTable, Phase

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
