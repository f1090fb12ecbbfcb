"""`ragherd train-verifier` and the fleet: it trains on kept pairs, and puts models in use and out of use."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from api.ports.answer_quality import Evidence, Label, LabelledPair, PolicyName, Verdict, Versions
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.label_store import RedisLabels
from api.redis_store.stores.quality_store import RedisVerifierModels
from ragherd.commands import commands
from tests.support.tiny_verifier import learnable_pairs, tiny_model
from training.model_folder import digest

pytestmark = pytest.mark.slow
pytest.importorskip("jax", reason="training needs the extra `train`")

SCOPE = f"{'a' * 10}-{'1' * 24}"


def label(verdict: Verdict) -> Label:
    return Label(Evidence(0.8), verdict, "miss", False, "semantic", PolicyName.OBSERVE, Versions("embedder"))


async def run(redis_url: str, *options: object, path: str = "") -> Result:
    arguments = ["train-verifier", *map(str, options)]
    environment = {"REDIS_URL": redis_url, "COLUMNS": "200", "SEMANTIC_CACHE_VERIFIER_PATH": path}
    return await asyncio.to_thread(lambda: CliRunner().invoke(commands, arguments, env=environment))


async def train(redis_url: str, base: Path, out: Path) -> Result:
    models = ("--start", base, "--used", base, "--out", out)
    return await run(redis_url, "--from-redis", *models, "--epochs", 0.1, "--json")


async def test_kept_pairs_are_trained_on_and_unsure_ones_are_not(
    redis: BatchingRedis, redis_url: str, tmp_path: Path
) -> None:
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    store = RedisLabels(gate, Keys())
    kept = [json.loads(line) for line in learnable_pairs(tmp_path / "pairs.jsonl", 400).read_text().splitlines()]
    for row in kept:
        verdict = Verdict.SAME if row["same"] else Verdict.DIFFERENT
        await store.append(SCOPE, "", label(verdict), LabelledPair(row["b"], row["a"], verdict, SCOPE))
    await store.append(SCOPE, "", label(Verdict.UNSURE), LabelledPair("w1", "w2", Verdict.UNSURE, SCOPE))

    result = await train(redis_url, tiny_model(tmp_path / "base"), tmp_path / "new")
    found = json.loads(result.stdout)
    distinct = {(row["a"], row["b"]) for row in kept}
    assert 0.4 * len(distinct) < found["trained_on"]["own pairs"] < len(distinct)
    assert found["held_out"]["pairs"] > 40
    assert (tmp_path / "new" / "model.json").exists()


async def test_no_kept_pairs_and_no_redis_are_one_line_each(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    empty = await train(redis_url, base, tmp_path / "new")
    assert empty.exit_code == 1
    assert empty.stderr == "ragherd: Redis has no kept pairs: set SEMANTIC_CACHE_KEEP_PAIRS=true\n"
    away = await train("redis://127.0.0.1:1/0", base, tmp_path / "new")
    assert away.exit_code == 1
    assert "Redis cannot be used" in away.stderr
    assert away.stderr.count("\n") == 1


@pytest.mark.once(reason="JAX trains for most of its time; the other tests here call the same commands")
async def test_a_better_model_is_put_in_use_compared_with_and_rolled_back(
    redis: BatchingRedis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tune.RATE", 2e-3)  # so that random weights learn in seconds
    base = tiny_model(tmp_path / "base")
    pairs = learnable_pairs(tmp_path / "pairs.jsonl", 1200)
    options = ("--pairs", pairs, "--start", base, "--activate", "--json")
    first = await run(redis_url, *options, "--out", tmp_path / "first", "--epochs", 4, path=str(base))
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["activated"]
    assert found["used"] == digest(base)
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    models = RedisVerifierModels(gate, Keys())
    assert await models.active() == found["version"]
    files = await models.read(found["version"])
    assert files is not None
    assert files.weights == (tmp_path / "first" / "model.onnx").read_bytes()

    second = await run(redis_url, *options, "--out", tmp_path / "second", "--epochs", 0.1, path=str(base))
    assert second.exit_code == 1, second.output
    worse = json.loads(second.stdout)
    assert worse["used"] == found["version"]  # the fleet's model, not that of the setting
    assert not worse["activated"]
    assert await models.active() == found["version"]

    back = await run(redis_url, "--roll-back")
    assert back.exit_code == 0
    assert "the model of SEMANTIC_CACHE_VERIFIER_PATH" in back.stdout
    assert await models.active() == ""


async def test_nothing_can_be_rolled_back_before_an_activation(redis: Redis, redis_url: str) -> None:
    del redis  # empty
    result = await run(redis_url, "--roll-back")
    assert result.exit_code == 1
    assert result.stderr == "ragherd: no model has been activated\n"
