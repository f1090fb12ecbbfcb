"""Builds the stages of a Dockerfile, each in a copy of the base. RUN executes inside; metadata is kept next to the
root.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from scripts.image_root.base import base_root, ran
from scripts.image_root.dockerfile import Instruction, Stage, assignment, assignments, expanded, parse_stages

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_TIMEOUT: Final = 3600
"""Maximum seconds for a build."""
OF_THE_HOST: Final = ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
RUN: Final = """
set -eu
root=$1 cache=$2 folder=$3 command=$4
mount -t proc proc "$root/proc"
for name in {host}; do
  if [ -e "/$name" ]; then
    [ -e "$root/$name" ] || : >"$root/$name"
    mount --bind "/$name" "$root/$name"
  fi
done
if [ -n "$cache" ]; then
  mkdir -p "$root$cache"
  mount --bind "$5" "$root$cache"
fi
exec chroot "$root" env --chdir="$folder" /bin/sh -c "$command"
""".format(host=" ".join(OF_THE_HOST))


@dataclass(slots=True)
class Image:
    """A root with the Dockerfile's container settings. `base` is the root it started from."""

    root: Path
    base: Path
    arguments: dict[str, str]
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    labels: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)

    def inside(self, path: str) -> Path:
        """Returns the path on this machine of a path in the image."""
        return self.root / os.path.normpath(Path(self.folder, path)).lstrip("/")


@contextmanager
def built_image(project: Path) -> Iterator[Image]:
    """Builds the last stage of the project's Dockerfile and deletes it at the end. Keeps base and pip cache in
    .data/image.
    """
    kept = project / ".data" / "image"
    kept.mkdir(parents=True, exist_ok=True)
    _delete_leftovers(kept)
    base = base_root(kept)
    found, arguments = parse_stages(project / "Dockerfile")
    with TemporaryDirectory(dir=kept, prefix="build-") as work:
        images: dict[str, Image] = {}
        for stage in found:
            root = Path(work, stage.name)
            ran(["cp", "--archive", "--reflink=auto", str(base), str(root)])
            images[stage.name] = Image(root, base, {})
            _carry_out(stage, images, arguments, project, kept / "pip-cache")
        yield images[found[-1].name]


def _delete_leftovers(kept: Path) -> None:
    """Deletes the leftovers of a killed run."""
    for left in kept.glob("build-*"):
        if time.time() - left.stat().st_mtime > BUILD_TIMEOUT:
            shutil.rmtree(left, ignore_errors=True)


def _carry_out(
    stage: Stage, images: Mapping[str, Image], arguments: Mapping[str, str], project: Path, cache: Path
) -> None:
    image = images[stage.name]
    for one in stage.instructions:
        match one.name:
            case "ARG":
                name, default = assignment(one.text)
                image.arguments[name] = default or arguments.get(name, "")
            case "COPY" if "from" in one.flags:
                _copy(one, image, images[one.flags["from"]].root)
            case "COPY":
                _copy(one, image, project)
            case "RUN":
                _run(one, image, cache)
            case _:
                _describe(one, image)


def _describe(one: Instruction, image: Image) -> None:
    """Applies an instruction that changes no files except the working directory."""
    variables = image.arguments | image.environment
    match one.name:
        case "ENV":
            image.environment |= assignments(expanded(one.text, variables))
        case "LABEL":
            image.labels |= assignments(expanded(one.text, variables))
        case "WORKDIR":
            image.folder = one.text
            image.inside(".").mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = one.text
        case "ENTRYPOINT":
            image.entrypoint = json.loads(one.text)
        case "CMD":
            image.command = json.loads(one.text)
        case "HEALTHCHECK":
            image.health_check = json.loads(one.text.partition("CMD")[2])
        case "EXPOSE":
            pass
        case _:
            raise NotImplementedError(one.name)


def _copy(one: Instruction, image: Image, source: Path) -> None:
    *names, to = one.text.split()
    target = image.inside(to)
    for name in names:
        origin = source / name.lstrip("/")
        if origin.is_dir():
            # from a stage everything; from the checkout only files that .dockerignore admits
            ignored = None if one.flags else shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(origin, target)


def _run(one: Instruction, image: Image, cache: Path) -> None:
    cache.mkdir(exist_ok=True)
    mounted = dict(part.partition("=")[::2] for part in one.flags.get("mount", "").split(","))
    arguments = [str(image.root), mounted.get("target", ""), image.folder, one.text, str(cache)]
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_FIND_LINKS"}
    output = ran(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", RUN, "sh", *arguments],
        pip | {"HOME": "/root"} | image.environment,
    )
    logging.getLogger(__name__).info("RUN %s\n%s", one.text, output)
