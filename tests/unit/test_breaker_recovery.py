"""Recovery figures from a breaker's history."""

from __future__ import annotations

import pytest

from api.breaker.breaker_rules import DAY_MS, HOUR_MS, recovery
from api.breaker.state import State, Transition

NOW = 10 * DAY_MS


def moved(at_ms: int, before: State, after: State, probes: int = 0) -> Transition:
    return Transition(before, after, "because", "w", at_ms, 0, at_ms, probes=probes)


def outage(began: int, ended: int, probes: int = 3) -> list[Transition]:
    middle = (began + ended) // 2
    return [
        moved(began, State.CLOSED, State.OPEN),
        moved(middle, State.OPEN, State.HALF_OPEN),
        moved(ended, State.HALF_OPEN, State.CLOSED, probes),
    ]


def test_an_empty_history_means_full_availability() -> None:
    figures = recovery([], NOW)
    assert (figures.availability_1h, figures.availability_24h, figures.outages_per_hour) == (1, 1, 0)
    assert (figures.mean_seconds, figures.longest_seconds, figures.mean_probes) == (None, None, None)


def test_ended_outages_are_averaged() -> None:
    history = outage(NOW - 5 * HOUR_MS, NOW - 5 * HOUR_MS + 60_000, 3) + outage(NOW - 180_000, NOW, 5)
    figures = recovery(history, NOW)
    assert (figures.mean_seconds, figures.longest_seconds, figures.mean_probes) == (120, 180, 4)
    assert figures.outages_per_hour == 2 / 24
    assert figures.availability_1h == pytest.approx(1 - 180 / 3600)
    assert figures.availability_24h == pytest.approx(1 - 240 / 86400)


def test_failed_probes_count() -> None:
    history = [
        moved(NOW - 9_000, State.CLOSED, State.OPEN),
        moved(NOW - 8_000, State.OPEN, State.HALF_OPEN),
        moved(NOW - 7_000, State.HALF_OPEN, State.OPEN, 1),
        moved(NOW - 6_000, State.OPEN, State.HALF_OPEN),
        moved(NOW - 5_000, State.HALF_OPEN, State.CLOSED, 3),
    ]
    (only,) = recovery(history, NOW).outages
    assert (only.probes, only.lasted_ms(NOW), only.reason) == (4, 4_000, "because")


def test_an_ongoing_outage_lowers_availability_but_not_the_means() -> None:
    figures = recovery([moved(NOW - HOUR_MS // 2, State.CLOSED, State.OPEN)], NOW)
    assert figures.availability_1h == pytest.approx(0.5)
    assert figures.mean_seconds is None
    assert figures.outages[0].ended_ms is None


def test_old_outages_are_ignored() -> None:
    assert recovery(outage(NOW - 2 * DAY_MS, NOW - DAY_MS - 1), NOW).outages == ()


def test_overrides_and_resets_while_closed_are_not_outages() -> None:
    history = [moved(NOW - 2_000, State.CLOSED, State.CLOSED), moved(NOW - 1_000, State.CLOSED, State.CLOSED)]
    assert recovery(history, NOW).outages == ()
