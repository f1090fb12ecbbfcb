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
    """A command and its output as the page shows it. Lines may be wrapped."""

    command: str
    shown: str

    def matches(self, output: str) -> bool:
        """Returns whether a run printed what the page shows, except for parts that vary between runs."""
        pattern = re.escape(_one_line(self.shown))
        for varying, any_such in _VARIES:
            pattern = re.sub(varying, any_such, pattern)
        return re.fullmatch(pattern, _one_line(output)) is not None


def blocks(page: str, language: str) -> list[str]:
    """Returns the fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def steps(console: str) -> list[Step]:
    """Returns the commands after `$ ` and `> `, each with the output up to the next."""
    found = re.findall(r"^\$ (.*(?:\n> .*)*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    return [Step(command.replace("\n> ", "\n"), shown) for command, shown in found]


def run(command: str, functions: str) -> str:
    """Returns the output of a command in a shell with the given `functions`."""
    script = f"{functions}\n{command}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", "", text).strip()
