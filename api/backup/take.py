"""Takes a backup: documents first, then the answers that cite them, one after the other, while the fleet works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from api.backup.records import FORMAT, Header, answer_line, corpora_line, deletions_line, document_lines
from api.backup.writing import BackupWriter
from api.ports.backup import BackupSource
from api.ports.deletions import Deletions, marks_for

OnStep = Callable[[str, int, int], None]
"""Told of each step: what it is of, how many are done, and how many there are, about."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What goes into a backup. No tenants: all. `vectors`: chunks too, so that nothing has to be embedded anew."""

    documents: bool = True
    cache: bool = True
    tenants: tuple[str, ...] = ()
    vectors: bool = True


@dataclass(frozen=True, slots=True)
class Maker:
    """Who takes a backup: the release, and the schema of the keys that it knows."""

    release: str
    schema: str


async def take(
    source: BackupSource, deletions: Deletions, writer: BackupWriter, wanted: Wanted, maker: Maker, on: OnStep
) -> None:
    """Writes all of it. Raises `StoreUnavailable`."""
    now = datetime.fromtimestamp(await source.now_ms() / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    about = (now, maker.release, maker.schema, wanted.documents, wanted.cache)
    header = Header(FORMAT, *about, wanted.tenants, *await source.expected())
    writer.write(header.line())
    if wanted.documents:
        await _documents(source, writer, wanted, header.expected_documents, on)
    if wanted.cache:
        writer.write(deletions_line(marks_for(await deletions.noted(), wanted.tenants)))
        await _answers(source, writer, wanted.tenants, header.expected_answers, on)
    writer.end()


async def _documents(source: BackupSource, writer: BackupWriter, wanted: Wanted, about: int, on: OnStep) -> None:
    async for stored in source.documents(wanted.tenants, vectors=wanted.vectors):
        for line in document_lines(stored):
            writer.write(line)
        on("documents", writer.counts["document"], about)


async def _answers(source: BackupSource, writer: BackupWriter, tenants: Sequence[str], about: int, on: OnStep) -> None:
    before = await source.unsettled()
    grounded: set[str] = set()
    async for answer in source.answers(tenants):
        writer.write(answer_line(answer))
        if answer.is_grounded:
            grounded.add(answer.tenant)
        on("answers", writer.counts["answer"], about)
    writer.write(corpora_line(await _corpora(source, sorted(grounded), before)))


async def _corpora(source: BackupSource, tenants: Sequence[str], before: Mapping[str, int | None]) -> Mapping[str, str]:
    """Which documents the answers were right for: where they changed while answers were read, nobody can say."""
    found = {}
    for tenant in tenants:
        epoch, digest = await source.corpus(tenant)
        found[tenant] = digest if before.get(tenant, 0) == epoch else ""
    return found
