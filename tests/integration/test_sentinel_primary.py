"""A client follows the primary that the Sentinels name."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.redis_store import client
from api.redis_store.client import RedisAddress, Sentinels, blocking_reader, short_commands
from tests.support.waiting import wait_until_async


async def test_a_former_primary_that_still_answers_is_left(
    redis_server: EmbeddedRedis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentinels need seconds to make it a replica. Meanwhile it answers with what it had."""
    named = urlsplit(redis_url).port

    async def primary(*_: Any) -> tuple[str, int | None]:
        return "127.0.0.1", named

    monkeypatch.setattr(Sentinels, "discover_master", primary)
    monkeypatch.setattr(client, "FOLLOW_SECONDS", 0.01)
    address = RedisAddress("redis+sentinel://127.0.0.1:1/main", 1.0, 1.0, 4)
    async with short_commands(address) as commands, blocking_reader(address, 1.0) as reader:

        async def asked() -> set[int | None]:
            return {(await one.info("server"))["tcp_port"] for one in (commands, reader)}

        assert await asked() == {named}
        with embedded_redis(persistent=False) as other:
            named = urlsplit(other.url).port

            async def has_followed() -> bool:
                return await asked() == {named}

            await wait_until_async(has_followed)
            assert redis_server.pid, "the former one is alive"
            under_way = asyncio.create_task(cast(Any, reader.blpop(["nothing"], timeout=0.2)))
            named = urlsplit(redis_url).port
            await wait_until_async(has_followed)
            assert await under_way is None, "it was not cut"
