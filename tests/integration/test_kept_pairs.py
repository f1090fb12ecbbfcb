"""`ragherd train-verifier --from-redis` trains on the pairs that the service kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from api.cli.commands import commands
from api.ports.quality import Evidence, Label, LabelledPair, PolicyName, Verdict, Versions
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.labels import RedisLabels
from tests.support.tiny_verifier import learnable_pairs, tiny_model

pytestmark = pytest.mark.slow
pytest.importorskip("jax", reason="training needs the extra `train`")

SCOPE = f"{'a' * 10}-{'1' * 24}"


def label(verdict: Verdict) -> Label:
    return Label(Evidence(0.8), verdict, "miss", False, "semantic", PolicyName.OBSERVE, Versions("embedder"))


async def train(redis_url: str, base: Path, out: Path) -> Result:
    options = [
        "--from-redis",
        "--start",
        str(base),
        "--used",
        str(base),
        "--out",
        str(out),
        "--epochs",
        "0.1",
        "--json",
    ]
    environment = {"REDIS_URL": redis_url, "COLUMNS": "200"}
    return await asyncio.to_thread(lambda: CliRunner().invoke(commands, ["train-verifier", *options], env=environment))


async def test_kept_pairs_are_trained_on_and_unsure_ones_are_not(redis: Redis, redis_url: str, tmp_path: Path) -> None:
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
