"""The number of client connections depends on the file descriptor limit."""

from __future__ import annotations

import resource

import pytest

from tests.support.service import make_settings
from worker_config.limits import DEFAULT_MAX_CONNECTIONS, connections_that_fit, descriptor_limit, max_connections_of

REDIS, OLLAMA = "redis://127.0.0.1:6379", "http://127.0.0.1:11434"


def test_descriptors_are_reserved_for_redis_ollama_and_files() -> None:
    settings = make_settings(REDIS, OLLAMA)
    assert connections_that_fit(1024, settings) == 1024 - 64 - (64 + 16) - (15 + 8)
    larger = make_settings(
        "redis+cluster://a:1,b:1,c:1",
        "http://a:1,http://b:1",
        breaker_redis={"url": "redis://d:1"},
        pool={"max_size": 100},
    )
    assert connections_that_fit(4096, larger) == 4096 - 64 - (3 * 64 + 16) - (64 + 16) - 2 * (100 + 8)


def test_at_least_half_the_descriptors_are_for_clients() -> None:
    assert connections_that_fit(200, make_settings(REDIS, OLLAMA)) == 100


@pytest.mark.parametrize(
    ("wanted", "limit", "most"),
    [
        (None, 1_000_000, DEFAULT_MAX_CONNECTIONS),
        (None, 1024, 857),
        (100, 1024, 100),
        (50_000, 1_000_000, 50_000),
        (50_000, 1024, 857),
    ],
)
def test_the_configured_limit_holds_within_the_descriptors(wanted: int | None, limit: int, most: int) -> None:
    settings = make_settings(REDIS, OLLAMA, server={"max_connections": wanted})
    assert max_connections_of(limit, settings) == most


def test_no_limit_counts_as_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert max_connections_of(descriptor_limit(), make_settings(REDIS, OLLAMA)) == DEFAULT_MAX_CONNECTIONS
