"""`ragherd sync`: keeps documents in step with a list of folders and URLs, once or every few minutes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ragherd.document_client import (
    MAX_OUTAGE_SECONDS,
    DocumentClient,
    DocumentFile,
    Refused,
    SameSource,
    ServiceGone,
    connected,
)
from ragherd.downloads import USER_AGENT, Download, Downloads, FileGone, NotFetched, validators_of
from ragherd.exits import FAILED, USAGE_ERROR, exit_with
from ragherd.follow import Follower
from ragherd.guarded_http import AllowedHosts, guarded_client
from ragherd.ingest import KEY_VARIABLES, interrupted, service_faults, usable_address
from ragherd.journal import Journal, until_stopped
from ragherd.service_client import Url, own_address, print_document, usable_key
from ragherd.sync_list import InvalidList, Listed, SyncState, parse
from ragherd.uploads import MAX_DELETE, CommonFields, DeletionLimit, store
from ragherd.watch import Backoff, Pause

SETTLE_SECONDS: Final = 2.0
"""A file that does not change for so long is whole."""
MAX_BYTES: Final = 20 * 1024 * 1024
"""The default of the service's DOCUMENT_MAX_BYTES."""
URLS: Final = "URLs"
"""Names the URLs of a list, which lose documents together, where a folder has its path."""
OUTCOMES: Final = ("created", "updated", "unchanged", "failed", "deleted", "held", "gone")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What one command line asks for. `limit_share` is None without --prune."""

    file: Path
    common: CommonFields
    limit_share: float | None = None
    forced: bool = False
    code: bool = False
    concurrency: int = 4
    hosts: tuple[str, ...] = ()
    private: bool = False

    def listed(self) -> list[Listed]:
        """Reads the list. Raises `OSError` and `InvalidList`."""
        try:
            return parse(self.file.read_text("utf-8-sig"), self.file.absolute().parent)
        except UnicodeDecodeError:
            raise InvalidList("is not UTF-8") from None

    def limit(self, charged: deque[tuple[float, int]]) -> DeletionLimit | None:
        """Returns a limit that counts earlier deletions, or None if nothing is deleted."""
        if self.limit_share is None:
            return None
        return DeletionLimit(self.limit_share, forced=self.forced, clock=time.time, charged=charged)

    def fields_of(self, one: Listed) -> CommonFields:
        """Returns the fields of a line's documents."""
        return replace(self.common, tags=tuple(dict.fromkeys((*self.common.tags, *one.tags))))


