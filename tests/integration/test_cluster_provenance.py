"""Invalidation on a Redis Cluster, where documents and answers are on different shards."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio.cluster import ClusterNode, RedisCluster

from tests.integration.test_provenance import (  # noqa: F401 - the tests themselves, with the fixtures below
    fleet,
    test_a_deletion_takes_its_answers_back_before_it_is_answered,
    test_a_new_document_makes_stale_what_it_would_be_cited_for_and_nothing_else,
    test_an_update_takes_its_answers_back_before_it_is_answered,
    test_what_changed_while_an_answer_was_generated_keeps_it_from_being_stored,
    test_who_asks_after_a_change_does_not_join_a_generation_from_before,
)
from tests.support.redis_cluster import Cluster
from tests.support.service import Service


@pytest.fixture
def serve(cluster_serve: Service) -> Service:
    """On the cluster."""
    return cluster_serve


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[RedisCluster]:
    """A client of the cluster, by redis-py."""
    async with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", cluster.servers[0].port)]) as client:
        yield client
