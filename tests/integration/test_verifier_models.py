"""A trained verifier goes to all workers through Redis, and can be rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from api.embedders.verifier import OnnxVerifier, read_folder
from api.errors import SettingsError, StoreUnavailable
from api.ports.answer_quality import VerifierFiles
from api.ports.telemetry import Telemetry
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.scripts import PIECE
from api.redis_store.stores.quality_store import MODEL_LIFETIME_MS, RedisVerifierModels
from api.wiring.backup import activate_verifier, roll_back_verifier
from tests.integration.test_redis_keys import assert_as_listed, listed
from tests.support.replies import text, texts
from tests.support.service import Service, make_settings
from tests.support.small_cross_encoder import WORTH, write_cross_encoder
from tests.support.waiting import eventually


def written(folder: Path, factor: float) -> Path:
    """Writes a model whose scores depend on `factor`."""
    write_cross_encoder(folder, worth=[one * factor for one in WORTH])
    (folder / "model.json").write_text("{}")
    return folder


@pytest.fixture
async def models(redis: BatchingRedis) -> RedisVerifierModels:
    gate = HealthGatedRedis(redis, 4)
    await gate.check()
    return RedisVerifierModels(gate, Keys())


async def test_what_was_activated_is_read_again_and_the_one_before_is_kept(
    models: RedisVerifierModels, redis: Redis
) -> None:
    first, second, third = (VerifierFiles(bytes([one]) * (PIECE + one), b"t", b"{}") for one in (1, 2, 3))
    assert await models.active() == ""
    assert await models.roll_back() is None
    for model in (first, second):
        assert await models.activate(model) == await models.active() == model.digest
        assert await models.read(model.digest) == model
    assert await models.activate(second) == second.digest  # again: the one before stays the same
    assert await models.roll_back() == await models.active() == first.digest
    assert await models.roll_back() == second.digest
    await models.activate(third)
    assert await models.read(first.digest) is None
    await assert_as_listed(redis, listed())
    kept = sorted(texts(await redis.keys("rag:verifier*")))
    assert kept == sorted(["rag:verifier", f"rag:verifier:{second.digest}", f"rag:verifier:{third.digest}"])


async def test_the_first_model_can_be_rolled_back_to_the_one_of_the_setting(models: RedisVerifierModels) -> None:
    digest = await models.activate(VerifierFiles(b"w", b"t"))
    assert await models.roll_back() == await models.active() == ""
    assert await models.roll_back() == digest


async def test_lifetimes_are_renewed(models: RedisVerifierModels, redis: Redis) -> None:
    digest = await models.activate(VerifierFiles(b"w", b"t"))
    for key in ("rag:verifier", f"rag:verifier:{digest}"):
        await redis.pexpire(key, 60_000)
    await models.renew()
    for key in ("rag:verifier", f"rag:verifier:{digest}"):
        assert MODEL_LIFETIME_MS - 60_000 < await redis.pttl(key) <= MODEL_LIFETIME_MS


@pytest.mark.parametrize("content", [b"no archive", None])
async def test_damaged_or_missing_files_are_none(
    models: RedisVerifierModels, redis: Redis, content: bytes | None
) -> None:
    digest = await models.activate(VerifierFiles(b"w", b"t"))
    await (redis.set(f"rag:verifier:{digest}", content) if content else redis.delete(f"rag:verifier:{digest}"))
    assert await models.read(digest) is None


async def test_files_of_another_model_are_not_taken(models: RedisVerifierModels, redis: Redis) -> None:
    first, second = [await models.activate(VerifierFiles(content, b"t")) for content in (b"1", b"2")]
    await redis.copy(f"rag:verifier:{first}", f"rag:verifier:{second}", replace=True)
    assert await models.read(second) is None


@pytest.fixture
async def fleet(models: RedisVerifierModels, tmp_path: Path) -> AsyncIterator[list[OnnxVerifier]]:
    """The verifiers of three workers with the same setting."""
    path = str(written(tmp_path / "own", 1))
    async with AsyncExitStack() as stack:
        opened = [OnnxVerifier.open(path, 30.0, models, Telemetry()) for _ in range(3)]
        yield [await stack.enter_async_context(one) for one in opened]


async def test_all_workers_switch_and_roll_back_and_flushall_brings_back_their_own(
    fleet: list[OnnxVerifier], redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    settings = make_settings(redis_url, "http://127.0.0.1:9")
    own, trained = fleet[0].digest, written(tmp_path / "trained", 2)

    async def all_use(digest: str) -> None:
        await eventually(lambda: [one.digest for one in fleet] == [digest] * 3)

    new = await activate_verifier(settings, trained)
    assert new == read_folder(trained).digest
    await all_use(new)
    assert await fleet[2].score("which", ["it likes"]) == pytest.approx([4.0])
    assert await roll_back_verifier(settings) == ""
    await all_use(own)
    await activate_verifier(settings, trained)
    await all_use(new)
    await redis.flushall()
    await all_use(own)
    assert await roll_back_verifier(settings) is None


async def test_what_cannot_be_activated_changes_nothing(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="file not found"):
        await activate_verifier(make_settings(redis_url, "http://127.0.0.1:9"), tmp_path)
    with pytest.raises(StoreUnavailable):
        await activate_verifier(
            make_settings("redis://127.0.0.1:9", "http://127.0.0.1:9"), written(tmp_path / "trained", 2)
        )
    assert await redis.keys("rag:verifier*") == []


async def test_a_worker_with_the_setting_follows_with_minimal_rights_in_redis(
    serve: Service, redis: Redis, redis_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client: httpx.AsyncClient = await serve(cache={"verifier_path": str(written(tmp_path / "own", 1))})
    new = await activate_verifier(make_settings(redis_url, "http://127.0.0.1:9"), written(tmp_path / "trained", 2))
    await eventually(lambda: f'"verifier":"{new}","event":"verifier_changed"' in capfd.readouterr().err)
    exposed = (await client.get("/metrics")).text
    assert 'ragherd_verifier_duration_seconds_count{outcome="failed"} 0.0' in exposed
    assert text(await redis.hget("rag:verifier", "active")) == new
