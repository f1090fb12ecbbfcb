"""`ragherd ingest --watch` with a running service: changes on disk become changes of documents."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from ragherd.document_client import DocumentClient, connected, find
from ragherd.follow import Follower
from ragherd.journal import Journal
from ragherd.uploads import CommonFields, DeletionLimit, TooManyGone, prune, upload_all
from ragherd.watch import watch
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX
from tests.support.service import Service
from tests.support.waiting import wait_until_async

ROOT = Path(__file__).parents[2]


class Told:
    """A journal that keeps its events as pairs of name and file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.journal = Journal(as_json=True, write=self.lines.append)

    def take(self) -> list[tuple[str, str]]:
        taken = [json.loads(line) for line in self.lines]
        self.lines.clear()
        return [(one["event"], one.get("source", "").rpartition("/")[2]) for one in taken]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "holiday.md").write_text(f"# Holiday policy\n\n{HOLIDAY}")
    (pages / "canteen.txt").write_text(CANTEEN)
    return pages


def follower(folder: Path, limit: DeletionLimit | None = None) -> Follower:
    return Follower([folder], CommonFields(tags=("docs",)), collection="handbook", limit=limit)


async def test_changes_on_disk_become_changes_of_documents(serve: Service, folder: Path) -> None:
    client = await serve(embedder=ONNX)
    told, following = Told(), follower(folder, DeletionLimit(0.7))
    async with connected(str(client.base_url), None) as service:

        async def look(times: int) -> list[tuple[str, str]]:
            for _ in range(times):
                await following.round(service, told.journal)
            return sorted(told.take())

        assert await look(1) == [], "nothing is known to be whole yet"
        assert await look(1) == [("created", "canteen.txt"), ("created", "holiday.md")]
        assert await look(2) == []
        growing = folder / "new.md"
        growing.write_text("# New\n\nHalf a")
        assert await look(1) == []
        growing.write_text("# New\n\nHalf a sentence more.")
        assert await look(1) == [], "it grew since the last look"
        assert await look(1) == [("created", "new.md")]
        (folder / "short.md").write_text("# Short\n\nA page that stays for a moment.")
        assert await look(2) == [("created", "short.md")]
        (folder / "short.md").unlink()
        assert await look(2) == [("deleted", "short.md")], "it was not there when documents were last compared"
        (folder / "canteen.txt").unlink()
        (folder / "holiday.md").write_text("# Holiday policy\n\nThere is none.")
        assert await look(1) == []
        assert await look(1) == [("deleted", "canteen.txt"), ("updated", "holiday.md")]
        again = follower(folder)
        for _ in range(2):
            await again.round(service, told.journal)
        assert told.take() == [], "another run continues where this one stopped"
        assert told.journal.counts["unchanged"] == 2
    listed = (await client.get("/documents", params={"tag": "docs"})).json()["documents"]
    assert {one["source"] for one in listed} == {"handbook/holiday.md", "handbook/new.md"}


async def test_more_than_the_share_is_kept_until_forced_and_a_missing_folder_deletes_nothing(
    serve: Service, folder: Path, tmp_path: Path
) -> None:
    client = await serve(embedder=ONNX)
    told, careful = Told(), follower(folder, DeletionLimit(0.2))
    async with connected(str(client.base_url), None) as service:
        for _ in range(2):
            await careful.round(service, told.journal)
        (folder / "canteen.txt").rename(tmp_path / "canteen.txt")
        told.lines.clear()
        for _ in range(4):
            await careful.round(service, told.journal)
        assert told.take() == [("held", "")]
        assert "1 of 2 documents" in told.journal.failures[0]

        forced = follower(folder, DeletionLimit(0.2, forced=True))
        folder.rename(tmp_path / "unmounted")
        with pytest.raises(FileNotFoundError):
            await forced.round(service, told.journal)
        (tmp_path / "unmounted").rename(folder)
        for _ in range(2):
            await forced.round(service, told.journal)
        assert told.take() == [("deleted", "canteen.txt")]
    assert len((await client.get("/documents")).json()["documents"]) == 1


