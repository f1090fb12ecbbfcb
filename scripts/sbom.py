"""Prints a software bill of materials (CycloneDX 1.6, JSON) of what users install.

    .venv/bin/python -m scripts.sbom image > ragherd-image.cdx.json
    .venv/bin/python -m scripts.sbom run > ragherd-run.cdx.json

`image` is the container image, `run` is what scripts/run installs; both on Linux on x86-64 with Python 3.13. It comes
from the locked files, so it needs no network. SOURCE_DATE_EPOCH sets its time; the same commit and time give the same
bytes. The image's Debian packages are not in it: the digest of the base image stands for them.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from api import __version__
from scripts.licenses import recorded
from scripts.locked_packages import ROOT, Pin, pins, removed_from_image

PROJECT: Final = "https://github.com/ragherd/ragherd"
TARGETS: Final = ("image", "run")
PLATFORM: Final = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.13.0",
    "python_version": "3.13",
    "sys_platform": "linux",
}
"""The values of markers where the bill holds."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """What the wheel has of others. `file` is the path of its main file in the repository."""

    name: str
    version: str | None
    license: str
    file: str
    type: ComponentType


MODEL: Final = ComponentType.MACHINE_LEARNING_MODEL
BUNDLED: Final = (
    Bundled("all-MiniLM-L6-v2", None, "Apache-2.0", "api/embedders/weights/minilm-l6-v2/model.onnx", MODEL),
    Bundled("ragherd-verifier", None, "Apache-2.0", "api/embedders/weights/verifier/model.onnx", MODEL),
    Bundled("ragherd-comparator", None, "Apache-2.0", "api/embedders/weights/verifier/answers.onnx", MODEL),
    Bundled(
        "swagger-ui-dist",
        "5.35.0",
        "Apache-2.0",
        "api/endpoints/swagger_ui/swagger-ui-bundle.js",
        ComponentType.LIBRARY,
    ),
    Bundled("uplot", "1.6.32", "MIT", "api/endpoints/live_page/uPlot.iife.min.js", ComponentType.LIBRARY),
)


def main(arguments: list[str]) -> int:
    """Prints the bill of the named target."""
    if len(arguments) != 1 or arguments[0] not in TARGETS:
        print(f"usage: python -m scripts.sbom {'|'.join(TARGETS)}", file=sys.stderr)
        return 2
    print(bill(arguments[0]))
    return 0


def bill(target: str) -> str:
    """Returns the bill of materials of `image` or `run`."""
    product = Component(
        name="ragherd",
        version=__version__,
        type=ComponentType.CONTAINER if target == "image" else ComponentType.APPLICATION,
        bom_ref="ragherd",
        licenses=[LicenseExpression("Apache-2.0")],
        external_references=[ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(PROJECT))],
    )
    packages = {pin.name: (pin, _package(pin)) for pin in installed(target)}
    parts = [_bundled(one) for one in BUNDLED] + ([_base_image()] if target == "image" else [])
    bom = Bom(components=[*(component for _, component in packages.values()), *parts])
    bom.metadata.component = product
    bom.register_dependency(product, [*_wanted_by("ragherd", packages), *parts])
    for name, (_, component) in packages.items():
        bom.register_dependency(component, _wanted_by(name, packages))
    return _printed(bom, target)


def installed(target: str) -> list[Pin]:
    """Returns the packages that the target has."""
    absent = removed_from_image() if target == "image" else set()
    return [pin for pin in pins(target) if pin.applies_to(PLATFORM) and pin.name not in absent]


def _package(pin: Pin) -> Component:
    license_, _ = recorded()[pin.name]
    purl = PackageURL("pypi", name=pin.name, version=pin.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(str(purl)),
        comment="the files that are accepted: wheels of all platforms, and the source",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in pin.hashes],
    )
    return Component(
        name=pin.name,
        version=pin.version,
        purl=purl,
        bom_ref=str(purl),
        licenses=[LicenseExpression(license_)],
        external_references=[files],
    )


def _wanted_by(name: str, packages: dict[str, tuple[Pin, Component]]) -> Iterator[Component]:
    return (component for pin, component in packages.values() if name in pin.wanted_by)


def _bundled(one: Bundled) -> Component:
    digest = hashlib.sha256((ROOT / one.file).read_bytes()).hexdigest()
    return Component(
        name=one.name,
        version=one.version,
        type=one.type,
        bom_ref=one.file,
        purl=PackageURL("npm", name=one.name, version=one.version) if one.version else None,
        licenses=[LicenseExpression(one.license)],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )


def _base_image() -> Component:
    named = dict(re.findall(r"^ARG (PYTHON_\w+)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    tag, digest = named["PYTHON_TAG"], named["PYTHON_DIGEST"]
    purl = PackageURL("docker", name="python", version=digest, qualifiers={"tag": tag})
    return Component(name="python", version=tag, type=ComponentType.CONTAINER, purl=purl, bom_ref=str(purl))


def _printed(bom: Bom, target: str) -> str:
    """Returns the JSON. The serial number comes from the content."""
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    bom.serial_number = uuid5(NAMESPACE_URL, target)
    unnumbered = JsonV1Dot6(bom).output_as_string(indent=2)
    bom.serial_number = uuid5(NAMESPACE_URL, hashlib.sha256(unnumbered.encode()).hexdigest())
    return str(JsonV1Dot6(bom).output_as_string(indent=2))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
