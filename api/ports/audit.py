"""The audit log: the actions of admins as a chain of hashes.

Each entry has the hash of the entry before it, so a changed, removed or inserted entry breaks the chain. Someone who
may write to Redis can compute a whole new chain; its hashes then differ from those in the service's log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Final, Protocol

import orjson

FIRST: Final = "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """What an admin asked for.

    `by` names the key, not its secret. `details` has no texts and no tenants' names, so that erasing a tenant leaves
    the chain whole.
    """

    action: str
    by: str
    role: str
    request: str
    worker: str
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A record in the chain. `number` counts from 1, `at_ms` is Redis's clock, `previous` the hash before."""

    number: int
    at_ms: int
    record: AuditRecord
    previous: str
    hash: str
    id: str = ""
    """The ID in the stream; empty before it is written."""

    @classmethod
    def after(cls, last: AuditEntry | None, record: AuditRecord, now_ms: int) -> AuditEntry:
        """Returns the entry that follows `last`. Its time is never before that of `last`."""
        number, previous = (last.number + 1, last.hash) if last is not None else (1, FIRST)
        at_ms = max(now_ms, last.at_ms) if last is not None else now_ms
        return cls(number, at_ms, record, previous, digest_of(number, at_ms, record, previous))


def digest_of(number: int, at_ms: int, record: AuditRecord, previous: str) -> str:
    """Returns the SHA-256 of an entry and of the hash before it, in 64 hex digits."""
    canonical = orjson.dumps([previous, number, at_ms, *astuple(record)], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()


def chain_fault(entries: Sequence[AuditEntry]) -> str | None:
    """Returns what is wrong with a chain, oldest entry first; None if it is whole.

    The oldest entries may have been trimmed: then the first one names the hash before it.
    """
    for entry in entries:
        if digest_of(entry.number, entry.at_ms, entry.record, entry.previous) != entry.hash:
            return f"Entry {entry.number} was changed."
    for before, after in pairwise(entries):
        if after.number != before.number + 1 or after.previous != before.hash:
            return f"Entry {after.number} does not follow entry {before.number}."
    if entries and entries[0].number == 1 and entries[0].previous != FIRST:
        return "Entry 1 names an entry before it."
    return None


def has_hash(entries: Iterable[AuditEntry], known: str) -> bool:
    """Returns whether a hash, such as one from the log, is in the chain."""
    return any(known in (entry.hash, entry.previous) for entry in entries)


class AuditLog(Protocol):
    """The chain of the fleet. Its methods raise `StoreUnavailable`."""

    async def append(self, record: AuditRecord) -> AuditEntry:
        """Adds an entry to the end of the chain."""

    async def page(self, limit: int, before: str | None = None) -> Sequence[AuditEntry]:
        """Returns entries, newest first: those before the entry with this ID, or the last."""
