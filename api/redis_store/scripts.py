"""Lua files as scripts of a client. NOSCRIPT (restart, failover) is handled by redis-py, which loads it again."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from redis.asyncio import Redis
from redis.commands.core import AsyncScript


@cache
def lua(*names: str) -> str:
    """The text of one or several files of `lua/`, joined in order: first what is shared, last the operation."""
    folder = files("api.redis_store") / "lua"
    return "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)


def script(client: Redis, *names: str) -> AsyncScript:
    """A script of `client` made of those files."""
    return client.register_script(lua(*names))
