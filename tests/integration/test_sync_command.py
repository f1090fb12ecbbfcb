"""`ragherd sync` with a running service, and a web server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from ragherd.commands import commands
from ragherd.document_client import connected
from ragherd.downloads import Downloads, FileGone, NotFetched
from ragherd.guarded_http import AllowedHosts, guarded_client
from ragherd.journal import Journal
from ragherd.sync import Sync, SyncPlan, SyncRuns
from ragherd.sync_list import SyncState, Validators
from ragherd.uploads import CommonFields
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX
from tests.support.gunicorn_process import free_port
from tests.support.service import Service


class Site:
    """A web server whose pages a test sets: path to status, headers and body."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        """Paths and their `If-None-Match`."""
        self.released = threading.Event()
        """Until it is set, a page named /slow.md does not end."""

    def put(self, path: str, body: str | bytes, status: int = 200, **headers: str) -> str:
        content = body.encode() if isinstance(body, str) else body
        self.pages[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, content)
        return self.url + path


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tag = self.headers.get("if-none-match")
            found.asked.append((self.path, tag))
            status, headers, body = found.pages.get(self.path, (404, {}, b"no"))
            if tag is not None and tag == headers.get("ETag"):
                status, body = 304, b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers and status != 304:
                self.send_header("Content-Length", str(len(body) + (self.path == "/slow.md")))
            self.end_headers()
            self.wfile.write(body)
            if self.path == "/slow.md":
                self.wfile.flush()
                found.released.wait(30)

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield found
        finally:
            found.released.set()
            server.shutdown()
            thread.join()


async def now(_seconds: float) -> None:
    """Waits for nothing."""


class Run:
    """Goes through a list with a running service, as `ragherd sync --once` does."""

    def __init__(self, service: str, file: Path, share: float | None = None) -> None:
        self.service = service
        self.plan = SyncPlan(file, CommonFields(tags=("all",)), share, private=True)
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []

    async def __call__(self) -> dict[str, int]:
        allowed, journal = AllowedHosts(), Journal(as_json=False, quiet=True)
        state = SyncState(self.plan.file.with_suffix(".state"))
        async with guarded_client(allowed, "ragherd/test") as web, connected(self.service, None) as client:
            downloads = Downloads(web, allowed, 100_000, 30)
            await Sync(self.plan, self.service, client, downloads, allowed, state, journal, now).round(
                self.plan.listed()
            )
        self.failures = journal.failures
        return {name: count for name, count in journal.counts.items() if count}


async def documents(client: httpx.AsyncClient) -> dict[str, list[str]]:
    listed = (await client.get("/documents")).json()["documents"]
    return {one["source"]: sorted(one["tags"]) for one in listed}


async def test_a_list_of_folders_and_urls_is_followed_and_only_changes_are_downloaded(
    serve: Service, site: Site, tmp_path: Path
) -> None:
    client = await serve(embedder=ONNX)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "canteen.txt").write_text(CANTEEN)
    page = site.put("/holiday", f"<h1>Holiday</h1><p>{HOLIDAY}</p>", ETag='"1"', Content_Type="text/html")
    file = tmp_path / "list.txt"
    file.write_text(f"pages collection=handbook\n{page} tag=hr\n")
    run = Run(str(client.base_url), file)

    assert await run() == {"created": 2}
    assert await documents(client) == {"handbook/canteen.txt": ["all"], page: ["all", "hr"]}
    site.asked.clear()
    assert await run() == {"unchanged": 2}
    assert site.asked == [("/robots.txt", None), ("/holiday", '"1"')]

    site.put("/holiday", "<h1>Holiday</h1><p>There is none.</p>", ETag='"2"', Content_Type="text/html")
    assert await run() == {"updated": 1, "unchanged": 1}
    site.put("/holiday", "broken", status=500)
    assert await run() == {"failed": 1, "unchanged": 1}
    assert run.failures == [f"{page}: 500 Internal Server Error"]
    assert len(await documents(client)) == 2, "an error keeps the document"

    site.put("/holiday", "<h1>Holiday</h1><p>There is none.</p>", ETag='"2"', Content_Type="text/html")
    for document in (await client.get("/documents", params={"source": page})).json()["documents"]:
        await client.delete(f"/documents/{document['id']}")
    assert await run() == {"created": 1, "unchanged": 1}, "what the service has lost is downloaded again"
    file.with_suffix(".state").unlink()
    site.asked.clear()
    assert await run() == {"unchanged": 2}
    assert site.asked[-1] == ("/holiday", None), "a lost state costs a download"


async def test_a_file_that_is_gone_is_deleted_only_with_prune_and_within_the_share(
    serve: Service, site: Site, tmp_path: Path
) -> None:
    client = await serve(embedder=ONNX)
    pages = [site.put(f"/{name}.md", f"# {name}\n\n{HOLIDAY}") for name in "ab"]
    file = tmp_path / "list.txt"
    file.write_text("\n".join(pages))
    assert await Run(str(client.base_url), file)() == {"created": 2}
    site.put("/b.md", "", status=410)
    assert await Run(str(client.base_url), file)() == {"unchanged": 1, "gone": 1}
    careful = Run(str(client.base_url), file, share=0.2)
    assert await careful() == {"unchanged": 1, "gone": 1, "held": 1}
    assert "1 of 2 documents" in careful.failures[0]
    assert len(await documents(client)) == 2
    assert await Run(str(client.base_url), file, share=0.5)() == {"unchanged": 1, "gone": 1, "deleted": 1}
    assert list(await documents(client)) == pages[:1]


async def test_runs_in_a_row_share_the_limit_of_an_hour(serve: Service, site: Site, tmp_path: Path) -> None:
    client = await serve(embedder=ONNX)
    (tmp_path / "pages").mkdir()
    names = [f"{name}.md" for name in "abcd"]
    for name in names:
        (tmp_path / "pages" / name).write_text(f"# {name}\n\n{HOLIDAY}")
    file = tmp_path / "list.txt"
    urls = [site.put(f"/{name}", f"# {name}\n\n{CANTEEN}") for name in names]
    file.write_text("\n".join(["pages collection=handbook", *urls]))
    assert await Run(str(client.base_url), file)() == {"created": 8}
    told = []
    for name in names[:2]:
        (tmp_path / "pages" / name).unlink()
        site.put(f"/{name}", "", status=410)
        run = Run(str(client.base_url), file, share=0.34)
        told.append(await run())
    assert [(counts.get("deleted"), counts.get("held")) for counts in told] == [(2, None), (None, 2)]


# -- Downloads ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def downloads(*names: str, max_bytes: int = 1000, timeout: float = 30.0) -> AsyncIterator[Downloads]:
    allowed = AllowedHosts(set(names or ("127.0.0.1",)), all_private=True)
    async with guarded_client(allowed, "ragherd/test") as web:
        yield Downloads(web, allowed, max_bytes, timeout)


async def why_not(url: str, *names: str, **limits: Any) -> str:
    async with downloads(*names, **limits) as fetching:
        with pytest.raises(NotFetched) as refused:
            await fetching.fetch(url)
    return str(refused.value)


async def test_redirects_are_followed_only_to_allowed_hosts_and_a_few_times(site: Site) -> None:
    end = site.put("/end.md", "# End", Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
    moved = site.put("/moved.md", "", status=302, Location="/end.md")
    async with downloads() as fetching:
        found = await fetching.fetch(moved)
        assert found is not None
        assert (found.url, found.name, found.content) == (end, "end.md", b"# End")
        assert found.modified == "Thu, 01 Jan 2026 00:00:00 GMT"
    port = site.url.rpartition(":")[2]
    away = site.put("/away.md", "", status=302, Location=f"http://localhost:{port}/end.md")
    assert "localhost, which is not in the list" in await why_not(away)
    async with downloads("127.0.0.1", "localhost") as fetching:
        assert (await fetching.fetch(away)) is not None
    assert "file://" in await why_not(site.put("/file.md", "", status=302, Location="file:///etc/passwd"))
    loop = site.put("/loop.md", "", status=302, Location="/loop.md")
    assert "more than 5 redirects" in await why_not(loop)
    port = site.put("/port.md", "", status=302, Location="http://127.0.0.1:99999/end.md")
    assert "port 99999" in await why_not(port)


async def test_private_addresses_are_refused_by_default_also_after_a_redirect(site: Site) -> None:
    page = site.put("/a.md", "# A")
    allowed = AllowedHosts({"127.0.0.1", "localhost"}, {"127.0.0.1"})
    away = site.put("/away.md", "", status=302, Location=page.replace("127.0.0.1", "localhost"))
    async with guarded_client(allowed, "ragherd/test") as web:
        fetching = Downloads(web, allowed, 1000, 30)
        assert (await fetching.fetch(page)) is not None
        with pytest.raises(NotFetched, match=r"localhost has the private address .*allow-private"):
            await fetching.fetch(away)
        allowed.private.clear()
    async with guarded_client(allowed, "ragherd/test") as web:
        with pytest.raises(NotFetched, match="private address"):
            await Downloads(web, allowed, 1000, 30).fetch(page)


async def test_robots_are_respected_and_asked_once(site: Site) -> None:
    site.put("/robots.txt", "User-agent: ragherd\nDisallow: /secret/\n\nUser-agent: *\nDisallow: /\n")
    secret, page = site.put("/secret/a.md", "# A"), site.put("/b.md", "# B")
    moved = site.put("/moved.md", "", status=302, Location="/secret/a.md")
    async with downloads() as fetching:
        assert (await fetching.fetch(page)) is not None
        for url in (secret, moved):
            with pytest.raises(NotFetched, match=r"robots\.txt of the host does not allow it"):
                await fetching.fetch(url)
    assert [path for path, _ in site.asked] == ["/robots.txt", "/b.md", "/moved.md"]
    site.put("/robots.txt", "", status=503)
    assert "robots.txt of the host cannot be read: 503" in await why_not(page)
    site.put("/robots.txt", "", status=403)
    async with downloads() as fetching:
        assert (await fetching.fetch(page)) is not None


async def test_downloads_are_bounded_in_size_and_time_and_have_to_be_whole(site: Site) -> None:
    assert "more than 1,000 bytes" in await why_not(site.put("/said.md", "x", Content_Length="5000"))
    assert "more than 1,000 bytes" in await why_not(site.put("/large.md", "x" * 1001))
    slow = site.put("/slow.md", "# Half")
    assert "takes longer than 0.3 s" in await why_not(slow, timeout=0.3)
    site.released.set()
    assert "without sending complete message body" in await why_not(slow)
    with pytest.raises(FileGone):
        async with downloads() as fetching:
            await fetching.fetch(site.url + "/never.md")


async def test_gzip_is_unpacked_no_further_than_the_limit(site: Site) -> None:
    page = site.put("/a.md", gzip.compress(b"# A"), Content_Encoding="gzip")
    bomb = gzip.compress(bytes(100_000_000))
    async with downloads() as fetching:
        found = await fetching.fetch(page)
        assert found is not None
        assert found.content == b"# A"
    tracemalloc.start()
    try:
        assert "more than 100,000 bytes" in await why_not(
            site.put("/bomb.md", bomb, Content_Encoding="gzip"), max_bytes=100_000
        )
        layers = site.put("/layers.md", gzip.compress(bomb), Content_Encoding="gzip, gzip")
        assert "is sent as gzip, gzip" in await why_not(layers, max_bytes=100_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert "no end" in await why_not(site.put("/half.md", gzip.compress(b"# A")[:-9], Content_Encoding="gzip"))
    assert "is said to be gzip" in await why_not(site.put("/plain.md", "# A", Content_Encoding="gzip"))


@pytest.mark.parametrize(
    "line", ["Crawl-delay: ²", f"Crawl-delay: {'9' * 5000}", "Disallow: //[x", "Request-rate: ²/1"]
)
async def test_a_line_of_robots_that_cannot_be_read_changes_nothing(site: Site, line: str) -> None:
    site.put("/robots.txt", f"User-agent: *\n{line}\nDisallow: /secret/\n")
    async with downloads() as fetching:
        assert (await fetching.fetch(site.put("/a.md", "# A"))) is not None
    assert "robots.txt of the host does not allow it" in await why_not(site.put("/secret/a.md", "# A"))


async def test_validators_are_sent_only_to_the_address_that_gave_them(site: Site) -> None:
    page = site.put("/a.md", "# A", ETag='"1"')
    odd = site.put("/odd.md", "# Odd", ETag='"\xe9"')
    async with downloads() as fetching:
        found = await fetching.fetch(odd)
        assert found is not None
        assert found.etag is None, "no header can carry it"
        assert (await fetching.fetch(page, Validators(page, "", '"1"'))) is None
        assert (await fetching.fetch(page, Validators(site.url + "/elsewhere.md", "", '"1"'))) is not None


# -- Command -----------------------------------------------------------------------------------------------------------


async def test_the_command_prints_one_document_and_its_exit_code_tells_failures(
    serve: Service, site: Site, tmp_path: Path
) -> None:
    client = await serve(embedder=ONNX)
    file = tmp_path / "list.txt"
    file.write_text(site.put("/a.md", f"# A\n\n{HOLIDAY}"))

    async def run(*more: str) -> Any:
        command = ["sync", str(file), "--once", "--json", "--url", str(client.base_url), *more]
        return await asyncio.to_thread(CliRunner().invoke, commands, command)

    refused = await run()
    assert refused.exit_code == 1
    assert "private address 127.0.0.1" in json.loads(refused.stdout)["failures"][0]
    stored = await run("--allow-private")
    assert (stored.exit_code, json.loads(stored.stdout)["created"]) == (0, 1)
    assert SyncState(tmp_path / "list.txt.state").keys() == {site.url + "/a.md"}


async def test_rounds_read_the_list_again_and_survive_a_wrong_one(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service is a web server too: it refuses every request, as one does whose key was revoked."""
    file = tmp_path / "list.txt"
    file.write_text("# empty")
    site.put("/documents?source=https%3A%2F%2Fhost.example%2Fa.pdf&limit=100", '{"detail": "no"}', status=403)
    lists = iter(["ftp://host/a.pdf", "https://host.example/a.pdf", "# empty"])

    async def pause(seconds: float) -> None:
        assert 240 <= seconds <= 360
        text = next(lists, None)
        if text is None:
            raise asyncio.CancelledError
        file.write_text(text)

    runs = SyncRuns(SyncPlan(file, CommonFields()), SyncState(tmp_path / "state"), as_json=True, pause=pause)
    with pytest.raises(asyncio.CancelledError):
        await runs.run(site.url, "", 300.0, 1000, 30)
    rounds = [json.loads(line)["failures"] for line in capsys.readouterr().out.splitlines()]
    assert rounds == [[], ["line 1: a URL begins with http://HOST or https://HOST"], ["403: no"], []]


def test_a_wrong_list_is_bad_usage_and_a_service_that_is_down_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ragherd.sync.MAX_OUTAGE_SECONDS", 0.1)
    file = tmp_path / "list.txt"
    file.write_text("ftp://host/a.pdf")
    wrong = CliRunner().invoke(commands, ["sync", str(file), "--once"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "line 1: a URL begins with http" in wrong.stderr
    file.write_text("https://host.example/a.pdf")
    down = CliRunner().invoke(commands, ["sync", str(file), "--once", "--url", f"http://127.0.0.1:{free_port()}"])
    assert (down.exit_code, down.stdout) == (3, "")
