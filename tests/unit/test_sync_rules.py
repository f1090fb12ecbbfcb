"""The rules of `ragherd sync`: what a list may say, which addresses are used, and what is remembered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from ragherd.downloads import file_name
from ragherd.guarded_http import AllowedHosts, GuardedBackend, is_public
from ragherd.sync_list import InvalidList, Listed, SyncState, Validators, parse

BASE = Path("/srv/lists")


def test_a_list_has_folders_urls_options_and_comments() -> None:
    text = """
# Handbook
handbook tag=hr tag=all collection=handbook   # moves sometimes
"/srv/two words"
https://Files.Example.com/a%20b.pdf?v=1#page=3 tag=hr
http://wiki.internal/rules.html allow-private
"""
    assert parse(text, BASE) == [
        Listed("/srv/lists/handbook", tags=("hr", "all"), collection="handbook"),
        Listed("/srv/two words"),
        Listed("https://files.example.com/a%20b.pdf?v=1", is_url=True, tags=("hr",)),
        Listed("http://wiki.internal/rules.html", is_url=True, private=True),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ftp://host/a.pdf", "begins with http"),
        ("file:///etc/passwd", "begins with http"),
        ("https://me:hush@host/a.pdf", "user name or password"),
        ("https://host:x/a.pdf", "not a URL"),
        ("https://host:99999/a.pdf", "a port is"),
        ("https://host:-1/a.pdf", "a port is"),
        ("two words", "quote a path with spaces"),
        ("'open", "quote is not closed"),
        ("folder tag=", "options are"),
        ("folder collection=a/b", "without '/'"),
        ("folder allow-private", "for URLs"),
        ("https://host/a.pdf collection=a", "for folders"),
        ("one collection=a\nother collection=a", "line 2: collection=a is listed twice"),
        ("https://host/a.pdf\nhttps://host/a.pdf#x", "line 2: https://host/a.pdf is listed twice"),
    ],
)
def test_a_list_that_cannot_be_followed_is_named_with_its_line(line: str, why: str) -> None:
    with pytest.raises(InvalidList, match=r"^line \d: ") as refused:
        parse(line, BASE)
    assert why in str(refused.value)
    assert "hush" not in str(refused.value)


PRIVATE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255
::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1
64:ff9b::a9fe:a9fe 64:ff9b:1::a00:1 ::127.0.0.1 ::ffff:0:127.0.0.1 fec0::1 5f00::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


async def connected_to(allowed: AllowedHosts, *answers: list[str]) -> list[str]:
    """Resolves a name to each answer in turn, and returns the addresses that are connected to."""
    left, reached = list(answers), []

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return left.pop(0)

    class Network(httpcore.AsyncMockBackend):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> Any:
            reached.append(host)
            return httpcore.AsyncMockStream([])

    backend = GuardedBackend(allowed, resolve)
    backend._network = Network([])
    await backend.connect_tcp("host", 80)
    return reached


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """The second answer is that of a name that is bound to another address in between."""
    assert await connected_to(AllowedHosts({"host"}), ["10.0.0.1", "93.184.216.34"], ["127.0.0.1"]) == ["93.184.216.34"]


async def test_private_addresses_need_permission() -> None:
    with pytest.raises(httpcore.ConnectError, match=r"private address 169\.254\.169\.254"):
        await connected_to(AllowedHosts({"host"}), ["169.254.169.254"])
    for allowed in (AllowedHosts({"host"}, {"host"}), AllowedHosts({"host"}, all_private=True)):
        assert await connected_to(allowed, ["10.0.0.1"]) == ["10.0.0.1"]
    with pytest.raises(httpcore.ConnectError):
        await connected_to(AllowedHosts({"host", "other"}, {"other"}), ["10.0.0.1"])


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_no_host_can_have_is_not_found(host: str) -> None:
    with pytest.raises(httpcore.ConnectError, match="is not found"):
        await GuardedBackend(AllowedHosts({host})).connect_tcp(host, 80)


@pytest.mark.parametrize(
    ("url", "declared", "name"),
    [
        ("https://host/a/rules.pdf?x=1", "application/octet-stream", "rules.pdf"),
        ("https://host/a/rules", "text/html; charset=utf-8", "rules.html"),
        ("https://host/", "text/html", "index.html"),
        ("https://host/v1.2", "text/markdown", "v1.2.md"),
        ("https://host/a%2Fb.md", "", "b.md"),
        ("https://host/photo", "image/png", "photo"),
    ],
)
def test_a_download_has_a_name_that_tells_its_kind(url: str, declared: str, name: str) -> None:
    assert file_name(httpx.URL(url), declared) == name


def test_the_state_survives_and_anything_else_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "list.state"
    state, seen = SyncState(path), Validators("https://host/a", "f", '"1"', "yesterday")
    state.put("https://host/a", seen)
    state.put("https://host/b", seen)
    state.keep_only({"https://host/a"})
    now = time.time()
    state.deletions("/srv/a").extend([(now - 4000, 2), (now - 60, 1), (now + 9000, 1)])
    state.write()
    assert dict(SyncState(path)) == {"https://host/a": seen}
    times, counts = zip(*SyncState(path).deletions("/srv/a"), strict=True)
    assert counts == (1, 1), "none of more than an hour ago"
    assert now <= times[1] <= time.time(), "the clock was set back"
    assert [one.name for one in tmp_path.iterdir()] == ["list.state"]
    assert seen.headers() == {"If-None-Match": '"1"', "If-Modified-Since": "yesterday"}
    for wrong in (
        "",
        "[]",
        '{"urls": {"a": {"unknown": 1}}}',
        '{"urls": [1]}',
        '{"urls": {}, "deleted": {"/srv/a": [1]}}',
        '{"urls": {"a": {"url": 1, "fields": ""}}}',
    ):
        path.write_text(wrong)
        assert dict(SyncState(path)) == {}
