"""The bad releases that the test of a rollout makes. It is slow: this says at once which line they no longer find."""

from __future__ import annotations

import pytest

from tests.integration.test_rollout import BROKEN_CACHE, ERRORS
from tests.support.rollout_fleet import ROOT, Patch


@pytest.mark.parametrize("patch", [*ERRORS, *BROKEN_CACHE], ids=lambda patch: patch[1].strip())
def test_the_source_still_has_the_line_that_a_bad_release_changes(patch: Patch) -> None:
    file, old, _ = patch
    assert (ROOT / file).read_text().count(old) == 1