class Sync:
    """Follows one list. Folders and the URLs are each limited in what they lose."""

    def __init__(
        self,
        plan: SyncPlan,
        service: str,
        client: DocumentClient,
        downloads: Downloads,
        allowed: AllowedHosts,
        state: SyncState,
        journal: Journal,
        pause: Pause = asyncio.sleep,
    ) -> None:
        """`service`: its URL, which the state is for."""
        self._plan = plan
        self._service = service
        self._client = client
        self._downloads = downloads
        self._allowed = allowed
        self._state = state
        self._journal = journal
        self._pause = pause
        self._followers: dict[Listed, Follower] = {}
        self._url_limit = plan.limit(state.deletions(URLS))

    async def round(self, listed: Sequence[Listed], on_done: Callable[[], object] = lambda: None) -> None:
        """Goes through the list once. Raises `Refused` if the service is away or does not accept the key."""
        urls = [one for one in listed if one.is_url]
        self._allowed.names = {*(one.host for one in urls), *self._plan.hosts}
        self._allowed.private = {one.host for one in urls if one.private}
        self._allowed.all_private = self._plan.private
        self._followers = {one: self._follower(one) for one in listed if not one.is_url}
        try:
            for one, follower in self._followers.items():
                await self._folder(one, follower)
                on_done()
            await self._urls(urls, on_done)
        finally:
            self._write_state()

    def forget(self) -> None:
        """Compares every file with the service again."""
        for follower in self._followers.values():
            follower.forget()

    # -- Folders -------------------------------------------------------------------------------------------------------

    def _follower(self, one: Listed) -> Follower:
        return self._followers.get(one) or Follower(
            [Path(one.where)],
            self._plan.fields_of(one),
            collection=one.collection,
            code=self._plan.code,
            limit=self._plan.limit(self._state.deletions(one.collection or one.where)),
            concurrency=self._plan.concurrency,
        )

    async def _folder(self, one: Listed, follower: Follower) -> None:
        counts = self._journal.counts
        changed, unchanged = counts["created"] + counts["updated"], counts["unchanged"]
        try:
            if await follower.round(self._client, self._journal):
                await self._pause(SETTLE_SECONDS)
                if await follower.round(self._client, self._journal):
                    self._journal.tell("changing", one.where, "files that still change wait for the next run")
        except (OSError, SameSource) as error:
            self._journal.tell("failed", one.where, f"cannot be read: {error}")
            return
        changed = counts["created"] + counts["updated"] - changed
        counts["unchanged"] = unchanged + max(0, follower.in_step - changed)

    # -- URLs ----------------------------------------------------------------------------------------------------------

    async def _urls(self, urls: Sequence[Listed], on_done: Callable[[], object]) -> None:
        gone: dict[str, list[str]] = {}
        stored = 0

        async def visit(one: Listed) -> None:
            nonlocal stored
            documents = await self._client.with_source(one.where, self._plan.common.tenant)
            stored += len(documents)
            if not await self._url(one, documents) and documents:
                gone[one.where] = [document["id"] for document in documents]
            on_done()

        self._state.keep_only({one.where for one in urls})
        await in_parallel(urls, visit, self._plan.concurrency)
        await self._delete(gone, stored)

    async def _url(self, one: Listed, documents: Sequence[Any]) -> bool:
        """Stores a file that has changed, and returns False if there is no such file any more."""
        fields = self._plan.fields_of(one)
        digest = _digest(self._service, fields)
        known = self._state.get(one.where)
        if known is not None and (known.fields != digest or all(found["status"] != "ready" for found in documents)):
            known = None
        try:
            found = await self._downloads.fetch(one.where, known)
            if found is None:
                self._journal.count("unchanged")
                return True
            outcome, chunks = await self._store(one, found, fields)
        except FileGone as error:
            self._journal.tell("gone" if documents else "failed", one.where, str(error))
            return False
        except (NotFetched, Refused) as error:
            if isinstance(error, ServiceGone):
                raise
            self._journal.tell("failed", one.where, str(error))
            return True
        self._state.put(one.where, validators_of(found, digest))
        if outcome == "unchanged":
            self._journal.count(outcome)
        else:
            self._journal.tell(outcome, one.where, chunks=chunks)
        return True

    async def _store(self, one: Listed, found: Download, fields: CommonFields) -> tuple[str, int]:
        return await store(self._client, DocumentFile(Path(found.name), one.where), found.content, fields)

    async def _delete(self, gone: dict[str, list[str]], stored: int) -> None:
        count = sum(map(len, gone.values()))
        if not count or self._url_limit is None:
            return
        if not self._url_limit.allows(count, stored):
            self._journal.tell("held", URLS, self._url_limit.refusal(count, stored))
            return
        for url, ids in gone.items():
            for document in ids:
                self._url_limit.deleted(1)
                await self._client.delete(document)
            self._journal.tell("deleted", url)

    def _write_state(self) -> None:
        try:
            self._state.write()
        except OSError as error:
            self._journal.tell("warning", why=f"the state cannot be written, the next run downloads again: {error}")


def _digest(service: str, fields: CommonFields) -> str:
    told = json.dumps([service, fields.tenant, fields.tags, fields.version])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


async def in_parallel(items: Iterable[T], work: Callable[[T], Awaitable[None]], workers: int) -> None:
    """Does the work for each item, several at a time. The first exception ends it, and is raised."""
    waiting = iter(items)

    async def take() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(take())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


# -- Command -----------------------------------------------------------------------------------------------------------


