"""The control groups that a process is in, from its own to the topmost: where a container's limits are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_directories(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The directories that may hold a limit of `controller` (`cpu`, `memory`); none where there are no groups.

    Version 2 and version 1. Each line of the membership is `id:controllers:path`. Inside a container the path may be
    that of the host: then only the topmost directory exists, and is the right one.
    """
    try:
        membership = (root / "proc/self/cgroup").read_text()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases = [mounted]
        elif controller in controllers.split(","):
            bases = [mounted / controllers, mounted / controller]
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for base in bases:
            yield from (base / part for part in (group, *group.parents))
