"""The commands and keys that Ragherd's Redis user needs, as a line of an ACL file."""

from __future__ import annotations

import hashlib
from typing import Final

from api.ports.answer_cache import Store

_EVERYWHERE: Final = ("client|setinfo", "evalsha", "info", "script|exists", "script|load", "unlink")

BREAKER: Final = (
    *_EVERYWHERE,
    *("del", "hdel", "hget", "hgetall", "hincrby", "hmget", "hset"),
    *("pexpire", "ping", "publish", "subscribe", "time"),
    *("xadd", "xread", "xrevrange"),
    *("zadd", "zcard", "zcount", "zlexcount", "zrange", "zrangebylex", "zrangebyscore"),
    *("zrem", "zremrangebyscore", "zscore"),
)
"""Breakers and bulkheads: scripts, the log of state changes, messages to waiting workers."""

ELSEWHERE: Final = (
    *_EVERYWHERE,
    "client|tracking",
    *("append", "del", "exec", "exists", "multi", "persist", "pexpire", "pexpireat", "pttl", "rename", "scan", "time"),
    *("get", "getrange", "incr", "set"),
    *("hdel", "hget", "hgetall", "hincrby", "hlen", "hmget", "hset", "hsetnx"),
    *("lrange", "lrem", "rpush"),
    *("ping", "publish", "subscribe"),
    *("xadd", "xdel", "xrange", "xrevrange"),
    *(
        "zadd",
        "zcard",
        "zcount",
        "zpopmin",
        "zrandmember",
        "zrange",
        "zrangebyscore",
        "zrem",
        "zremrangebyscore",
        "zscore",
    ),
    *("ft._list", "ft.create", "ft.dropindex", "ft.info", "ft.search"),
)
"""Everything else: the cache and its index, documents, flights, workers."""

CLUSTER: Final = ("cluster|info", "cluster|slots")
"""The layout and health of a cluster."""


def acl_commands(store: Store, *, separate: bool = False, cluster: bool = False) -> list[str]:
    """Returns the commands, sorted.

    `separate`: breakers and bulkheads use another Redis. `cluster`: the Redis is a cluster.
    """
    more = CLUSTER if cluster else ()
    if store == "breaker":
        return sorted({*BREAKER, *more})
    return sorted({*ELSEWHERE, *(() if separate else BREAKER), *more})


def acl_line(
    store: Store,
    *,
    user: str,
    prefix: str,
    password: str | None = None,
    separate: bool = False,
    cluster: bool = False,
) -> str:
    """Returns the line for an ACL file; every node of a cluster needs it.

    It holds the password as a SHA-256 digest. Without a password it holds a placeholder.
    """
    secret = f"#{hashlib.sha256(password.encode()).hexdigest()}" if password else "#<sha256-of-the-password>"
    rights = [f"~{key}" for key in _keys(store, prefix)]
    commands = acl_commands(store, separate=separate, cluster=cluster)
    rights += [f"&{prefix}*", "-@all", *(f"+{command}" for command in commands)]
    return f"user {user} on {secret} {' '.join(rights)}"


def _keys(store: Store, prefix: str) -> list[str]:
    """Returns the key patterns. ACLs treat index names as keys."""
    if store == "breaker":
        return [f"{prefix}cb:*", f"{prefix}bulkhead:*", f"{prefix}probe"]
    return [f"{prefix}*"]
