"""`ragherd ingest` with a running service: stores new files, skips known ones, and can prune deleted ones."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from ragherd.commands import commands
from ragherd.document_client import (
    DocumentClient,
    DocumentFile,
    Refused,
    ServiceGone,
    connected,
    find,
    folder_id,
    title_of,
)
from ragherd.ingest import summary
from ragherd.uploads import LARGEST_FILE, CommonFields, Result, legacy_folders, prune, read_whole, upload_all
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX
from tests.support.service import Service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two documents that are read, one that is broken, and some that are none."""
    pages = tmp_path / "pages"
    (pages / "deep").mkdir(parents=True)
    (pages / ".git").mkdir()
    (pages / "holiday.md").write_text(f"# Holiday policy\n\n{HOLIDAY}")
    (pages / "deep" / "canteen.txt").write_text(CANTEEN)
    (pages / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    (pages / "picture.png").write_bytes(b"\x89PNG")
    (pages / ".git" / "hidden.md").write_text("# No")
    (pages / ".hidden.md").write_text("# No")
    (pages / "link.md").symlink_to("holiday.md")
    (pages / "loop").symlink_to(".")
    os.mkfifo(pages / "pipe.md")
    return pages


def test_what_is_found_in_a_folder(folder: Path) -> None:
    found = find([folder, folder / "holiday.md"])
    sources = [f"{folder_id(folder)}/{name}" for name in ("broken.pdf", "deep/canteen.txt", "holiday.md")]
    assert [file.source for file in found.files] == sources
    assert [file.source for file in find([folder / "holiday.md"]).files] == sources[2:]
    assert found.skipped == 4
    assert [title_of(file, file.path.read_bytes()) for file in found.files] == [None, "canteen", "Holiday policy"]


def test_folders_may_be_nested_more_deeply_than_calls(tmp_path: Path) -> None:
    folders = [tmp_path / "pages"]
    for _ in range(sys.getrecursionlimit()):
        folders.append(folders[-1] / "a")
    for one in folders:
        one.mkdir()
    try:
        (folders[-1] / "holiday.md").touch()
        (file,) = find([folders[0]]).files
        assert file.source == f"{folder_id(folders[0])}/{'a/' * sys.getrecursionlimit()}holiday.md"
        file.path.unlink()
    finally:
        for one in reversed(folders):
            one.rmdir()


def test_a_file_is_not_read_if_it_is_huge_or_a_link_by_now(folder: Path) -> None:
    huge = folder / "huge.txt"
    huge.touch()
    os.truncate(huge, LARGEST_FILE + 1)
    with pytest.raises(Refused, match="more than 134,217,728 bytes"):
        read_whole(huge)
    with pytest.raises(OSError, match="symbolic links"):
        read_whole(folder / "link.md")
    assert read_whole(folder / "pipe.md") == b""


def test_a_comment_in_code_is_no_title(tmp_path: Path) -> None:
    page = DocumentFile(tmp_path / "install.md", "install.md")
    assert title_of(page, b"Installing\n\n```\n# as root\n```\n") == "install"
    assert title_of(page, b"---\nlang: en\n---\n\n~~~\n# as root\n~~~\n\n# Installing\n") == "Installing"


def test_a_folder_that_can_not_be_looked_into_is_one_line_before_anything_is_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return looked(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    refused = CliRunner().invoke(commands, ["ingest", str(folder), "--prune"])
    assert refused.exit_code == 1
    assert refused.output.startswith("ragherd: [Errno 13] Permission denied")


def test_files_that_would_replace_each_other_are_refused(tmp_path: Path) -> None:
    for place in ("one", "other"):
        (tmp_path / place / "pages").mkdir(parents=True)
        (tmp_path / place / "pages" / "index.md").write_text(f"# Of {place}")
    both = [str(tmp_path / place / "pages") for place in ("one", "other")]
    refused = CliRunner().invoke(commands, ["ingest", *both, "--collection", "handbook", "--dry-run"])
    assert refused.exit_code == 1
    assert "would both have the source 'handbook/index.md'" in refused.output
    assert CliRunner().invoke(commands, ["ingest", *both, "--dry-run"]).exit_code == 0


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 201])
def test_a_collection_that_cannot_be_told_from_a_path_is_bad_usage(name: str, folder: Path) -> None:
    refused = CliRunner().invoke(commands, ["ingest", str(folder), "--collection", name, "--dry-run"])
    assert refused.exit_code == 2


