"""Sentinels with a password: correct credentials find the primary; wrong ones log the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.redis_store.client import RedisAddress, SentinelsRefuse, open_client
from api.redis_store.health_gated import RedisHealthEvents
from tests.stub_ollama import StubOllama
from tests.support.redis_sentinel import Failover, sentinel_failover
from tests.support.service import ask, make_settings, running_service

QUESTION = "How long is the warranty?"
PASSWORD = "of-the-sentinels"
ASKING = "user asking on >asking resetchannels -@all +auth +client|setinfo +hello +sentinel|masters"
"""As docs/redis.md has it."""
IDLE = "user idle on >idle resetchannels -@all +auth +hello +ping"


@pytest.fixture(scope="module")
def failover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failover]:
    folder: Path = tmp_path_factory.mktemp("sentinels")
    with sentinel_failover(folder, password=PASSWORD, users=[ASKING, IDLE]) as running:
        yield running


@pytest.mark.parametrize(("user", "password"), [(None, PASSWORD), ("asking", "asking")])
async def test_who_has_the_password_finds_the_primary(
    failover: Failover, stub: StubOllama, user: str | None, password: str
) -> None:
    credentials = {"sentinel_username": user, "sentinel_password": password}
    async with running_service(make_settings(failover.url, stub.base_url, redis=credentials)) as client:
        first = (await ask(client, QUESTION))["cache"]["status"]
        assert first in {"miss", "hit"}, "of the second round, what the first has stored"
        assert (await ask(client, QUESTION))["cache"]["status"] == "hit"
        assert (await client.get("/api/circuit-breaker/metrics")).json()["store"] == "shared"


@pytest.mark.parametrize(("user", "password"), [(None, None), (None, "wrong")])
async def test_who_has_not_is_told(
    failover: Failover, stub: StubOllama, capfd: pytest.CaptureFixture[str], user: str | None, password: str | None
) -> None:
    credentials = {"sentinel_username": user, "sentinel_password": password}
    async with running_service(make_settings(failover.url, stub.base_url, redis=credentials)) as client:
        assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"redis_lost"' in line]
    assert len(lines) == 1
    assert "REDIS_SENTINEL_PASSWORD" in lines[0]["message"]


class Lost(RedisHealthEvents):
    """Why it was lost."""

    def __init__(self) -> None:
        self.reasons: list[BaseException] = []

    def lost(self, operation: str, error: BaseException) -> None:
        self.reasons.append(error)


async def test_sentinels_that_refuse_to_tell_are_no_redis(failover: Failover) -> None:
    events = Lost()
    address = RedisAddress(
        failover.url, 1.0, 1.0, max_connections=4, sentinel_username="idle", sentinel_password="idle"
    )
    async with open_client(address, lambda shard: events, lambda line: None, "rag:probe") as gate:
        assert await gate.check() is False
    assert isinstance(events.reasons[0], SentinelsRefuse)
    assert str(events.reasons[0]).count("has no permissions to run the 'sentinel|masters' command") == 3
