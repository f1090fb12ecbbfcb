"""Values of many megabytes, written and read in pieces: none keeps Redis, or the deadline of a command, for long."""

from __future__ import annotations

import secrets
from typing import Any, Final

from redis.asyncio import Redis

from api.redis_store.gate import Gate
from api.redis_store.keys import Keys

PIECE: Final = 512 * 1024
LIFETIME_MS: Final = 600 * 1000
"""How long an upload may take; what is not used by then is gone."""


async def uploaded(gate: Gate, keys: Keys, content: bytes) -> str:
    """The key of a new value, which a script is to rename."""
    key = keys.upload(secrets.token_hex(8))
    for start in range(0, max(len(content), 1), PIECE):
        piece = content[start : start + PIECE]

        async def append(client: Redis, piece: bytes = piece) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.append(key, piece)
                pipe.pexpire(key, LIFETIME_MS)
                await pipe.execute()

        await gate.run("upload", append)
    return key


async def downloaded(gate: Gate, key: str) -> bytes | None:
    """The value; None where there is none. It must not change meanwhile."""
    pieces: list[bytes] = []
    while True:
        start = len(pieces) * PIECE
        piece: Any = await gate.run(
            "download",
            lambda client, at=start: client.getrange(key, at, at + PIECE - 1),  # type: ignore[misc]
        )
        if not piece and not pieces:
            return None
        pieces.append(piece)
        if len(piece) < PIECE:
            return b"".join(pieces)
