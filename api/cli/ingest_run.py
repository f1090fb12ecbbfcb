"""Uploads files, several at once, and counts what becomes of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from api.cli.document_client import Away, DocumentClient, Refused
from api.cli.document_files import DocumentFile, Found, former_source, title_of


@dataclass(frozen=True, slots=True)
class About:
    """What is said of all files alike."""

    tenant: str | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None


@dataclass(slots=True)
class Result:
    """`counts` by outcome: created, updated, unchanged, failed, deleted. `chunks` are those of all files."""

    counts: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    failures: list[str] = field(default_factory=list)


async def upload_all(
    client: DocumentClient,
    files: Sequence[DocumentFile],
    about: About,
    concurrency: int,
    on_done: Callable[[Result], None] = lambda result: None,
) -> Result:
    """One that is refused keeps none of the others. `on_done` is told after each.

    A service that one file has waited for in vain is not waited for with the next.
    """
    result, waiting = Result(), iter(files)

    async def lane() -> None:
        for file in waiting:
            try:
                outcome, chunks = await _upload(client, file, about)
            except (Refused, OSError) as error:
                result.counts["failed"] += 1
                result.failures.append(f"{file.source}: {error}")
                if isinstance(error, Away):
                    return
            else:
                result.counts[outcome] += 1
                result.chunks += chunks
            on_done(result)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(concurrency):
            lanes.create_task(lane())
    if unsent := sum(1 for _ in waiting):
        result.counts["failed"] += unsent
        result.failures.append(f"{unsent:,} more that were not sent")
    return result


async def prune(client: DocumentClient, found: Found, about: About) -> int:
    """Deletes documents of the folders, or of the collection, whose file is gone."""
    prefixes = tuple(f"{folder}/" for folder in found.folders)
    present = {file.source for file in found.files}
    gone = [
        document["id"]
        for document in await client.all_of(about.tenant)
        if (document["source"] or "").startswith(prefixes) and document["source"] not in present
    ]
    for document in gone:
        await client.delete(document)
    return len(gone)


async def former_documents(client: DocumentClient, found: Found, about: About) -> list[str]:
    """The names of folders whose files were stored by an earlier release, under that name alone."""
    firsts = {file.source.partition("/")[0]: former_source(file.source) for file in reversed(found.files)}
    return [
        former.partition("/")[0]
        for folder, former in firsts.items()
        if folder in found.folders and await client.has(former, about.tenant)
    ]


async def _upload(client: DocumentClient, file: DocumentFile, about: About) -> tuple[str, int]:
    if file.source != file.source.encode("utf-8", "replace").decode():
        raise Refused("its name is not UTF-8")
    content = await asyncio.to_thread(file.path.read_bytes)
    said = {
        "title": title_of(file, content),
        "source": file.source,
        "version": about.version,
        "tenant": about.tenant,
    }
    fields: dict[str, str | list[str]] = {name: value for name, value in said.items() if value is not None}
    outcome, document = await client.upload(file.path.name, content, {**fields, "tags": list(about.tags)})
    return outcome, int(document["chunks"])
