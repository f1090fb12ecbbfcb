"""Encrypts again what another key has encrypted, or none: after a rotation, or when encryption is switched on or off.

It reads every key once. What lives for a day at most is left to expire: generations, warm-ups, outcomes, uploads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from redis.asyncio import Redis

from api.errors import Undecryptable
from api.redis_store.client import AnyHealthGated
from api.redis_store.encryption import HEADER
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.scripts import SCANNED, replies_of, script
from api.redis_store.stores.cache.entries import ANSWER_DIGEST, TEXTS, decrypted_fields, encrypted_fields
from api.redis_store.stores.documents.document_records import (
    SEALED,
    decrypted_download,
    encrypted_upload,
    passage_texts,
    texts_of,
)
from api.redis_store.stores.label_store import PAIR_FIELDS, READ

Kind: TypeAlias = Literal["answers", "passages", "documents", "drafts", "condensed", "pairs"]
Outcome: TypeAlias = Literal["rewritten", "current", "changed", "unreadable", "waiting"]
Counts: TypeAlias = Counter[tuple[Kind, Outcome]]
"""`changed`: replaced meanwhile. `waiting`: the draft of a document, until it is in service."""
_ENTRY: Final = (*TEXTS, "sources", "comment", "request", "created_ms")
_ABOUT: Final = ("sources", "request", "created_ms")
"""The fields of these that are plain."""
_PASSAGE: Final = ("heading", "text", SEALED)
BATCH: Final = 100
"""Keys per read."""


class RedisReencryption:
    """Rewrites the texts of the fleet. Raises `StoreUnavailable`; then run it again."""

    def __init__(self, redis: AnyHealthGated, keys: Keys) -> None:
        self._redis = redis
        self._texts = redis.texts
        self._keys = keys
        self._chunks = keys.chunk_prefix("").removesuffix(":")
        self._condensed = keys.condensed(":").partition(":{")[0].rstrip(":") + ":"
        self._fields, self._value, self._text, self._pair = (
            script(redis.client, "stores/reencryption", name)
            for name in ("replace_fields", "replace_value", "replace_text", "replace_pair")
        )

    async def run(self, *, dry_run: bool) -> Counts:
        """Rewrites all that is not encrypted with the first key, or counts it with `dry_run`."""
        counts: Counts = Counter()
        for server in self._redis.servers:
            cursor = 0
            while True:
                cursor, found = await server.run(
                    "reencrypt",
                    lambda client, at=cursor: client.scan(at, match=f"{self._keys.prefix}*", count=SCANNED),  # type: ignore[misc]
                )
                names = [key.decode("utf-8", "replace") for key in found]
                for start in range(0, len(names), BATCH):
                    await self._batch(server, names[start : start + BATCH], counts, dry_run=dry_run)
                if cursor == 0:
                    break
        return counts

    async def _batch(self, server: HealthGatedRedis, names: Sequence[str], counts: Counts, *, dry_run: bool) -> None:
        for kind, some in self._by_kind(names).items():
            for name, value in zip(some, await self._read(server, kind, some), strict=True):
                if kind == "pairs":
                    await self._pairs(server, name, counts, dry_run=dry_run)
                elif (outcome := await self._one(server, kind, name, value, dry_run=dry_run)) is not None:
                    counts[kind, outcome] += 1

    def _by_kind(self, names: Sequence[str]) -> dict[Kind, list[str]]:
        found: dict[Kind, list[str]] = {}
        for name in names:
            if (kind := self._kind(name)) is not None:
                found.setdefault(kind, []).append(name)
        return found

    def _kind(self, name: str) -> Kind | None:
        keys = self._keys
        if name == keys.labelled_pairs:
            return "pairs"
        if name.startswith(keys.document("")):
            return "documents" if name.endswith(":text") else "drafts" if name.endswith(":draft") else None
        if name.startswith(self._chunks):
            return "passages"
        if name.startswith(self._condensed):
            return "condensed"
        is_entry = any(part.holds(part.released(name)) for part in keys.partitions)
        return "answers" if is_entry else None

    async def _read(self, server: HealthGatedRedis, kind: Kind, names: Sequence[str]) -> list[Any]:
        """What tells whether a value is current: all texts, or the header of a long one."""

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    if kind in ("answers", "passages"):
                        pipe.hmget(name, *(_ENTRY if kind == "answers" else _PASSAGE))
                    elif kind == "pairs":
                        pipe.exists(name)
                    else:
                        pipe.getrange(name, 0, HEADER - 1) if kind != "condensed" else pipe.get(name)
                return await replies_of(pipe)

        return await server.run("reencrypt", read)

    async def _one(
        self, server: HealthGatedRedis, kind: Kind, name: str, value: Any, *, dry_run: bool
    ) -> Outcome | None:
        """None if the key is gone."""
        if isinstance(value, Exception) or not value:
            return None
        parts = [value] if isinstance(value, bytes) else value
        fields = dict(zip(_ENTRY if kind == "answers" else _PASSAGE, parts, strict=False))
        read = {key: part for key, part in fields.items() if part is not None and key not in _ABOUT}
        if not read or (kind == "answers" and not {"question", "answer"} <= read.keys()):
            return None
        if self._is_current(kind, read):
            return "current"
        if kind == "drafts":
            return "waiting"
        try:
            if kind == "documents":
                return await self._document(server, name, dry_run=dry_run)
            if kind == "condensed":
                plain = self._texts.decrypt(name, "question", value)
                stored = self._texts.encrypt(name, "question", plain)
                return await self._replaced(server, self._value, [name], [value, stored], dry_run=dry_run)
            new = self._entry(name, fields) if kind == "answers" else self._passage(name, read)
        except Undecryptable:
            return "unreadable"
        sets = [part for pair in new.items() for part in pair]
        gone = ("heading", "text", SEALED) if kind == "passages" else (ANSWER_DIGEST,)
        anchor = "created_ms" if kind == "answers" else SEALED if SEALED in read else "text"
        arguments = [anchor, fields[anchor], len(new), *sets, *(key for key in gone if key not in new)]
        return await self._replaced(server, self._fields, [name], arguments, dry_run=dry_run)

    def _is_current(self, kind: Kind, read: Mapping[str, bytes]) -> bool:
        if kind == "passages":
            return self._texts.is_current(read[SEALED]) if SEALED in read else not self._texts.encrypts
        return all(map(self._texts.is_current, read.values()))

    def _entry(self, name: str, fields: Mapping[str, bytes | None]) -> dict[str, Any]:
        """The texts of an entry, in service or in quarantine, as they are to be stored."""
        entry = next(part for part in self._keys.partitions if part.holds(part.released(name))).released(name)
        read = {key: part for key, part in fields.items() if part is not None and key in (*TEXTS, "sources")}
        plain = {key: part.decode() for key, part in decrypted_fields(self._texts, entry, read).items()}
        stored = encrypted_fields(self._texts, entry, plain)
        comment, request = fields["comment"], (fields["request"] or b"").decode("utf-8", "replace")
        if comment is not None:
            said = self._texts.decrypt(request, "comment", comment)
            stored["comment"] = self._texts.encrypt(request, "comment", said)
        return stored

    def _passage(self, name: str, read: Mapping[str, bytes]) -> dict[str, Any]:
        return passage_texts(self._texts, name, *texts_of(self._texts, name, read))

    async def _document(self, server: HealthGatedRedis, name: str, *, dry_run: bool) -> Outcome | None:
        document = name.removeprefix(self._keys.document("")).removesuffix(":text")
        record = self._keys.document(document)
        revision = await server.run("reencrypt", lambda client: client.hget(record, "revision"))
        content = await decrypted_download(server, self._keys, self._texts, document, name)
        if revision is None or content is None:
            return None
        if dry_run:
            return "rewritten"
        upload = await encrypted_upload(server, self._keys, self._texts, document, content)
        return await self._replaced(server, self._text, [name, upload, record], [revision], dry_run=False)

    async def _pairs(self, server: HealthGatedRedis, name: str, counts: Counts, *, dry_run: bool) -> None:
        last: Any = await server.run("reencrypt", lambda client: client.xrevrange(name, count=1))
        after = "-"
        while last:
            found: Any = await server.run(
                "reencrypt",
                lambda client, at=after: client.xrange(name, at, last[0][0], READ),  # type: ignore[misc]
            )
            for at, fields in found:
                counts["pairs", await self._one_pair(server, name, at, fields, dry_run=dry_run)] += 1
            if len(found) < READ:
                return
            after = f"({found[-1][0].decode()}"

    async def _one_pair(
        self, server: HealthGatedRedis, name: str, at: bytes, fields: Mapping[bytes, bytes], *, dry_run: bool
    ) -> Outcome:
        kept = [key for key in PAIR_FIELDS if key in fields]
        if all(self._texts.is_current(fields[key]) for key in kept):
            return "current"
        scope = fields.get(b"scope", b"").decode("utf-8", "replace")
        new: dict[bytes, Any] = dict(fields)
        try:
            for key in kept:
                plain = self._texts.decrypt(scope, key.decode(), fields[key])
                new[key] = self._texts.encrypt(scope, key.decode(), plain)
        except Undecryptable:
            return "unreadable"
        arguments = [at, *(part for pair in new.items() for part in pair)]
        return await self._replaced(server, self._pair, [name], arguments, dry_run=dry_run)

    async def _replaced(
        self, server: HealthGatedRedis, replace: Any, keys: list[str], arguments: list[Any], *, dry_run: bool
    ) -> Outcome:
        if dry_run:
            return "rewritten"
        done = await server.run("reencrypt", lambda client: replace(keys, arguments, client))
        await asyncio.sleep(0)
        return "rewritten" if done else "changed"
