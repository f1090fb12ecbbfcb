"""Builds the root of the image and prints its contents."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.image_root.base import missing_requirement
from scripts.image_root.build import built_image
from scripts.image_root.contents import OURS, compressed_size, contents, mib


def main() -> None:
    """Prints sizes, the largest packages, and the command that starts a container."""
    if reason := missing_requirement():
        sys.exit(f"Cannot build the image's root on this machine: {reason}.")
    with built_image(Path(__file__).parents[2]) as image:
        print(contents(image))
        print(f"{OURS} compressed, as in a registry: {mib(compressed_size(image))}")
        print(f"user {image.user}, in {image.folder}: {' '.join([*image.entrypoint, *image.command])}")


if __name__ == "__main__":
    main()