async def test_running_it_again_changes_only_what_has_changed(serve: Service, folder: Path) -> None:
    client = await serve(embedder=ONNX)
    url, about = str(client.base_url), CommonFields(tags=("docs",))

    async def run() -> Result:
        async with connected(url, None) as service:
            return await upload_all(service, find([folder]).files, about, 2)

    first = await run()
    assert dict(first.counts) == {"created": 2, "failed": 1}
    assert first.chunks == 2
    assert [line.split(":")[0] for line in first.failures] == [f"{folder_id(folder)}/broken.pdf"]
    assert summary(first, 1, 0.5) == "created 2, failed 1, skipped 1 (2 chunks) in 0.5 s"
    (folder / "holiday.md").write_text("# Holiday policy\n\nThere is none.")
    assert dict((await run()).counts) == {"updated": 1, "unchanged": 1, "failed": 1}
    listed = (await client.get("/documents", params={"tag": "docs"})).json()["documents"]
    assert {(one["title"], one["source"]) for one in listed} == {
        ("Holiday policy", f"{folder_id(folder)}/holiday.md"),
        ("canteen", f"{folder_id(folder)}/deep/canteen.txt"),
    }


async def test_what_is_no_file_any_more_is_pruned_and_nothing_else(serve: Service, folder: Path) -> None:
    client = await serve(embedder=ONNX)
    await client.post(
        "/documents", json={"title": "Other", "text": HOLIDAY, "source": f"{folder_id(folder)}etter/a.md"}
    )
    await client.post("/documents", json={"title": "Other", "text": CANTEEN})
    async with connected(str(client.base_url), None) as service:
        await upload_all(service, find([folder]).files, CommonFields(), 1)
        (folder / "holiday.md").unlink()
        assert await prune(service, find([folder]), CommonFields()) == 1
    left = (await client.get("/documents")).json()["documents"]
    here = folder_id(folder)
    assert {one["source"] for one in left} == {f"{here}/deep/canteen.txt", f"{here}etter/a.md", None}


async def test_two_projects_with_a_folder_of_one_name_keep_each_others_documents(
    serve: Service, tmp_path: Path
) -> None:
    client = await serve(embedder=ONNX)
    folders = [tmp_path / project / "docs" for project in ("one", "other")]
    for folder, text in zip(folders, (HOLIDAY, CANTEEN), strict=True):
        folder.mkdir(parents=True)
        (folder / "index.md").write_text(text)
    async with connected(str(client.base_url), None) as service:
        for folder in (*folders, folders[0]):
            result = await upload_all(service, find([folder]).files, CommonFields(), 1)
            assert result.counts["updated"] == 0
            assert await prune(service, find([folder]), CommonFields()) == 0
    assert len((await client.get("/documents")).json()["documents"]) == 2


