"""Keeps the documents of folders in step with the disk.

The disk is polled, so it works on network file systems and in containers. Nothing is remembered on disk: the first
round compares every file with the service, which skips those that it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ragherd.document_client import DocumentClient, DocumentFile, FoundFiles, ServiceGone, find
from ragherd.journal import Journal
from ragherd.uploads import CommonFields, DeletionLimit, Leftovers, leftovers, read_whole, upload_all

RETRY_SECONDS: Final = 600.0
"""Until an unchanged file that was refused is sent again."""


class Stamp(NamedTuple):
    """What tells that a file has changed: its size in bytes and its time in nanoseconds."""

    size: int
    modified: int


def stamp_of(path: Path) -> Stamp:
    """Raises `OSError`."""
    stat = path.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns)


def due(before: Mapping[str, Stamp], now: Mapping[str, Stamp], known: Mapping[str, Stamp]) -> list[str]:
    """Returns the sources that are whole, unchanged since the scan before, and not known to the service yet."""
    return [source for source, stamp in now.items() if before.get(source) == stamp != known.get(source)]


@dataclass(frozen=True, slots=True)
class Scan:
    """The files of the folders. A file that vanished during the scan has no stamp."""

    found: FoundFiles
    stamps: dict[str, Stamp]


class ChangesNow(OSError):
    """The file changed while it was read."""


class Follower:
    """Follows folders, or several that make one collection."""

    def __init__(
        self,
        paths: Sequence[Path],
        common: CommonFields,
        *,
        collection: str | None = None,
        code: bool = False,
        limit: DeletionLimit | None = None,
        concurrency: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit`: deletes the documents whose files are gone, within this limit."""
        self.paths = paths
        self._common = common
        self._collection = collection
        self._code = code
        self._limit = limit
        self._concurrency = concurrency
        self._clock = clock
        self._before: dict[str, Stamp] | None = None
        self._known: dict[str, Stamp] = {}
        """Files as they were last sent, including the refused ones."""
        self._refused: dict[str, tuple[str, float]] = {}
        """Why a source was refused, and when it is sent again."""
        self._pruned: set[str] | None = None
        """The sources on disk when documents were last compared with them, and those sent since."""
        self._held: tuple[frozenset[str], float] | None = None
        """The sources that a limit keeps, and when to compare again."""

    @property
    def in_step(self) -> int:
        """The number of files whose documents are up to date."""
        return sum(source not in self._refused for source in self._known)

    def forget(self) -> None:
        """Compares every file with the service again."""
        self._known, self._pruned = {}, None

    async def round(self, client: DocumentClient, journal: Journal) -> bool:
        """Scans once, stores files that are whole, and returns whether another scan has to decide about some.

        Raises `OSError` and `SameSource` if the folders cannot be scanned, and `Refused` if the service is away.
        """
        before = self._before
        scan = await asyncio.to_thread(self._scan)
        self._before = scan.stamps
        if before is None:
            return True
        self._drop_old(scan)
        files = {file.source: file for file in scan.found.files}
        await self._send([files[source] for source in due(before, scan.stamps, self._known)], scan, client, journal)
        if self._limit is not None and before.keys() == scan.stamps.keys():
            await self._prune(self._limit, scan, client, journal)
        return before.keys() != scan.stamps.keys() or any(
            before[source] != stamp for source, stamp in scan.stamps.items()
        )

    def _scan(self) -> Scan:
        for path in self.paths:
            path.stat()  # a missing folder is not an empty one
        found = find(self.paths, self._collection, code=self._code)
        stamps = {}
        for file in found.files:
            try:
                stamps[file.source] = stamp_of(file.path)
            except FileNotFoundError:
                continue
        return Scan(found, stamps)

    def _drop_old(self, scan: Scan) -> None:
        now = self._clock()
        self._refused = {source: one for source, one in self._refused.items() if source in scan.stamps}
        again = {source for source, (_, at) in self._refused.items() if at <= now}
        self._known = {
            source: stamp for source, stamp in self._known.items() if source in scan.stamps and source not in again
        }

    # -- Files ---------------------------------------------------------------------------------------------------------

    async def _send(self, files: Sequence[DocumentFile], scan: Scan, client: DocumentClient, journal: Journal) -> None:
        def read(file: DocumentFile) -> bytes:
            content = read_whole(file.path)
            if stamp_of(file.path) != scan.stamps[file.source]:
                raise ChangesNow(f"{file.path} changes while it is read")
            return content

        def told(file: DocumentFile, outcome: tuple[str, int] | Exception) -> None:
            if isinstance(outcome, Exception):
                self._not_stored(file, scan.stamps[file.source], outcome, journal)
                return
            self._known[file.source] = scan.stamps[file.source]
            self._refused.pop(file.source, None)
            if self._pruned is not None:
                self._pruned.add(file.source)
            name, chunks = outcome
            if name == "unchanged":
                journal.count(name)
            else:
                journal.tell(name, file.source, chunks=chunks)

        result = await upload_all(client, files, self._common, self._concurrency, on_file=told, read=read)
        if result.gone:
            raise ServiceGone(result.failures[0].removeprefix(f"{files[0].source}: "))

    def _not_stored(self, file: DocumentFile, stamp: Stamp, error: Exception, journal: Journal) -> None:
        if isinstance(error, ServiceGone | ChangesNow | FileNotFoundError):
            return  # the next round looks again
        former, _ = self._refused.get(file.source, ("", 0.0))
        self._known[file.source] = stamp
        self._refused[file.source] = (str(error), self._clock() + RETRY_SECONDS)
        if former != str(error):
            journal.tell("failed", file.source, str(error))

    # -- Documents without a file --------------------------------------------------------------------------------------

    async def _prune(self, limit: DeletionLimit, scan: Scan, client: DocumentClient, journal: Journal) -> None:
        present = set(scan.stamps)
        waited = self._held is not None and self._held[1] <= self._clock()
        if self._pruned is not None and self._pruned <= present and not waited:
            return
        gone = await leftovers(client, scan.found, self._common)
        latest = await asyncio.to_thread(self._scan)  # sending the files may have taken long
        if latest.stamps.keys() != scan.stamps.keys() or latest.found.folders != scan.found.folders:
            return
        if gone.count and not limit.allows(gone.count, gone.stored):
            self._hold(limit, gone, journal)
        else:
            await self._delete(limit, gone, client, journal)
        self._pruned = present

    def _hold(self, limit: DeletionLimit, gone: Leftovers, journal: Journal) -> None:
        sources = frozenset(gone.ids)
        if self._held is None or self._held[0] != sources:
            journal.tell("held", ", ".join(f"{one}/" for one in gone.folders), limit.refusal(gone.count, gone.stored))
        self._held = (sources, self._clock() + RETRY_SECONDS)

    async def _delete(self, limit: DeletionLimit, gone: Leftovers, client: DocumentClient, journal: Journal) -> None:
        for source, ids in gone.ids.items():
            for document in ids:
                limit.deleted(1)
                await client.delete(document)
            self._known.pop(source, None)
            journal.tell("deleted", source)
        self._held = None
