"""Reads requirements/*.txt: the version, the hashes and the dependents of each locked package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
FILES: Final = ("dev", "run", "image", "build", "rivals", "policies")
"""The locked files that scripts/lock writes."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A locked package."""

    requirement: Requirement
    hashes: tuple[str, ...]
    wanted_by: frozenset[str]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        return next(iter(self.requirement.specifier)).version

    @property
    def applies(self) -> bool:
        return self.applies_to({})

    def applies_to(self, environment: dict[str, str]) -> bool:
        """Returns whether the package is installed where the variables of markers differ from here as given."""
        return self.requirement.marker is None or self.requirement.marker.evaluate(environment)


def pins(file: str) -> list[Pin]:
    """Returns the packages in requirements/`file`.txt."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    found = []
    for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        requirement = Requirement(block.partition(" \\\n")[0])
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
        wanted_by = re.findall(r"^ +#(?: via)? +([\w.-]+)", block, re.MULTILINE)
        found.append(Pin(requirement, tuple(hashes), frozenset(wanted_by)))
    return found


def removed_from_image() -> set[str]:
    """Returns the packages that the Dockerfile uninstalls after it has installed requirements/image.txt."""
    removed = re.search(r"uninstall --yes (.*?) \\", (ROOT / "Dockerfile").read_text())
    assert removed is not None
    return {canonicalize_name(name) for name in removed[1].split()}
