"""docs/rollout-transcript.md shows the commands that `scripts.walk_rollout` runs today, with plausible output."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ragherd.commands import COMMANDS
from scripts import walk_rollout
from tests.support import transcripts

PAGE = (Path(__file__).parents[2] / "docs" / "rollout-transcript.md").read_text()


class Noted(walk_rollout.Walk):
    """Notes commands and runs none."""

    def run(self, command: str, version: str = "", code: int = 0) -> str:
        self.note(command)
        return "1\n" if command.endswith("echo $?") else ""

    def launch(self, command: str, version: str) -> None:
        """Starts nothing."""

    def stop(self, command: str) -> None:
        """Stops nothing."""

    def asking(self, command: str, version: str) -> Any:
        class Ended:
            def wait(self, seconds: float) -> None:
                """Has ended."""

        return Ended()


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Noted:
    for name in ("live_page_pictured", "report_pictured"):
        monkeypatch.setattr(walk_rollout, name, lambda walk: None)
    monkeypatch.setattr(walk_rollout, "outage", lambda walk: nullcontext())
    walk = Noted(tmp_path, {}, {}, {})
    for step in walk_rollout.STEPS:
        step(walk)
    return walk


def test_the_page_has_every_command_of_the_walk_in_order(noted: Noted) -> None:
    shown = [step.command for block in transcripts.blocks(PAGE, "console") for step in transcripts.steps(block)]
    walked = [line.removeprefix("$ ") for line in noted.lines if line.startswith("$ ")]
    assert shown == walked
    used = set(re.findall(r"\bragherd ([a-z][a-z-]+)", "\n".join(walked)))
    assert {"preflight", "serve", "smoke", "load-test", "monitor", "report", "restore"} <= used <= set(COMMANDS)


def test_the_outage_the_verdict_and_the_way_back_are_on_the_page() -> None:
    assert "OPEN" in PAGE
    assert re.search(r"Recommendation: (Wait|Roll back)", PAGE)
    assert re.search(r"newer answers: deleted [1-9]", PAGE)
    assert "0.2.0" in PAGE
    assert not re.search(r"Bearer|[0-9a-f]{40}", PAGE)
