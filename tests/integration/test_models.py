"""Every interleaving of a few workers keeps what the protocols promise, and a broken script is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from scripts.models.answers import AnswersModel
from scripts.models.breaker import BreakerModel
from scripts.models.explore import Explorer
from scripts.models.hand import LuaChange
from scripts.models.model_redis import ModelRedis

pytestmark = pytest.mark.once(reason="it checks the Lua scripts")
NOT_CHECKED = "if at and asked > 0 and asked <= tonumber(at) then return {} end"


@pytest.fixture
def model_redis(redis_url: str) -> Iterator[ModelRedis]:
    with Redis.from_url(redis_url) as client:
        yield ModelRedis(client)
        client.flushdb()


def without(*changes: tuple[str, str]) -> LuaChange:
    """Replaces parts of the scripts."""

    def change(lua: str) -> str:
        for old, new in changes:
            lua = lua.replace(old, new)
        return lua

    return change


@pytest.mark.parametrize(
    ("depth", "model"),
    [(7, BreakerModel(2)), (6, BreakerModel(3, calls=1)), (5, AnswersModel(2, 1)), (5, AnswersModel(1, 2))],
)
def test_no_reachable_state_breaks_an_invariant(depth: int, model: Any, model_redis: ModelRedis) -> None:
    """Only the first steps of what `python -m scripts.check_models` explores."""
    explored = Explorer(model, model_redis).explore(depth)
    assert explored.violation is None, str(explored)
    assert explored.depth == depth
    assert explored.states > 100


@pytest.mark.parametrize(
    ("moves", "model", "violation"),
    [
        (
            1,
            BreakerModel(3, 1, without(("'ZCARD', KEYS[3]) < permits", "'ZCARD', KEYS[3]) <= permits"))),
            "3 probes at a",
        ),
        (1, BreakerModel(2, 1, without(("if ok < permits", "if ok <= permits"))), "the breaker stays HALF_OPEN"),
        (0, AnswersModel(2, 0, without(("and leader ~= worker and not outdated", "and false"))), "leads while worker"),
        (
            1,
            AnswersModel(2, 0, without(("'HGET', KEYS[8], 'fence') ~= fence", "'HGET', KEYS[8], 'fence') == 0"))),
            "late",
        ),
        (0, AnswersModel(2, 0, without(("and not is_followed(KEYS[8])", ""))), "without a message"),
        (
            0,
            AnswersModel(1, 1, without((NOT_CHECKED, ""), ("read_ms <= tonumber(changed or -1)", "false"))),
            "an old revision",
        ),
    ],
)
def test_a_broken_script_is_found(moves: int, model: Any, violation: str, model_redis: ModelRedis) -> None:
    explored = Explorer(model, model_redis, faults=0, moves=moves).explore()
    assert violation in (explored.violation or ""), str(explored)
