"""Parses a Dockerfile into stages of instructions, with variables expanded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dockerfile_parse import DockerfileParser

VARIABLE: Final = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction. `flags` precede the words: `--from=build` is `{"from": "build"}`."""

    name: str
    text: str
    flags: Mapping[str, str]


@dataclass(slots=True)
class Stage:
    """The instructions from one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


def parse_stages(path: Path) -> tuple[list[Stage], dict[str, str]]:
    """Returns the stages in order, and the arguments before the first stage."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for one in _instructions(path):
        if one.name == "FROM":
            base, _, name = one.text.partition(" AS ")
            found.append(Stage(name.strip() or "final", expanded(base, arguments)))
        elif found:
            found[-1].instructions.append(one)
        else:
            assert one.name == "ARG", f"{one.name} before FROM"
            arguments.update([assignment(one.text)])
    return found, arguments


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Expands `$NAME` and `${NAME}`. An unknown name is empty, as in Docker."""
    return VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def assignment(text: str) -> tuple[str, str]:
    """Parses `NAME=value` or `NAME`."""
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def assignments(text: str) -> dict[str, str]:
    """Parses `A=1 B="two words"`."""
    return dict(assignment(word) for word in shlex.split(text))


def _instructions(path: Path) -> list[Instruction]:
    structure = DockerfileParser(fileobj=path.open("rb")).structure
    return [_instruction(one["instruction"], one["value"]) for one in structure if one["instruction"] != "COMMENT"]


def _instruction(name: str, text: str) -> Instruction:
    flags: dict[str, str] = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", text):
        flags[match[1]] = match[2]
        text = text[match.end() :]
    return Instruction(name, text, flags)
