"""Runs shell transcripts from Markdown and compares their output."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import Final

_VARIES: Final = (
    (r"\\\.\\\.\\\.", r".*"),  # the page leaves something out
    (r"\d+\\\.\d+", r"[\\d.]+"),  # times and scores
    (r"vm\\-\d+\\-[0-9a-f]{4}", r"\\S+"),  # a worker
    (r"ttl=\d+", r"ttl=\\d+"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and what the page shows of its output; lines may be broken for the page's sake."""

    command: str
    shown: str

    def matches(self, output: str) -> bool:
        """Whether a run printed what the page shows, but for what varies from run to run."""
        pattern = re.escape(_one_line(self.shown))
        for varying, any_such in _VARIES:
            pattern = re.sub(varying, any_such, pattern)
        return re.fullmatch(pattern, _one_line(output)) is not None


def blocks(page: str, language: str) -> list[str]:
    """The fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def steps(console: str) -> list[Step]:
    """The commands after `$ ` and `> `, each with the output up to the next."""
    found = re.findall(r"^\$ (.*(?:\n> .*)*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    return [Step(command.replace("\n> ", "\n"), shown) for command, shown in found]


def run(command: str, functions: str) -> str:
    """What a command prints in a shell that has defined `functions`."""
    script = f"{functions}\n{command}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", "", text).strip()
