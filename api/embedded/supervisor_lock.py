"""One supervisor for a directory: a lock that the kernel releases when its holder is gone, however it went."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.embedded.errors import LaunchError


@contextmanager
def supervisor_lock(directory: Path) -> Iterator[None]:
    """Holds `directory` for this process; children do not inherit it. Raises `LaunchError` where another holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "supervisor.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LaunchError(
                f"{directory} is in use by another run in this checkout (process {file.read().strip() or 'unknown'}): "
                "stop that one first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