def sync(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="List: one folder or URL a line.")],
    url: Url = None,
    key: Annotated[str | None, typer.Option(envvar=KEY_VARIABLES, help="Admin key.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Go through the list once, and exit.")] = False,
    every: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds between two rounds.")] = 300.0,
    tenant: Annotated[str | None, typer.Option(help="Tenant that the documents belong to.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for all documents. Can be repeated.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of all documents.")] = None,
    code: Annotated[bool, typer.Option("--code", help="Also store source code and data files of folders.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Files uploaded at the same time.")] = 4,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete documents whose files are gone: from a folder, or 404 and 410.")
    ] = False,
    max_delete: Annotated[
        float,
        typer.Option(min=0, max=1, help="Largest share of a folder's documents deleted in an hour."),
    ] = MAX_DELETE,
    force: Annotated[bool, typer.Option("--force", help="Delete more than --max-delete.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host that URLs may redirect to. Can be repeated. Listed hosts may.")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Allow private, loopback and link-local addresses for all hosts.")
    ] = False,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest download in bytes.")] = MAX_BYTES,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Longest download in seconds.")] = 120.0,
    state: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="File that remembers ETags and deletions. Default: FILE.state."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a round.")] = False,
) -> None:
    """Keep documents in step with a list of folders and URLs. Ctrl-C and SIGTERM end it cleanly."""
    hosts = tuple(host.lower() for host in allow_host or ())
    common = CommonFields(tenant, tuple(tag or ()), version)
    plan = SyncPlan(file, common, max_delete if prune else None, force, code, concurrency, hosts, allow_private)
    try:
        plan.listed()
    except (OSError, InvalidList) as error:
        raise exit_with(f"{file}: {error}", USAGE_ERROR) from None
    usable = usable_key(key or "")
    run = SyncRuns(plan, SyncState(state or file.with_name(f"{file.name}.state")), as_json=as_json)
    with service_faults():
        address = usable_address(url or own_address())
        work = run.run(address, usable, None if once else every, max_bytes, timeout)
        stopped = asyncio.run(until_stopped(work)) is None
    if stopped and once:
        raise interrupted()
    if once and run.journal.failures:
        raise typer.Exit(FAILED)


class SyncRuns:
    """The rounds of one command, and what it prints."""

    def __init__(self, plan: SyncPlan, state: SyncState, *, as_json: bool, pause: Pause = asyncio.sleep) -> None:
        self._plan = plan
        self._state = state
        self._as_json = as_json
        self._pause = pause
        self.journal = Journal(as_json=as_json, quiet=as_json)
        self._began = time.monotonic()

    async def run(self, url: str, key: str, every: float | None, max_bytes: int, timeout: float) -> bool:  # noqa: ASYNC109
        """`every`: seconds between two rounds, or None for one round."""
        allowed = AllowedHosts()
        async with AsyncExitStack() as stack:
            web = await stack.enter_async_context(guarded_client(allowed, USER_AGENT))
            client = await stack.enter_async_context(connected(url, key, max_outage=MAX_OUTAGE_SECONDS))
            downloads = Downloads(web, allowed, max_bytes, timeout)
            following = Sync(self._plan, url, client, downloads, allowed, self._state, self.journal, self._pause)
            if every is None:
                await self._round(following)
                return True
            backoff = Backoff(every, longest=every)
            while True:
                try:
                    await self._round(following)
                except (Refused, OSError, InvalidList) as error:
                    following.forget()
                    self.journal.tell("failed", why=str(error))
                    self._report()
                await self._pause(backoff.next())

    async def _round(self, following: Sync) -> None:
        self.journal.begin()
        self._began = time.monotonic()
        listed = self._plan.listed()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("Folders and URLs", total=len(listed))
            await following.round(listed, lambda: progress.advance(task))
        self._report()

    def _report(self) -> None:
        journal = self.journal
        counts = {name: journal.counts[name] for name in OUTCOMES}
        if self._as_json:
            print_document({**counts, "chunks": journal.chunks, "failures": journal.failures})
            for failure in journal.failures:
                typer.echo(f"failed: {failure}", err=True)
            return
        parts = [f"{name} {count:,}" for name, count in counts.items() if count] or ["no files"]
        seconds = time.monotonic() - self._began
        typer.echo(f"{', '.join(parts)} ({journal.chunks:,} chunks) in {seconds:.1f} s")
