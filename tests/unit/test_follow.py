"""Following folders: which files are whole, and how much may be deleted."""

from __future__ import annotations

import json

import pytest

from ragherd.follow import Stamp, due
from ragherd.journal import Journal
from ragherd.uploads import DeletionLimit
from ragherd.watch import LONGEST_WAIT, Backoff

OLD, NEW = Stamp(1, 10), Stamp(2, 20)


@pytest.mark.parametrize(
    ("before", "known", "sent"),
    [
        ({}, {}, False),  # it has just appeared
        ({"a": OLD}, {}, False),  # it grows
        ({"a": NEW}, {}, True),
        ({"a": NEW}, {"a": OLD}, True),
        ({"a": NEW}, {"a": NEW}, False),  # stored already
    ],
)
def test_a_file_is_sent_once_it_is_whole(before: dict[str, Stamp], known: dict[str, Stamp], sent: bool) -> None:
    assert due(before, {"a": NEW}, known) == (["a"] if sent else [])


def test_at_most_a_share_is_deleted_within_an_hour() -> None:
    now = 0.0
    limit = DeletionLimit(0.2, clock=lambda: now)
    assert not limit.allows(3, 10)
    assert limit.allows(2, 10)
    limit.deleted(2)
    assert not limit.allows(1, 8), "a folder that disappears bit by bit"
    now = 3600.0
    assert limit.allows(1, 8)


def test_force_and_a_share_of_all_delete_everything_and_a_share_of_nothing_keeps_everything() -> None:
    assert DeletionLimit(0.2, forced=True).allows(10, 10)
    assert DeletionLimit(1.0).allows(10, 10)
    assert not DeletionLimit(0.0).allows(1, 1000)


def test_the_refusal_names_the_figures_and_the_way_out() -> None:
    told = DeletionLimit(0.2).refusal(3, 10)
    assert "3 of 10 documents" in told
    assert "--max-delete 0.2" in told
    assert "--force" in told


def test_waits_grow_with_failures_up_to_a_limit() -> None:
    backoff = Backoff(every=3.0)
    assert 2.4 <= backoff.next() <= 3.6
    assert backoff.next(took=10.0) >= 32.0, "a slow disk is not read all the time"
    backoff.failures = 5
    assert 16 * 0.8 <= backoff.next() <= 16 * 1.2
    backoff.failures = 1000
    assert backoff.next() <= LONGEST_WAIT * 1.2


def test_an_event_is_one_line_whatever_a_file_is_called() -> None:
    lines: list[str] = []
    Journal(as_json=False, write=lines.append).tell("created", "a\nb\x1b[2J.md", chunks=1200)
    assert lines[0][9:] == "created a b[2J.md (1,200 chunks)"
    Journal(as_json=True, write=lines.append).tell("failed", "a.md", "400: no text")
    found = json.loads(lines[1])
    assert found.pop("time").endswith("Z")
    assert found == {"event": "failed", "source": "a.md", "detail": "400: no text"}
