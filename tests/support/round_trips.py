"""Records what this process's workers write to Redis: each write is one round trip, however many commands it holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from api.redis_store.health_gated import LagTolerantConnection
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
    """The commands of a write: scripts by name."""
    found = (tuple(part.decode("utf-8", "replace") for part in parts) for parts in _COMMANDS.findall(packed))
    return " + ".join(scripts.get(first, command) for command, first in found)


class RoundTrips(list[str]):
    """The commands of each write, in order. `waits` are sent together if none was answered before all were written."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, bool]] = []

    def waits(self, awaited: Sequence[str]) -> list[list[str]]:
        """The writes that begin with one of these commands, together if none was answered before the last."""
        groups: list[list[str]] = [[]]
        for commands, is_reply in self.events:
            if not commands.startswith(tuple(awaited)):
                continue
            if not is_reply:
                groups[-1].append(commands)
            elif groups[-1]:
                groups.append([])
        return [group for group in groups if group]


@contextmanager
def round_trips() -> Iterator[RoundTrips]:
    """Yields a list that grows with each write."""
    written = RoundTrips()
    scripts, asked = _scripts(), dict[int, str]()
    send, read = LagTolerantConnection.send_packed_command, LagTolerantConnection.read_response

    async def recorded(self: LagTolerantConnection, command: Any, check_health: bool = True) -> None:
        asked[id(self)] = commands_of(command if isinstance(command, bytes) else b"".join(command), scripts)
        written.append(asked[id(self)])
        written.events.append((asked[id(self)], False))
        await send(self, command, check_health)

    async def answered(self: LagTolerantConnection, *arguments: Any, **options: Any) -> Any:
        reply = await read(self, *arguments, **options)
        written.events.append((asked.get(id(self), ""), True))
        return reply

    with (
        patch.object(LagTolerantConnection, "send_packed_command", recorded),
        patch.object(LagTolerantConnection, "read_response", answered),
    ):
        yield written
