"""Records what this process's workers write to Redis: each write is one round trip, however many commands it holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from api.redis_store.connections import LagTolerantConnection
from api.redis_store.keys import Keys
from api.redis_store.scripts import lua, sections
from scripts.check_lua import STORE

_COMMANDS: Final = re.compile(rb"^\*\d+\r\n\$\d+\r\n([^\r]+)\r\n(?:\$\d+\r\n([^\r]*)\r\n)?", re.MULTILINE)


def _scripts() -> dict[str, str]:
    """The name of each script, such as `flights.join`, by its SHA-1."""
    found = {}
    for path in STORE.rglob("*.lua"):
        feature = path.relative_to(STORE).with_suffix("").as_posix()
        for name in filter(None, (part.name for part in sections(path.read_text()))):
            digest = hashlib.sha1(lua(feature, name).encode(), usedforsecurity=False).hexdigest()
            found[digest] = f"{path.stem}.{name}"
    return found


def commands_of(packed: bytes, scripts: dict[str, str]) -> str:
    """The commands of a write: scripts by name. Leaves out what workers poll, at any moment."""
    found = (tuple(part.decode("utf-8", "replace") for part in parts) for parts in _COMMANDS.findall(packed))
    return " + ".join(scripts.get(first, command) for command, first in found if not _is_polled(command, first))


def _is_polled(command: str, key: str) -> bool:
    """Returns whether a background task reads this hash again and again."""
    keys = Keys()
    return command == "HMGET" and key in (keys.experiments, keys.verifier, keys.cache_stats, keys.corpus_state)


@contextmanager
def round_trips() -> Iterator[list[str]]:
    """Yields a list that grows with each write."""
    written: list[str] = []
    scripts, send = _scripts(), LagTolerantConnection.send_packed_command

    async def recorded(self: LagTolerantConnection, command: Any, check_health: bool = True) -> None:
        if commands := commands_of(command if isinstance(command, bytes) else b"".join(command), scripts):
            written.append(commands)
        await send(self, command, check_health)

    with patch.object(LagTolerantConnection, "send_packed_command", recorded):
        yield written
