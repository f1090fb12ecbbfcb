"""Records the commands that Redis receives (MONITOR)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.asyncio import Redis


async def searches_of(redis: Redis, action: Callable[[], Awaitable[object]]) -> list[str]:
    """Returns the searches that Redis executes during `action`, from all clients."""
    async with redis.monitor() as monitor:
        await action()
        await redis.echo("end")
        commands: list[str] = []
        while (command := (await monitor.next_command())["command"]) != "ECHO end":
            commands.append(command)
    return [command for command in commands if command.startswith("FT.SEARCH")]
