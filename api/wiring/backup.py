"""Opens Redis for commands that read or write the fleet's data, with the service's own settings."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from api import __version__
from api.backup.transfer import BackupOrigin
from api.embedders.verifier import read_folder
from api.errors import StoreUnavailable
from api.ports.audit import AuditRecord
from api.redis_store.client import AnyHealthGated, open_client
from api.redis_store.encryption import TextCipher
from api.redis_store.health_gated import RedisHealthEvents
from api.redis_store.keys import Keys
from api.redis_store.schema import SCHEMA, FleetSchema
from api.redis_store.search_index import algorithm_for
from api.redis_store.stores.audit import RedisAuditLog
from api.redis_store.stores.backup.source import RedisBackupSource
from api.redis_store.stores.backup.target import AnswerWriter, DocumentWriter, RedisBackupTarget
from api.redis_store.stores.cache.invalidation import RedisInvalidationTags
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.cache.sweep import RedisCacheSweep
from api.redis_store.stores.documents.work import RedisDeletions, RedisDocumentWork
from api.redis_store.stores.feedback import MOST_QUARANTINED, QuarantinedAnswer, quarantined_answers
from api.redis_store.stores.label_store import RedisLabels
from api.redis_store.stores.quality_store import RedisVerifierModels
from api.redis_store.stores.reencryption import Counts, RedisReencryption
from api.settings import Settings
from api.wiring.redis import redis_address

PATIENCE: Final = 10.0
"""Shortest timeout of a command in seconds: nobody waits for an answer."""
SWEEP_SECONDS: Final = 600.0
MAKER: Final = BackupOrigin(__version__, str(SCHEMA))


class LastFailure(RedisHealthEvents):
    """Keeps the last error for a one-line message."""

    last = "no node of it answers"

    def failed(self, operation: str, error: BaseException) -> None:
        self.last = str(error) or type(error).__name__

    def mismatched(self, message: str) -> None:
        """The URL's scheme does not match the server."""
        self.last = message


@dataclass(frozen=True, slots=True)
class Memory:
    """The fleet's data, to read and write."""

    source: RedisBackupSource
    target: RedisBackupTarget
    deletions: RedisDeletions
    feedback_of: Callable[[str], AsyncIterator[dict[str, Any]]]
    """A tenant's labels, kept pairs and quarantined answers, as lines of an export."""


@asynccontextmanager
async def opened_memory(settings: Settings, *, writes: bool) -> AsyncIterator[Memory]:
    """Opens the data. `writes`: also for writing.

    Raises `StoreUnavailable` if Redis does not answer or has the keys of another release.
    """
    async with _opened(settings, writes=writes) as (client, keys, worker):
        if writes:
            await _audited(client, keys, worker, "restore")
        yield _memory(settings, client, keys, worker)


@asynccontextmanager
async def opened_labels(settings: Settings) -> AsyncIterator[RedisLabels]:
    """Opens the labels and the kept pairs, to read. Raises `StoreUnavailable` like `opened_memory`."""
    async with _opened(settings, writes=False) as (client, keys, _):
        yield RedisLabels(client, keys)


@asynccontextmanager
async def opened_quarantine(
    settings: Settings,
) -> AsyncIterator[Callable[[int], Awaitable[list[QuarantinedAnswer]]]]:
    """Opens the answers that were judged bad, to read a number of them. Raises `StoreUnavailable`."""
    async with _opened(settings, writes=False) as (client, keys, _):
        yield partial(quarantined_answers, client, keys)


@asynccontextmanager
async def opened_verifier_models(settings: Settings) -> AsyncIterator[RedisVerifierModels]:
    """Opens the fleet's verifiers, to activate one or roll back. Raises `StoreUnavailable` like `opened_memory`."""
    async with _opened(settings, writes=True) as (client, keys, _):
        yield RedisVerifierModels(client, keys)


async def activate_verifier(settings: Settings, folder: Path) -> str:
    """Puts a trained model in use on all workers within a second or two, and returns its version.

    Raises `SettingsError` if the folder is not a complete model, and `StoreUnavailable`.
    """
    files = await asyncio.to_thread(read_folder, folder)
    async with _opened(settings, writes=True) as (client, keys, worker):
        await _audited(client, keys, worker, "verifier.activate")
        return await RedisVerifierModels(client, keys).activate(files)


async def roll_back_verifier(settings: Settings) -> str | None:
    """Puts the verifier before the active one in use again, on all workers, and returns its version.

    The version is empty for the model of SEMANTIC_CACHE_VERIFIER_PATH. Returns None if no model was ever activated.
    Raises `StoreUnavailable`.
    """
    async with _opened(settings, writes=True) as (client, keys, worker):
        await _audited(client, keys, worker, "verifier.roll-back")
        return await RedisVerifierModels(client, keys).roll_back()


async def reencrypt(settings: Settings, *, dry_run: bool) -> Counts:
    """Encrypts again what another key has encrypted, or none. Raises `StoreUnavailable` like `opened_memory`."""
    async with _opened(settings, writes=not dry_run) as (client, keys, worker):
        if not dry_run:
            await _audited(client, keys, worker, "reencrypt")
        return await RedisReencryption(client, keys).run(dry_run=dry_run)


@asynccontextmanager
async def _opened(settings: Settings, *, writes: bool) -> AsyncIterator[tuple[AnyHealthGated, Keys, str]]:
    address, failures, keys = redis_address(settings.redis), LastFailure(), Keys(*settings.key_layout)
    patient = replace(
        address, timeout=max(address.timeout, PATIENCE), connect_timeout=max(address.connect_timeout, PATIENCE)
    )
    texts = TextCipher(settings.access.encryption_ring())
    async with open_client(patient, lambda shard: failures, failures.mismatched, keys.probe, texts) as client:
        worker = f"command-{socket.gethostname()}-{os.getpid()}"
        schema = FleetSchema(client, keys, worker, __version__, lambda conflict: None, states=writes)
        if not await client.check():
            raise StoreUnavailable(schema.conflict or f"Redis cannot be used: {failures.last}")
        yield client, keys, worker


async def _audited(client: AnyHealthGated, keys: Keys, worker: str, action: str) -> None:
    """Records what a command is about to change. It needs no key: who runs it can reach Redis anyway."""
    await RedisAuditLog(client, keys).append(AuditRecord(action, "command-line", "admin", "", worker, {}))


def _memory(settings: Settings, client: AnyHealthGated, keys: Keys, worker: str) -> Memory:
    cache, deletions = settings.cache, RedisDeletions(client, keys)
    new_outdate = cache.enabled and settings.retrieval.cache_on_new_documents != "none"
    # It parses no files: one that a worker has begun is left to workers, or its bytes would become the text.
    work = RedisDocumentWork(client, keys, worker, reads=())
    indexes = SemanticIndexes(client, keys, algorithm_for(settings.partition_size), cache.vector_type)
    tags = RedisInvalidationTags(client, keys, indexes)
    sweep, most = RedisCacheSweep(client, keys, SWEEP_SECONDS), settings.documents.documents_max
    documents = DocumentWriter(client, keys, worker, work, sweep, tags, most, tells_of_new=new_outdate)
    size, vector_type = settings.partition_size, cache.vector_type
    answers = AnswerWriter(client, keys, deletions, size, vector_type, new_outdate=new_outdate)
    target = RedisBackupTarget(documents, answers, deletions, sweep)
    return Memory(RedisBackupSource(client, keys), target, deletions, partial(_feedback, client, keys))


async def _feedback(client: AnyHealthGated, keys: Keys, tenant: str) -> AsyncIterator[dict[str, Any]]:
    async for kind, fields in RedisLabels(client, keys).of_tenant(tenant):
        yield {"is": kind, **fields}
    for answer in await quarantined_answers(client, keys, MOST_QUARANTINED * len(keys.partitions)):
        if answer.tenant == tenant:
            yield {"is": "quarantined", **answer._asdict()}
