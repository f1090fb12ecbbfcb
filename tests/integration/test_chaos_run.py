"""A short run of chaos: a fleet under load, faults of one seed, and nothing wrong, lost or late."""

from __future__ import annotations

import pytest

from scripts.chaos_tools.plan import made
from scripts.chaos_tools.run import run

pytestmark = [pytest.mark.processes, pytest.mark.alone, pytest.mark.once(reason="it is long")]
KINDS = ("worker killed", "redis killed", "redis emptied", "ollama cuts answers", "ollama hangs", "redis read-only")
SECONDS = 24.0


def test_faults_make_no_answer_wrong_lost_or_late() -> None:
    """`scripts/chaos --seeds 20 --seconds 60` runs before a release: all kinds of faults."""
    verdict = run(1, made(1, SECONDS, KINDS), SECONDS)
    assert (verdict.wrong, verdict.lost, verdict.hung) == ([], [], [])
    assert len(verdict.injected) >= 4
    assert verdict.outcomes["ok"] > 100
