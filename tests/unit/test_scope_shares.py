"""The share of a scope in an index is counted occasionally and cached."""

from __future__ import annotations

from api.redis_store.search_index import BATCHES_FROM
from api.redis_store.stores.cache.semantic_index import SCOPES, SECONDS, ScopeShares, nearest_clause


def test_a_scope_is_counted_at_first_and_periodically() -> None:
    now = [0.0]
    shares = ScopeShares(lambda: now[0])
    assert shares.is_due("a")
    assert shares.of("a", 100) is None

    shares.note("a", 25)
    assert not shares.is_due("a")
    assert shares.of("a", 100) == 0.25
    assert shares.of("a", 0) is None, "of an index that nobody has counted"

    now[0] = SECONDS
    assert shares.is_due("a")
    assert shares.of("a", 100) == 0.25, "an old count is better than none"


def test_the_number_of_remembered_scopes_is_bounded() -> None:
    shares = ScopeShares()
    for number in range(SCOPES + 1):
        shares.note(str(number), 1)
    assert shares.of("0", 10) is None
    assert shares.of(str(SCOPES), 10) == 0.1


def test_only_large_scopes_use_the_graph_of_an_hnsw_index() -> None:
    assert "BATCHES" not in nearest_clause("flat", 1.0)
    asked = [nearest_clause("hnsw", share) for share in (None, BATCHES_FROM / 2, BATCHES_FROM, 1.0)]
    assert ["BATCHES" in clause for clause in asked] == [False, False, True, True]