async def test_a_collection_follows_its_folder_to_another_place(serve: Service, tmp_path: Path) -> None:
    client = await serve(embedder=ONNX)
    before, after = tmp_path / "checkout-1", tmp_path / "checkout-2"
    for folder, names in ((before, ("a.md", "gone.md")), (after, ("a.md",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"# {name}\n\n{HOLIDAY}")
    async with connected(str(client.base_url), None) as service:
        await upload_all(service, find([before], "handbook").files, CommonFields(), 1)
        found = find([after], "handbook")
        assert dict((await upload_all(service, found.files, CommonFields(), 1)).counts) == {"unchanged": 1}
        assert await prune(service, found, CommonFields()) == 1
    left = (await client.get("/documents")).json()["documents"]
    assert [one["source"] for one in left] == ["handbook/a.md"]


async def test_documents_of_an_earlier_release_are_pointed_out(serve: Service, folder: Path) -> None:
    client = await serve(embedder=ONNX)
    async with connected(str(client.base_url), None) as service:
        assert await legacy_folders(service, find([folder]), CommonFields()) == []
        await client.post("/documents", json={"title": "Broken", "text": HOLIDAY, "source": "pages/broken.pdf"})
        assert await legacy_folders(service, find([folder]), CommonFields()) == ["pages"]


async def test_a_service_that_is_away_for_a_moment_costs_nothing() -> None:
    replies = [
        httpx.Response(503, headers={"Retry-After": "1"}, json={"detail": "starting"}),
        httpx.Response(202, json={"id": "d1", "status": "processing", "chunks": 0, "outcome": "created"}),
        httpx.Response(200, json={"id": "d1", "status": "processing", "chunks": 0}),
        httpx.Response(200, json={"id": "d1", "status": "ready", "chunks": 7}),
    ]
    transport = httpx.MockTransport(lambda _: replies.pop(0))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        outcome, document = await DocumentClient(client, 10, 10).upload("a.md", b"text", {})
    assert (outcome, document["chunks"]) == ("created", 7)


async def test_an_upload_waits_for_a_rate_limit_but_not_for_a_budget() -> None:
    def limited(seconds: int, limit: str) -> httpx.Response:
        return httpx.Response(429, headers={"Retry-After": str(seconds)}, json={"detail": f"'{limit}' is used up."})

    replies = [limited(1, "tenant-requests"), httpx.Response(201, json={"status": "ready", "outcome": "created"})]
    replies.append(limited(3600, "tenant-day"))
    transport, began = httpx.MockTransport(lambda _: replies.pop(0)), time.monotonic()
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        outcome, _ = await DocumentClient(client, 10, 10).upload("a.md", b"text", {})
        waited = time.monotonic() - began
        with pytest.raises(ServiceGone, match=r"^429: 'tenant-day' is used up\. Try again in 3600 s\.$"):
            await DocumentClient(client, 10, 10).upload("a.md", b"text", {})
    assert (outcome, waited >= 1) == ("created", True)


async def test_a_service_that_stays_away_is_one_line() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://service") as client:
        with pytest.raises(Refused, match="nobody there"):
            await DocumentClient(client, 0.01, 1).upload("a.md", b"text", {})


async def test_a_service_that_one_file_waited_for_in_vain_is_not_waited_for_with_the_next(folder: Path) -> None:
    asked: list[str] = []
    told: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        raise httpx.ConnectError("nobody there", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://service") as client:
        result = await upload_all(DocumentClient(client, 0.3, 1, told.append), find([folder]).files, CommonFields(), 1)
    assert dict(result.counts) == {"failed": 3}
    assert result.failures == [
        f"{folder_id(folder)}/broken.pdf: the service does not answer: nobody there",
        "2 more files were not sent",
    ]
    assert len(asked) > 1
    assert told == ["nobody there"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:one", "http://127.0.0.1:99999"])
def test_what_is_no_address_is_one_line(url: str, folder: Path) -> None:
    refused = CliRunner().invoke(commands, ["ingest", str(folder), "--url", url])
    assert refused.exit_code == 2
    assert refused.output.startswith(f"ragherd: {url}: Invalid port")


@pytest.mark.parametrize("url", ["localhost:8001", "127.0.0.1:8001"])
async def test_an_address_that_can_not_be_right_is_not_waited_for(url: str) -> None:
    async with connected(url, " schlüssel\n") as client:
        with pytest.raises(Refused, match="protocol"):
            await asyncio.wait_for(client.all_of(None), 5)


async def test_a_name_that_is_not_utf_8_keeps_none_of_the_others(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(HOLIDAY)
    ready = httpx.Response(201, json={"id": "d1", "status": "ready", "chunks": 1, "outcome": "created"})
    files = [DocumentFile(tmp_path / "a.md", "urlaub\udce9.md"), DocumentFile(tmp_path / "b.md", "b.md")]
    transport = httpx.MockTransport(lambda _: ready)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        result = await upload_all(DocumentClient(client, 1, 1), files, CommonFields(), 1)
    assert dict(result.counts) == {"failed": 1, "created": 1}
    assert result.failures == ["urlaub\udce9.md: the file name is not UTF-8"]


def test_ctrl_c_says_that_it_can_be_run_again(folder: Path) -> None:
    code = """
import runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored
sys.argv = ["ragherd", *sys.argv[1:]]
runpy.run_module("ragherd", run_name="__main__")
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", code, "ingest", str(folder), "--url", url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            silent.settimeout(30)
            silent.accept()
            running.send_signal(signal.SIGINT)
            assert running.communicate(timeout=10)[1] == "Stopped. Run the command again to continue.\n"
    assert running.returncode == 130


def test_a_dry_run_lists_the_files(folder: Path) -> None:
    ran = CliRunner().invoke(commands, ["ingest", "--dry-run", str(folder)])
    assert ran.exit_code == 0
    here = folder_id(folder)
    assert ran.stdout.split() == [f"{here}/broken.pdf", f"{here}/deep/canteen.txt", f"{here}/holiday.md"]
    named = CliRunner().invoke(commands, ["ingest", "--dry-run", "--collection", "handbook", str(folder)])
    assert named.stdout.split() == ["handbook/broken.pdf", "handbook/deep/canteen.txt", "handbook/holiday.md"]


def test_a_folder_that_is_not_there_is_bad_usage(redis: Redis) -> None:
    assert CliRunner().invoke(commands, ["ingest", "no/such/folder"]).exit_code == 2
