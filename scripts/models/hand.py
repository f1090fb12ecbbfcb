"""A Redis client without a connection. A worker that uses it waits before each command until the explorer answers.

The stores of the service run on it unchanged, as coroutines that nobody but the explorer resumes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis

from api.redis_store.encryption import NO_CIPHER
from api.redis_store.health_gated import HealthGated, HealthGatedClients

T = TypeVar("T")
_OPERATION: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
LuaChange = Callable[[str], str]
"""Changes the text of a script, to show that the check would find a fault in it."""


def unchanged(lua: str) -> str:
    """Leaves a script as it is."""
    return lua


@dataclass(frozen=True)
class Command:
    """What a worker waits for: a command, or if `lua` is set, a script with its keys and arguments."""

    parts: tuple[Any, ...]
    lua: str = ""

    @property
    def name(self) -> str:
        """The operation of a script, or the command itself."""
        return _operation(self.lua) if self.lua else str(self.parts[0])

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of a script, after its keys."""
        return tuple(_text(part) for part in self.parts[1 + int(self.parts[0]) :])

    def __await__(self) -> Generator[Command, Any, Any]:
        return (yield self)


@lru_cache
def _operation(lua: str) -> str:
    return str(_OPERATION.findall(lua)[-1])


def _text(part: object) -> str:
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)


@dataclass(frozen=True)
class Note:
    """What a worker knows from here on. It takes no time."""

    what: str
    facts: tuple[Any, ...] = ()

    def __await__(self) -> Generator[Note, Any, None]:
        yield self


@dataclass(frozen=True)
class Choice:
    """What happens to a worker from outside: every option is explored."""

    options: tuple[Any, ...]

    def __await__(self) -> Generator[Choice, Any, Any]:
        return (yield self)


class HandScript:
    """A registered script."""

    def __init__(self, lua: str, client: HandClient) -> None:
        self._lua = lua
        self._client = client
        self.sha = _operation(lua)

    async def __call__(
        self, keys: Sequence[Any] = (), args: Sequence[Any] = (), client: HandClient | None = None
    ) -> Any:
        return await (client or self._client).send(Command((len(keys), *keys, *args), self._lua))


def registered(client: HandClient, lua: str) -> HandScript:
    """Stands for `BatchedScript`."""
    return HandScript(client.change(lua), client)


class HandClient(Redis):
    """Answers no command: it gives each to the explorer."""

    def __init__(self, change: LuaChange = unchanged) -> None:
        self.change = change  # and no connection: the base class would open a pool

    async def send(self, command: Command) -> Any:
        """Waits for the explorer."""
        return await command

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends a command."""
        return self.send(Command(args))

    def register_script(self, script: Any) -> Any:
        """Registers a script; no I/O."""
        return registered(self, str(script))

    def __del__(self, *unused: Any) -> None:
        """Closes nothing."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """Begins a pipeline. Other workers may come between its commands, also in a transaction."""
        return HandPipeline(self.change)


class HandPipeline(HandClient):
    """Sends its commands one after another."""

    def __init__(self, change: LuaChange) -> None:
        super().__init__(change)
        self._queued: list[Command] = []

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._queued = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queues a command."""
        self._queued.append(Command(args))
        return self

    async def send(self, command: Command) -> Any:
        """Queues a script."""
        self._queued.append(command)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends what is queued."""
        return [await command for command in self._queued]


class HandGate:
    """Stands for a healthy Redis: it passes each command on at once."""

    def __init__(self, change: LuaChange = unchanged) -> None:
        self.client = HandClient(change)
        self.texts = NO_CIPHER

    def of(self, key: str) -> HealthGated:
        """One server has all keys."""
        return cast(HealthGated, self)

    async def run(self, operation: str, command: Callable[[Redis], Awaitable[T]]) -> T:
        """Runs `command`."""
        return await command(self.client)


@lru_cache
def gate(change: LuaChange = unchanged) -> HealthGatedClients:
    """Returns the gate of all workers, which has no state."""
    return cast(HealthGatedClients, HandGate(change))
