"""Builds a root like that of python:3.13-slim-trixie: Debian without recommended packages, Python and pip, no compiler.

debootstrap builds it once. It is not the base image itself, because no registry is contacted: same Debian release,
Debian's Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

RELEASE: Final = "trixie"
PACKAGES: Final = ("python3.13", "python3-pip-whl", "ca-certificates")
DOCUMENTATION: Final = ("usr/share/doc", "usr/share/man", "usr/share/locale")
DOWNLOADS: Final = ("var/cache/apt/archives", "var/lib/apt/lists")
PIP: Final = """
set -eu
rm /usr/lib/python3.13/EXTERNALLY-MANAGED
set -- /usr/share/python-wheels/pip-*.whl
python3.13 "$1/pip" install --quiet --no-index --root-user-action ignore "$1"
rm -r /usr/share/python-wheels
ln -s /usr/bin/python3.13 /usr/local/bin/python
"""


def missing_requirement() -> str | None:
    """Returns the reason why this machine cannot build a root, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root can make a root file system"
    missing = [tool for tool in ("debootstrap", "unshare", "nsenter", "chroot", "cp") if shutil.which(tool) is None]
    return f"{', '.join(missing)} not found (scripts/install-test-tools)" if missing else None


def base_root(folder: Path) -> Path:
    """Returns `folder`/base-trixie, and builds it if it is missing. `DEBIAN_MIRROR` replaces the default mirror."""
    root = folder / f"base-{RELEASE}"
    if not root.exists():
        half_made = folder / "base.half-made"
        shutil.rmtree(half_made, ignore_errors=True)
        mirror = filter(None, [os.environ.get("DEBIAN_MIRROR")])
        include = f"--include={','.join(PACKAGES)}"
        ran(["debootstrap", "--variant=minbase", include, RELEASE, str(half_made), *mirror])
        ran(["chroot", str(half_made), "/bin/sh", "-c", PIP])
        for name in DOCUMENTATION + DOWNLOADS:
            shutil.rmtree(half_made / name, ignore_errors=True)
        half_made.rename(root)
    return root


def ran(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Runs a command and returns its output. Raises `RuntimeError` with the end of the output if it fails."""
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout
