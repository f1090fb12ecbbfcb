"""Stores files as documents, several at a time, and deletes the documents of files that are gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ragherd.document_client import (
    DocumentClient,
    DocumentFile,
    FoundFiles,
    Refused,
    ServiceGone,
    legacy_source,
    title_of,
)

MAX_DELETE: Final = 0.2
LARGEST_FILE: Final = 128 * 1024 * 1024
"""Bytes. Several files are in memory at a time, and the service refuses files from 20 MiB on by default."""
WINDOW_SECONDS: Final = 3600.0
"""A folder that disappears bit by bit must not lose a share of its documents in each round."""


@dataclass(frozen=True, slots=True)
class CommonFields:
    """The fields that all files share."""

    tenant: str | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None


@dataclass(slots=True)
class Result:
    """`counts` is by outcome: created, updated, unchanged, failed, deleted. `chunks` is the sum over all files.

    `gone`: the service stopped answering.
    """

    counts: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    failures: list[str] = field(default_factory=list)
    gone: bool = False


def read_whole(path: Path) -> bytes:
    """Returns the content of a file, but not of one that a link has replaced meanwhile.

    Raises `Refused` for a file over `LARGEST_FILE`, and `OSError`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # it may be a pipe by now too
    with os.fdopen(os.open(path, flags), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(LARGEST_FILE + 1) if size <= LARGEST_FILE else b""
    if max(size, len(content)) > LARGEST_FILE:
        raise Refused(f"the file has more than {LARGEST_FILE:,} bytes")
    return content


OnFile = Callable[[DocumentFile, tuple[str, int] | Exception], None]
"""Gets the outcome and the number of chunks, or why the file is not stored."""


async def upload_all(
    client: DocumentClient,
    files: Sequence[DocumentFile],
    common: CommonFields,
    concurrency: int,
    on_done: Callable[[Result], None] = lambda result: None,
    on_file: OnFile = lambda file, outcome: None,
    read: Callable[[DocumentFile], bytes] = lambda file: read_whole(file.path),
) -> Result:
    """Uploads files. A refused file does not affect the others. Calls `on_file` and `on_done` after each.

    If the service does not answer within the time limit, the remaining files are not sent.
    """
    result, waiting = Result(), iter(files)

    async def upload_files() -> None:
        for file in waiting:
            try:
                outcome, chunks = await _upload(client, file, common, read)
            except (Refused, OSError) as error:
                result.counts["failed"] += 1
                result.failures.append(f"{file.source}: {error}")
                on_file(file, error)
                if isinstance(error, ServiceGone):
                    result.gone = True
                    return
            else:
                result.counts[outcome] += 1
                result.chunks += chunks
                on_file(file, (outcome, chunks))
            on_done(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(upload_files())
    if unsent := sum(1 for _ in waiting):
        result.counts["failed"] += unsent
        result.failures.append(f"{unsent:,} more files were not sent")
    return result


class DeletionLimit:
    """Limits how many documents are deleted within an hour, as a share of those stored. No I/O."""

    def __init__(
        self,
        share: float,
        *,
        forced: bool = False,
        clock: Callable[[], float] = time.monotonic,
        charged: deque[tuple[float, int]] | None = None,
    ) -> None:
        """`charged`: times and numbers of earlier deletions, by this clock. It is kept up to date."""
        self.share = share
        self._forced = forced
        self._clock = clock
        self._deleted: deque[tuple[float, int]] = deque() if charged is None else charged

    def allows(self, count: int, stored: int) -> bool:
        """Returns whether `count` of `stored` documents may be deleted now."""
        while self._deleted and self._deleted[0][0] <= self._clock() - WINDOW_SECONDS:
            self._deleted.popleft()
        recent = sum(number for _, number in self._deleted)
        return self._forced or recent + count <= self.share * (recent + stored) + 1e-9

    def deleted(self, count: int) -> None:
        """Charges deleted documents."""
        self._deleted.append((self._clock(), count))

    def refusal(self, count: int, stored: int) -> str:
        """Returns why `allows` says no, in one line."""
        return (
            f"{count:,} of {stored:,} documents have no file any more: "
            f"more than --max-delete {self.share:g} allows within an hour. --force deletes them"
        )


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Documents whose files are gone, by source, and the number of all documents of the same folders."""

    folders: tuple[str, ...]
    ids: dict[str, list[str]]
    stored: int

    @property
    def count(self) -> int:
        """The number of documents whose files are gone."""
        return sum(map(len, self.ids.values()))


async def leftovers(client: DocumentClient, found: FoundFiles, common: CommonFields) -> Leftovers:
    """Finds documents of the folders or the collection whose files are gone."""
    prefixes = tuple(f"{folder}/" for folder in found.folders)
    present = {file.source for file in found.files}
    ids: dict[str, list[str]] = {}
    stored = 0
    for document in await client.all_of(common.tenant):
        source = document["source"] or ""
        if source.startswith(prefixes):
            stored += 1
            if source not in present:
                ids.setdefault(source, []).append(document["id"])
    return Leftovers(found.folders, ids, stored)


class TooManyGone(Refused):
    """More documents have lost their files than may be deleted."""


async def prune(
    client: DocumentClient, found: FoundFiles, common: CommonFields, limit: DeletionLimit | None = None
) -> int:
    """Deletes documents of the folders or the collection whose files are gone, and returns their number.

    Raises `TooManyGone`, and deletes nothing, if the limit does not allow it.
    """
    gone = await leftovers(client, found, common)
    if limit is not None and not limit.allows(gone.count, gone.stored):
        raise TooManyGone(limit.refusal(gone.count, gone.stored))
    for document in (one for ids in gone.ids.values() for one in ids):
        await client.delete(document)
    return gone.count


async def legacy_folders(client: DocumentClient, found: FoundFiles, common: CommonFields) -> list[str]:
    """Returns the names of folders whose files an earlier release stored under the folder's name only."""
    firsts = {file.source.partition("/")[0]: legacy_source(file.source) for file in reversed(found.files)}
    return [
        former.partition("/")[0]
        for folder, former in firsts.items()
        if folder in found.folders and await client.has(former, common.tenant)
    ]


async def _upload(
    client: DocumentClient, file: DocumentFile, common: CommonFields, read: Callable[[DocumentFile], bytes]
) -> tuple[str, int]:
    if file.source != file.source.encode("utf-8", "replace").decode():
        raise Refused("the file name is not UTF-8")
    return await store(client, file, await asyncio.to_thread(read, file), common)


async def store(client: DocumentClient, file: DocumentFile, content: bytes, common: CommonFields) -> tuple[str, int]:
    """Returns the outcome and the number of chunks. Raises `Refused`."""
    given = {
        "title": title_of(file, content),
        "source": file.source,
        "version": common.version,
        "tenant": common.tenant,
    }
    fields: dict[str, str | list[str]] = {name: value for name, value in given.items() if value is not None}
    outcome, document = await client.upload(file.path.name, content, {**fields, "tags": list(common.tags)})
    return outcome, int(document["chunks"])
