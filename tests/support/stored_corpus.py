"""Compares the documents in Redis with the expected ones: each document and chunk exactly once, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis as sync_redis

from tests.support.replies import fields

Texts = Mapping[str, list[str]]
"""The texts of a document's chunks in order, by source."""


@dataclass(frozen=True)
class StoredChunk:
    """A chunk by its key, with its text."""

    embedder: str
    document: str
    revision: int
    number: int
    text: str


class StoredCorpus:
    """All documents in Redis, read once while nothing changes."""

    def __init__(self, client: sync_redis.Redis) -> None:
        self._client = client
        keys = sorted(key.decode() for key in client.scan_iter("rag:*", count=2000))
        self.documents = {
            key.removeprefix("rag:doc:"): _text_of(client.hgetall(key))
            for key in keys
            if key.startswith("rag:doc:") and key.count(":") == 2
        }
        self.chunks = list(self._chunks([key for key in keys if key.startswith("rag:chunk:")]))
        # An upload whose worker was killed goes by itself: it has a lifetime.
        uploads = [key for key in keys if key.startswith("rag:upload:") and client.ttl(key) == -1]
        self.unfinished = [*(key for key in keys if key.endswith((":work", ":draft"))), *uploads]

    def _chunks(self, keys: list[str]) -> Iterator[StoredChunk]:
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.hget(key, "text")
        for key, text in zip(keys, pipe.execute(), strict=True):
            embedder, document, revision, number = key.removeprefix("rag:chunk:").split(":")
            yield StoredChunk(embedder, document, int(revision), int(number), text.decode())

    def faults(self, expected: Texts, embedders: int = 1) -> list[str]:
        """Returns a line per inconsistency; empty if everything is correct."""
        sources = Counter(fields.get("source") for fields in self.documents.values())
        found = [f"{source}: {sources[source]} documents" for source in expected if sources[source] != 1]
        found += [f"{source}: not expected" for source in sources if source not in expected]
        found += [f"{fields.get('source')}: {fields.get('status')}" for fields in self._not_ready()]
        found += [f"left over: {key}" for key in self.unfinished]
        present = {chunk.embedder for chunk in self.chunks}
        if len(present) != embedders:
            found.append(f"chunks of {len(present)} embedders")
        for embedder in sorted(present):
            found += self._chunk_faults(expected, embedder)
            found += self._index_faults(sum(map(len, expected.values())), embedder)
        return [*found, *self._counts(expected)]

    def _not_ready(self) -> list[dict[str, str]]:
        return [fields for fields in self.documents.values() if fields.get("status") != "ready"]

    def _chunk_faults(self, expected: Texts, embedder: str) -> Iterator[str]:
        serving = {(one, int(fields["revision"])): fields for one, fields in self.documents.items()}
        held: dict[str, dict[int, str]] = {}
        for chunk in self.chunks:
            if chunk.embedder != embedder:
                continue
            if (chunk.document, chunk.revision) not in serving:
                yield f"orphan: {chunk}"
            else:
                held.setdefault(serving[chunk.document, chunk.revision]["source"], {})[chunk.number] = chunk.text
        for source, texts in expected.items():
            found = held.get(source, {})
            if found != dict(enumerate(texts)):
                yield f"{source}: {len(found)} chunks of {embedder}, {len(texts)} expected, or other texts"

    def _index_faults(self, chunks: int, embedder: str) -> Iterator[str]:
        command = ("FT.SEARCH", f"rag:index:passages:{embedder}", "*", "LIMIT", 0, 0)
        reply: Any = self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        total = reply[b"total_results"] if isinstance(reply, dict) else reply[0]
        if total != chunks:
            yield f"the index of {embedder} has {total} chunks, {chunks} expected"

    def _counts(self, expected: Texts) -> Iterator[str]:
        wanted = {"documents": len(expected), "chunks": sum(map(len, expected.values()))}
        counted: Counter[str] = Counter()
        for key in self._client.scan_iter("rag:corpus:????????????????", count=2000):
            found = _text_of(self._client.hgetall(key))
            counted.update({name: int(found[name]) for name in wanted})
        yield from (
            f"{name}: {counted[name]} counted, {count} expected"
            for name, count in wanted.items()
            if counted[name] != count
        )
        if left := self._client.zcard("rag:corpus:work"):
            yield f"{left} documents in the list of work"


def _text_of(reply: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    return {name: value.decode("utf-8", "replace") for name, value in fields(reply).items()}
