"""Carries the stages out: each in a copy of the base, RUN inside it, what it says of a container kept beside it."""

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
from scripts.image_root.dockerfile import Instruction, Stage, assignment, assignments, expanded, timings

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
A_BUILD_LASTS: Final = 3600
"""Seconds, at the very most."""
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
    """A root and what the Dockerfile says of a container in it. `base` is the root that it began as."""

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
        """Where a path of the image is on this machine."""
        return self.root / os.path.normpath(Path(self.folder, path)).lstrip("/")


@contextmanager
def built_image(project: Path) -> Iterator[Image]:
    """The last stage of the project's Dockerfile, gone at the end; base and pip's cache are kept in .data/image."""
    kept = project / ".data" / "image"
    kept.mkdir(parents=True, exist_ok=True)
    _forget_broken_off(kept)
    base = base_root(kept)
    found, arguments = timings(project / "Dockerfile")
    with TemporaryDirectory(dir=kept, prefix="build-") as work:
        images: dict[str, Image] = {}
        for stage in found:
            root = Path(work, stage.name)
            ran(["cp", "--archive", "--reflink=auto", str(base), str(root)])
            images[stage.name] = Image(root, base, {})
            _carry_out(stage, images, arguments, project, kept / "pip-cache")
        yield images[found[-1].name]


def _forget_broken_off(kept: Path) -> None:
    """What a run that was killed has left behind."""
    for left in kept.glob("build-*"):
        if time.time() - left.stat().st_mtime > A_BUILD_LASTS:
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
    """What changes no file but the folder of the next instructions."""
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
            # From a stage all of it; from the checkout what .dockerignore lets through.
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
