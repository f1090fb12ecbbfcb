"""Lists the contents and sizes of an image."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.image_root.build import Image

OURS: Final = "opt/ragherd"
"""The files that the Dockerfile adds to its base."""
LARGEST: Final = 20


@dataclass(frozen=True, slots=True)
class Contents:
    """Sizes in bytes of the files that the Dockerfile adds, and of the base."""

    files: int
    size: int
    base: int
    largest: dict[str, int]

    def __str__(self) -> str:
        """Formats the sizes as lines."""
        lines = [
            f"base, without what the Dockerfile removes from it: {mib(self.base)}",
            f"{OURS}: {self.files} files, {mib(self.size)}",
            *(f"  {mib(size):>10}  {name}" for name, size in self.largest.items()),
        ]
        return "\n".join(lines)


def contents(image: Image) -> Contents:
    """Counts every file once."""
    ours = image.root / OURS
    sizes = dict(_sizes(ours))
    whole = sum(size for _, size in _sizes(image.root))
    packages = ours / "lib/python3.13/site-packages"
    folders = {entry.name: sum(size for _, size in _sizes(entry)) for entry in packages.iterdir() if entry.is_dir()}
    largest = dict(sorted(folders.items(), key=lambda item: -item[1])[:LARGEST])
    return Contents(len(sizes), sum(sizes.values()), whole - sum(sizes.values()), largest)


def mib(size: int) -> str:
    """Formats a size, such as `12.3 MiB`."""
    return f"{size / 2**20:.1f} MiB"


def _sizes(root: Path) -> Iterator[tuple[Path, int]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            yield path, path.lstat().st_size


def compressed_size(image: Image) -> int:
    """Returns the gzip size of the files that the Dockerfile adds, as a registry stores them. Takes about 10 s."""
    packer = zlib.compressobj(6, wbits=31)
    total = 0
    for path, _ in _sizes(image.root / OURS):
        if path.is_file() and not path.is_symlink():
            total += len(packer.compress(path.read_bytes()))
    return total + len(packer.flush())
