"""The fleet's labels in Redis: streams with a fixed maximum length, one per scope and one of all scopes.

A backup does not contain them: they are learned again from the traffic.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache, partial
from sys import intern
from typing import Any, Final

from api.errors import Undecryptable
from api.ports.answer_quality import (
    Evidence,
    Label,
    LabelledPair,
    LabelSource,
    PolicyName,
    PooledLabel,
    Verdict,
    Versions,
)
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

OF_SCOPE: Final = 500
"""Labels of a scope, for explain; about 75 kB."""
PAIR_FIELDS: Final = (b"asked", b"cached")
"""The texts of a pair."""
SCOPES: Final = 500
"""Scopes that have such labels."""
SCOPE_LIFETIME_MS: Final = 2 * 24 * 3600 * 1000
"""How long a scope's labels live after its last one."""
RETRACTED: Final = 1_000
"""Deleted labels that are noted, for `RETRACTED_MS`: the keeper looks every second."""
RETRACTED_MS: Final = 3600 * 1000
POOLED: Final = 20_000
"""Labels of all scopes; about 3 MB."""
PAIRS: Final = 20_000
"""Pairs of questions, enough to train a verifier; about 5 MB."""
LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""How long the labels of all scopes and the pairs live after the last one."""
MINUTE_MS: Final = 60_000
SOURCES: Final[Mapping[str, LabelSource]] = {"shadow": "shadow", "miss": "miss", "feedback": "feedback"}
READ: Final = 500
"""Labels per read."""
PAIR_TEXT: Final = 2_000
"""Characters of a question that are kept. Longer questions are not compared by meaning."""


class RedisLabels:
    """The label store. Every method raises `StoreUnavailable`. On a cluster all labels are on one shard."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.labels)
        self._texts = redis.texts
        self._keys = keys
        self._append = script(redis.client, "stores/label_store", "append")
        self._retract = script(redis.client, "stores/label_store", "retract")
        self._admit = script(redis.client, "stores/label_store", "admit")

    async def append(self, scope: str, tenant: str, label: Label, pair: LabelledPair | None = None) -> None:
        """Appends a label to its scope and to the pool, and keeps the pair of questions if there is one."""
        await self.add(scope, tenant, label, pair)

    async def add(self, scope: str, tenant: str, label: Label, pair: LabelledPair | None = None) -> str:
        """Does what `append` does, and returns the label's name for `retract`."""
        fields = _flat(as_fields(scope, tenant, label))
        limits = [LIFETIME_MS, SCOPE_LIFETIME_MS, OF_SCOPE, POOLED, PAIRS, SCOPES]
        arguments = [*limits, len(fields) // 2, *fields, *(_flat(self._pair_fields(tenant, pair)) if pair else ())]
        known = self._keys
        keys = [known.labels_of(scope), known.labels, known.labelled_pairs, known.labelled_scopes]
        ids = await self._redis.run("append_label", partial(self._append, keys, arguments))
        return " ".join(name.decode() for name in ids)

    async def retract(self, scope: str, name: str) -> None:
        """Deletes a label, because another one replaces it."""
        keys = [self._keys.labels_of(scope), self._keys.labels, self._keys.retracted_labels]
        arguments: list[str | int] = [*name.split(), RETRACTED, RETRACTED_MS]
        await self._redis.run("append_label", partial(self._retract, keys, arguments))

    async def retracted(self, after: str) -> tuple[Sequence[str], str]:
        """Returns the IDs of labels that were deleted from the pool, and where to continue. `after` "" begins."""
        first = f"({after}" if after else "-"
        key = self._keys.retracted_labels
        found: Any = await self._redis.run("read_labels", lambda client: client.xrange(key, first, count=RETRACTED))
        return [fields[b"label"].decode() for _, fields in found], found[-1][0].decode() if found else after

    async def of_scope(self, scope: str, limit: int) -> Sequence[Label]:
        """Returns the newest labels of a scope, newest first."""
        key = self._keys.labels_of(scope)
        found: Any = await self._redis.run("read_labels", lambda client: client.xrevrange(key, count=limit))
        return [pooled.label for pooled in map(_read, found) if pooled is not None]

    async def pooled(self, after: str, limit: int) -> tuple[Sequence[PooledLabel], str]:
        """Returns labels of all scopes after an ID, oldest first, and the ID to continue from. `after` "" begins."""
        first = f"({after}" if after else "-"
        found: Any = await self._redis.run(
            "read_labels", lambda client: client.xrange(self._keys.labels, first, count=limit)
        )
        labels = [pooled for pooled in map(_read, found) if pooled is not None]
        return labels, found[-1][0].decode() if found else after

    async def pairs(self, limit: int) -> Sequence[LabelledPair]:
        """Returns the newest pairs of all scopes, newest first."""
        key = self._keys.labelled_pairs
        found: Any = await self._redis.run("read_labels", lambda client: client.xrevrange(key, count=limit))
        return [pair for pair in map(self._read_pair, found) if pair is not None]

    async def of_tenant(self, tenant: str) -> AsyncIterator[tuple[str, Mapping[str, str]]]:
        """Yields the fields of each label (`label`) and each kept pair (`pair`) of a tenant, oldest first."""
        for kind, key in (("label", self._keys.labels), ("pair", self._keys.labelled_pairs)):
            after = "-"
            while True:
                found: Any = await self._redis.run(
                    "read_labels",
                    lambda client, key=key, at=after: client.xrange(key, at, "+", READ),  # type: ignore[misc]
                )
                for _, fields in map(self._named, found):
                    if fields.get("tenant") == tenant:
                        yield kind, fields
                if len(found) < READ:
                    break
                after = f"({found[-1][0].decode()}"

    async def admit_shadow(self, per_minute: int) -> bool:
        """Returns whether the fleet may make another shadow call in this minute; if so, counts it."""
        arguments = [per_minute, MINUTE_MS]
        return bool(await self._redis.run("admit_shadow", partial(self._admit, [self._keys.shadow_calls], arguments)))

    def _pair_fields(self, tenant: str, pair: LabelledPair) -> dict[str, Any]:
        """A pair is bound to its scope."""
        return {
            "scope": pair.scope,
            "tenant": tenant,
            "verdict": pair.verdict.value,
            "asked": self._texts.encrypt(pair.scope, "asked", pair.asked[:PAIR_TEXT]),
            "cached": self._texts.encrypt(pair.scope, "cached", pair.cached[:PAIR_TEXT]),
        }

    def _read_pair(self, reply: Any) -> LabelledPair | None:
        try:
            _, fields = self._named(reply)
            return LabelledPair(fields["asked"], fields["cached"], Verdict(fields["verdict"]), fields["scope"])
        except (KeyError, ValueError, AttributeError, Undecryptable):
            return None

    def _named(self, reply: Any) -> tuple[str, dict[str, str]]:
        """Like the function, and decrypts a pair."""
        at, fields = reply
        scope = fields.get(b"scope", b"").decode("utf-8", "replace")
        kept = [name for name in PAIR_FIELDS if name in fields]
        texts = {name: self._texts.decrypt(scope, name.decode(), fields[name]) for name in kept}
        return _named((at, {**fields, **texts}))


def _flat(fields: Mapping[str, Any]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]


def as_fields(scope: str, tenant: str, label: Label) -> dict[str, Any]:
    """The fields of a label in its streams."""
    evidence, versions = label.evidence, label.versions
    return {
        "scope": scope,
        "tenant": tenant,
        "source": label.source,
        "verdict": label.verdict.value,
        "served": int(label.served),
        "kind": label.kind,
        "policy": label.policy.value,
        "probability": label.probability,
        "similarity": round(evidence.similarity, 6),
        "other": round(evidence.other, 6),
        "same": round(evidence.same, 4),
        "others": round(evidence.others, 4),
        "guard": evidence.guard,
        "verifier": "" if evidence.verifier is None else evidence.verifier,
        "embedder": versions.embedder,
        "verifier_digest": versions.verifier,
        "comparator": versions.comparator,
        "entry": label.entry,
        "votes": "" if label.votes is None else label.votes,
        **({"variant": label.variant, "deviates": int(label.deviates)} if label.variant else {}),
    }


def _named(reply: Any) -> tuple[str, dict[str, str]]:
    at, fields = reply
    return at.decode(), {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}


def _read(reply: Any) -> PooledLabel | None:
    """Returns None for a label of a later release that cannot be read."""
    try:
        at, fields = _named(reply)
        return PooledLabel(intern(fields["scope"]), intern(fields["tenant"]), _label(at, fields), at)
    except (KeyError, ValueError, AttributeError):
        return None


@lru_cache(64)
def _versions(embedder: str, verifier: str, comparator: str) -> Versions:
    """Labels share equal texts and versions: a worker holds many thousands."""
    return Versions(embedder, verifier, comparator)


def _label(at: str, fields: Mapping[str, str]) -> Label:
    return Label(
        Evidence(
            float(fields["similarity"]),
            float(fields["other"]),
            float(fields["same"]),
            float(fields["others"]),
            intern(fields["guard"]),
            float(fields["verifier"]) if fields["verifier"] else None,
        ),
        Verdict(fields["verdict"]),
        SOURCES[fields["source"]],
        fields["served"] == "1",
        intern(fields["kind"]),
        PolicyName(fields["policy"]),
        _versions(fields["embedder"], fields["verifier_digest"], fields["comparator"]),
        float(fields["probability"]),
        int(at.partition("-")[0]),
        fields.get("entry", ""),
        int(votes) if (votes := fields.get("votes")) else None,
        fields.get("variant", ""),
        fields.get("deviates") == "1",
    )