async def test_one_run_keeps_to_a_share_that_is_given(serve: Service, folder: Path) -> None:
    client = await serve(embedder=ONNX)
    async with connected(str(client.base_url), None) as service:
        await upload_all(service, find([folder]).files, CommonFields(), 1)
        (folder / "holiday.md").unlink()
        with pytest.raises(TooManyGone, match="1 of 2 documents"):
            await prune(service, find([folder]), CommonFields(), DeletionLimit(0.2))
        assert len(await service.all_of(None)) == 2
        assert await prune(service, find([folder]), CommonFields(), DeletionLimit(0.5)) == 1


async def test_a_refused_file_is_reported_once_and_sent_again_after_a_change_or_a_while(folder: Path) -> None:
    now, sent = 0.0, []

    def refuse(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(422, json={"detail": "no text"})

    (folder / "canteen.txt").unlink()
    told, following = Told(), Follower([folder], CommonFields(), clock=lambda: now)
    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://service") as client:
        service = DocumentClient(client, 1, 1)
        for _ in range(4):
            await following.round(service, told.journal)
        assert told.take() == [("failed", "holiday.md")]
        assert (len(sent), following.in_step) == (1, 0)
        now = 600.0
        await following.round(service, told.journal)
        assert (len(sent), told.take()) == (2, [])


async def test_watching_survives_a_service_that_is_away_and_compares_everything_again(folder: Path) -> None:
    """The disk and the service change while the watcher pauses."""
    away, waits, stored = True, [], []

    def answer(request: httpx.Request) -> httpx.Response:
        if away:
            raise httpx.ConnectError("nobody there", request=request)
        if request.method == "GET":
            return httpx.Response(200, json={"documents": [], "cursor": None})
        stored.append(request)
        return httpx.Response(201, json={"id": "d", "status": "ready", "chunks": 1, "outcome": "created"})

    async def pause(seconds: float) -> None:
        nonlocal away
        waits.append(seconds)
        if len(waits) == 7:
            (folder / "holiday.md").write_text("# Holiday policy\n\nThere is none.")
        away = len(waits) in {1, 2, 8}
        if len(waits) == 12:
            raise asyncio.CancelledError

    told = Told()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ragherd.watch.OUTAGE_SECONDS", 0.01)
        original = httpx.AsyncClient
        patched.setattr(
            "ragherd.document_client.httpx.AsyncClient",
            lambda **given: original(transport=httpx.MockTransport(answer), base_url=given["base_url"]),
        )
        (folder / "canteen.txt").unlink()
        with pytest.raises(asyncio.CancelledError):
            await watch("http://service", None, [follower(folder, DeletionLimit(0.2))], told.journal, 0.01, pause)
    first, second = ["waiting", "back", "created", "watching"], ["waiting", "created", "back"]
    assert [event for event, _ in told.take()] == [*first, *second]
    assert len(stored) == 2


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_watching_cleanly(number: signal.Signals, serve: Service, folder: Path) -> None:
    client = await serve(embedder=ONNX)
    command = ["-m", "ragherd", "ingest", str(folder), "--watch", "--json", "--every", "0.1", "--prune"]
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        "--url",
        str(client.base_url),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    async def stored() -> bool:
        return len((await client.get("/documents")).json()["documents"]) == 2

    await wait_until_async(stored, timeout=60)
    running.send_signal(number)
    out, err = await asyncio.wait_for(running.communicate(), 30)
    assert (running.returncode, err) == (0, b"")
    events = [json.loads(line) for line in out.splitlines()]
    assert {one["event"] for one in events} <= {"created", "watching", "stopped"}
    assert (events[-1]["event"], events[-1]["failed"]) == ("stopped", 0)
