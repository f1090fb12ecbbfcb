"""Keys of one script or transaction are in one slot, and CLUSTER SLOTS maps slots to shards."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.crc import key_slot

from api.redis_store.cluster import Node, SlotMap
from api.redis_store.keys import Keys

ON_ONE, CLUSTER = Keys(), Keys(cache_partitions=16, cluster=True)
SCOPES = [f"{'a' * 10}-{number:024x}" for number in range(4_000)]
DIGEST, DOCUMENT, OWNER = "0" * 32, "0" * 24, "0" * 16
REPLY = [
    [0, 5460, [b"10.0.0.1", 6379, b"id", {}], [b"10.0.0.4", 6379, b"id", {}]],
    [5461, 10922, [b"", 6380, b"id", {}]],
    [10924, 16383, [b"redis-2.example", 6379, b"id", {}]],
]


def touched_together(keys: Keys, scope: str) -> list[list[str]]:
    """Returns the keys of each script and transaction."""
    part = keys.partition(scope)
    document = [keys.document(DOCUMENT), keys.document_text(DOCUMENT), keys.document_draft(DOCUMENT)]
    work = [keys.document_work(DOCUMENT), keys.document_chunks(DOCUMENT), keys.chunk("e", DOCUMENT, 1, 1)]
    corpus = [
        keys.corpus(OWNER),
        keys.corpus_documents(OWNER),
        keys.corpus_work,
        keys.corpus_state,
        keys.corpus_embedders,
    ]
    corpus += [keys.embedding_lease("e"), f"{keys.chunk_indexes}e", f"{keys.passage_indexes}e"]
    return [
        [
            part.entry(scope, DIGEST),
            part.invalidated,
            *part.eviction_keys,
            part.entries_of("t"),
            *part.flight(scope, DIGEST),
            part.index_uses,
        ],
        [part.entry(scope, DIGEST), part.index("e", "flat"), f"{part.embedded_by('e')}more"],
        [*document, *work, *corpus, keys.upload("token"), keys.chunk_index("e"), keys.passage_index("e")],
        [keys.verifier, keys.verifier_model("e"), keys.upload("token")],
        keys.cache_warm_up("job"),
        [keys.worker("one"), keys.worker("other"), keys.workers, keys.corpus_schema],
        [keys.backend("ollama"), keys.backend("ollama-2"), keys.digests("ollama"), keys.speeds("ollama")],
        keys.breaker("ollama"),
        keys.bulkhead("ollama"),
        [keys.labels, keys.labels_of(scope), keys.labelled_pairs],
        [keys.access_keys, keys.access_key("0" * 16)],
        [keys.quality, keys.quality_of(scope), keys.quality_lease],
        [
            keys.cache_stats,
            keys.cache_stats_batch("w"),
            keys.history_hour("2026-11-28T15"),
            keys.history_minute("2026-11-28T15-07"),
            keys.history_lease,
            keys.experiments,
            *keys.experiment("trial"),
        ],
    ]


@pytest.mark.parametrize("scope", SCOPES[:20])
def test_keys_of_one_script_share_a_slot(scope: str) -> None:
    assert [len({key_slot(key.encode()) for key in group}) for group in touched_together(CLUSTER, scope)] == [1] * 13


def test_scopes_spread_evenly_and_stably_over_partitions() -> None:
    counts = Counter(CLUSTER.partition(scope).tag for scope in SCOPES)
    assert len(counts) == 16
    assert max(counts.values()) < 1.3 * min(counts.values())
    assert [CLUSTER.partition(scope).tag for scope in SCOPES[:4]] == ["{p04}", "{p02}", "{p08}", "{p14}"]


def test_hash_tags_appear_only_in_partitioned_cache_keys() -> None:
    def tagged(keys: Keys) -> list[bool]:
        groups = touched_together(keys, SCOPES[0])
        return [
            any(
                "{p" in key or "{docs}" in key or "{fleet}" in key or "{labels}" in key or "{access}" in key
                for key in group
            )
            for group in groups
        ]

    assert tagged(ON_ONE) == [False] * 13
    assert tagged(Keys(cache_partitions=2)) == [True, True, *[False] * 11]
    assert tagged(Keys(cache_partitions=1, cluster=True)) == [*[True] * 7, False, False, True, True, True, False]


def test_an_entry_belongs_to_one_partition() -> None:
    keys = [CLUSTER.cache_entry(scope, DIGEST) for scope in SCOPES[:50]]
    assert [sum(part.holds(key) for part in CLUSTER.partitions) for key in keys] == [1] * 50
    assert not ON_ONE.partition("").holds(keys[0])
    assert ON_ONE.partition("").holds(ON_ONE.cache_entry(SCOPES[0], DIGEST))
    assert not CLUSTER.partition(SCOPES[0]).holds(ON_ONE.cache_entry(SCOPES[0], DIGEST))


def test_the_slot_map_names_the_shard_of_a_slot() -> None:
    slots = SlotMap.read(REPLY, asked=Node("10.0.0.2", 6380))
    first, second, third = Node("10.0.0.1", 6379), Node("10.0.0.2", 6380), Node("redis-2.example", 6379)
    owners = {0: first, 5460: first, 5461: second, 10922: second, 10923: None, 10924: third, 16383: third}
    assert {slot: slots.owner(slot) for slot in owners} == owners
    assert slots.nodes == {first, second, third}
    assert (bool(slots), bool(SlotMap()), SlotMap().owner(0)) == (True, False, None)
