"""Warnings derived from Redis's own INFO."""

from __future__ import annotations

from typing import Any

import pytest

from api.ports.answer_cache import Store, StoreMemory
from api.redis_store.diagnostics import ADVICE, memory_of, server_facts, warnings_of

GOOD: dict[str, Any] = {
    "redis_version": "8.2.3",
    "modules": [{"name": "search"}],
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "rdb_last_bgsave_status": "ok",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_time_sec": -1,
    "rdb_last_load_keys_loaded": 0,
    "role": "master",
}


def said(store: Store = "main", **changes: Any) -> list[str]:
    return [warning.name for warning in warnings_of(server_facts(GOOD | changes), store)]


@pytest.mark.parametrize(
    ("changes", "main", "breaker"),
    [
        ({}, [], []),
        ({"redis_version": "7.4.2"}, [], []),
        ({"redis_version": "9.0"}, [], []),
        ({"redis_version": "7.2.4"}, ["old"], []),
        ({"redis_version": "6.2.1"}, ["old"], ["old"]),
        ({"modules": []}, ["without_search"], []),
        ({"maxmemory_policy": "allkeys-lru"}, ["evicts_all"], ["evicts_all"]),
        ({"maxmemory_policy": "volatile-lru"}, [], []),
        ({"aof_enabled": 0}, ["not_persistent"], []),
        ({"aof_enabled": 0, "rdb_last_bgsave_time_sec": 1}, ["snapshots_only"], []),
        ({"aof_enabled": 0, "rdb_last_load_keys_loaded": 7}, ["snapshots_only"], []),
        ({"rdb_last_bgsave_status": "err"}, ["disk_fails"], ["disk_fails"]),
        ({"aof_last_write_status": "err"}, ["disk_fails"], ["disk_fails"]),
        ({"role": "slave"}, ["replica"], ["replica"]),
        ({"role": "slave", "cluster_enabled": 1}, [], []),
    ],
)
def test_each_warning_has_its_reason(changes: dict[str, Any], main: list[str], breaker: list[str]) -> None:
    assert (said(**changes), said("breaker", **changes)) == (main, breaker)


def test_missing_server_facts_give_no_warning() -> None:
    assert [warning.name for warning in warnings_of(server_facts({"modules": [{"name": "search"}]}), "main")] == []


def test_the_memory_of_several_servers_has_the_share_of_the_fullest() -> None:
    full = server_facts(GOOD | {"used_memory": 900, "maxmemory": 1000, "evicted_keys": 7})
    empty = server_facts(GOOD | {"used_memory": 100, "maxmemory": 1000, "evicted_keys": 1})
    assert memory_of([empty, full], "main") == StoreMemory("main", used=1000, share=0.9, evicted=8)


def test_without_a_limit_no_share_of_the_memory_is_used() -> None:
    assert memory_of([server_facts(GOOD | {"used_memory": 900})], "breaker") == StoreMemory("breaker", 900, 0.0, 0)


def test_every_advice_is_a_sentence() -> None:
    assert all(text[0].isupper() and text.endswith(".") for text in ADVICE.values())
