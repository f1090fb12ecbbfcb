"""Which connections are due and which is closed for a new one; and the guard that closes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pytest

from worker_config.connection_guard import (
    REPORT_SECONDS,
    UNREAD_GRACE,
    UNREAD_TIMEOUT,
    ConnectionGuard,
    ConnectionLimits,
    ConnectionTable,
    Phase,
)

LIMITS = ConnectionLimits(header_timeout=10, body_timeout=30, keepalive_timeout=75, max_connections=3)


def test_each_phase_has_its_own_deadline_that_repetition_does_not_extend() -> None:
    table: ConnectionTable[str] = ConnectionTable(LIMITS)
    for phase in Phase:
        table.move(phase.value, phase, 100)
        table.move(phase.value, phase, 105)
    assert table.due(109.9) == []
    assert table.due(110) == [("silent", Phase.SILENT), ("head", Phase.HEAD)]
    assert {name for name, _ in table.due(130)} == {"silent", "head", "rest"}
    assert {name for name, _ in table.due(10_000)} == {"silent", "head", "rest", "idle"}


def test_a_new_phase_begins_a_new_deadline() -> None:
    table: ConnectionTable[str] = ConnectionTable(LIMITS)
    table.move("a", Phase.SILENT, 0)
    table.move("a", Phase.HEAD, 9)
    assert table.due(18.9) == []
    assert table.due(19) == [("a", Phase.HEAD)]
    table.move("a", Phase.ANSWERING, 18)
    assert table.due(10_000) == []
    table.forget("a")
    assert len(table) == 0


def test_idle_connections_close_first_then_heads_then_bodies_never_answered_ones() -> None:
    table: ConnectionTable[str] = ConnectionTable(LIMITS)
    table.move("answered", Phase.ANSWERING, 0)
    table.move("unread", Phase.UNREAD, 0)
    table.move("body", Phase.BODY, 1)
    table.move("younger body", Phase.BODY, 1.5)
    table.move("head", Phase.HEAD, 2)
    table.move("younger silent", Phase.SILENT, 5)
    table.move("older idle", Phase.IDLE, 3)
    table.move("rest", Phase.REST, 4)
    for expected in ("older idle", "rest", "younger silent", "head", "body", "younger body"):
        assert table.next_to_close() == expected
        table.forget(expected)
    assert table.next_to_close() is None


def test_states_add_up() -> None:
    table: ConnectionTable[Phase] = ConnectionTable(LIMITS)
    for phase in Phase:
        table.move(phase, phase, 0)
    assert table.counts() == {"idle": 3, "reading": 2, "answering": 2}


# -- the guard ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class FakeConnection:
    """A connection that is also its own transport."""

    pending: int = 0
    ended: list[str] = field(default_factory=list)
    transport: Any = None

    def __post_init__(self) -> None:
        self.transport = self

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        self.ended.append(str(status.value))

    def unsent(self) -> int:
        return self.pending

    def abort(self) -> None:
        self.ended.append("aborted")

    def close(self) -> None:
        self.ended.append("closed")

    def is_closing(self) -> bool:
        return bool(self.ended)


class FakeMetrics:
    def __init__(self) -> None:
        self.counts: Mapping[str, int] = {}
        self.closed: Counter[str] = Counter()

    def connections_are(self, counts: Mapping[str, int]) -> None:
        self.counts = counts

    def connection_closed(self, reason: str) -> None:
        self.closed[reason] += 1


@pytest.fixture
def metrics() -> FakeMetrics:
    return FakeMetrics()


@pytest.fixture
def guard(metrics: FakeMetrics) -> ConnectionGuard:
    return ConnectionGuard(LIMITS, metrics)


def entered(guard: ConnectionGuard, phase: Phase, now: float) -> FakeConnection:
    connection = FakeConnection()
    assert guard.admit(connection, now)
    guard.move(connection, phase, now)
    return connection


def test_a_silent_connection_is_closed_and_an_unfinished_head_gets_408(
    guard: ConnectionGuard, metrics: FakeMetrics
) -> None:
    silent, head = entered(guard, Phase.SILENT, 0), entered(guard, Phase.HEAD, 0)
    for now in (10, 10.1, 10.2):
        guard.sweep(now)
    assert (silent.ended, head.ended) == (["closed"], ["408"])
    assert metrics.closed == {"silent": 1, "head": 1}


def test_bytes_that_arrived_while_the_loop_was_busy_are_read_first(guard: ConnectionGuard) -> None:
    head = entered(guard, Phase.HEAD, 0)
    guard.sweep(1)
    guard.sweep(20)  # the loop was busy for 19 s, and has not read since
    assert head.ended == []
    guard.move(head, Phase.ANSWERING, 20.05)
    guard.sweep(20.1)
    assert head.ended == []


def test_a_full_worker_makes_room_and_logs_it_once(
    guard: ConnectionGuard, metrics: FakeMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    idle, head, answered = (entered(guard, phase, 0) for phase in (Phase.IDLE, Phase.HEAD, Phase.ANSWERING))
    with caplog.at_level(logging.WARNING):
        first, second = entered(guard, Phase.ANSWERING, 1), entered(guard, Phase.ANSWERING, 1)
        assert not guard.admit(FakeConnection(), 1)
        for now in (1, 1.5, 1 + REPORT_SECONDS):
            guard.sweep(now)
    assert (idle.ended, head.ended) == (["aborted"], ["503"])
    assert answered.ended == first.ended == second.ended == []
    assert metrics.closed == {"full": 2, "refused": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "MAX_CONNECTIONS (3) reached: closed 2 idle or slow connections, refused 1 new ones"
    ]


def test_a_refused_connection_is_not_counted_as_open(guard: ConnectionGuard, metrics: FakeMetrics) -> None:
    for _ in range(3):
        entered(guard, Phase.ANSWERING, 0)
    refused = FakeConnection()
    assert not guard.admit(refused, 0)
    guard.move(refused, Phase.IDLE, 0)
    guard.forget(refused)
    guard.sweep(2)
    assert metrics.counts == {"idle": 0, "reading": 0, "answering": 3}


@pytest.mark.parametrize("phase", [Phase.ANSWERING, Phase.UNREAD])
def test_a_client_that_reads_nothing_is_closed_and_a_slow_one_is_not(guard: ConnectionGuard, phase: Phase) -> None:
    stuck, slow = entered(guard, phase, 0), entered(guard, phase, 0)
    stuck.pending, slow.pending = 1000, 100_000
    for now in range(1, int(UNREAD_TIMEOUT) + 3):
        slow.pending -= 1
        guard.sweep(now)
    assert (stuck.ended, slow.ended) == (["aborted"], [])


def test_a_client_that_reads_nothing_gives_way_last(guard: ConnectionGuard) -> None:
    stuck, _, _ = (entered(guard, Phase.ANSWERING, 0) for _ in range(3))
    stuck.pending = 1000
    guard.sweep(1)
    assert not guard.admit(FakeConnection(), UNREAD_GRACE)
    assert guard.admit(FakeConnection(), UNREAD_GRACE + 1)
    assert stuck.ended == ["aborted"]


def test_a_fully_read_response_leaves_an_idle_connection(guard: ConnectionGuard, metrics: FakeMetrics) -> None:
    reader = entered(guard, Phase.UNREAD, 0)
    guard.sweep(2)
    guard.sweep(4)
    assert metrics.counts == {"idle": 1, "reading": 0, "answering": 0}
    assert reader.ended == []
