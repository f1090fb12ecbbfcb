"""Downloads of `ragherd sync`: conditional, bounded in size and time, and only where robots.txt and the list allow."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.robotparser import RobotFileParser

import httpx

from api import __version__
from api.knowledge.kinds import BY_SUFFIX
from ragherd.guarded_http import AllowedHosts
from ragherd.sync_list import Validators

AGENT: Final = "ragherd"
USER_AGENT: Final = f"{AGENT}/{__version__}"
MAX_REDIRECTS: Final = 5
ROBOTS_BYTES: Final = 512 * 1024
ROBOTS_SECONDS: Final = 3600.0
"""Time that a robots.txt is kept."""
LONGEST_CRAWL_DELAY: Final = 30.0
LARGEST_PORT: Final = 65_535
SUFFIX_BY_KIND: Final = {kind: suffix for suffix, kind in reversed(BY_SUFFIX.items())}


class NotFetched(Exception):
    """A file is not downloaded. The message is one line with the reason. `status` is that of the answer, if any."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class FileGone(NotFetched):
    """The server says that there is no such file: 404 or 410."""


@dataclass(frozen=True, slots=True)
class Download:
    """A whole file. `name` has a suffix that tells its kind, if one is known. `url` is its address after redirects."""

    url: str
    name: str
    content: bytes
    etag: str | None
    modified: str | None


@dataclass(frozen=True, slots=True)
class _Robots:
    parser: RobotFileParser
    until: float


class Downloads:
    """Downloads files one at a time from each host."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        allowed: AllowedHosts,
        max_bytes: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._clock = clock
        self._robots: dict[str, _Robots] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._free_at: dict[str, float] = {}

    async def fetch(self, url: str, known: Validators | None = None) -> Download | None:
        """Returns a file, or None if it is the `known` one. Raises `NotFetched`."""
        address = httpx.URL(url)
        async with self._turn(address):
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._following(address, known)
            except TimeoutError:
                raise NotFetched(f"takes longer than {self._timeout:g} s") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise NotFetched(str(error) or type(error).__name__) from None

    @asynccontextmanager
    async def _turn(self, url: httpx.URL) -> AsyncIterator[None]:
        """Waits until the host is free, and as long as its robots.txt asks for between two requests."""
        origin = _origin(url)
        async with self._turns.setdefault(origin, asyncio.Lock()):
            await asyncio.sleep(max(0.0, self._free_at.get(origin, 0.0) - self._clock()))
            try:
                yield
            finally:
                robots = self._robots.get(origin)
                delay = float(robots.parser.crawl_delay(AGENT) or 0) if robots else 0.0
                self._free_at[origin] = self._clock() + min(delay, LONGEST_CRAWL_DELAY)

    async def _following(self, url: httpx.URL, known: Validators | None) -> Download | None:
        for _ in range(MAX_REDIRECTS + 1):
            await self._ask_robots(url)
            found = await self._get(url, known, self._max_bytes)
            if not isinstance(found, httpx.URL):
                return found
            url = found
        raise NotFetched(f"has more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: httpx.URL, known: Validators | None, max_bytes: int) -> Download | httpx.URL | None:
        """Returns the file, where it has moved to, or None if it is the known one."""
        self._check(url)
        asked = known.headers() if known is not None and known.url == str(url) else {}
        async with self._client.stream("GET", url, headers=asked) as response:
            if response.status_code == 304 and asked:
                return None
            if response.status_code in {301, 302, 303, 307, 308} and "location" in response.headers:
                return self._target(url, response.headers["location"])
            if response.status_code in {404, 410}:
                raise FileGone(f"{response.status_code} {response.reason_phrase}", response.status_code)
            if response.status_code != 200:
                raise NotFetched(f"{response.status_code} {response.reason_phrase}", response.status_code)
            content = await _content(response, max_bytes)
            headers = response.headers
            name = file_name(url, headers.get("content-type", ""))
            return Download(
                str(url), name, content, _sendable(headers.get("etag")), _sendable(headers.get("last-modified"))
            )

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in {"http", "https"} or not url.host:
            raise NotFetched(f"leads to {url.scheme}://, which is not used")
        host = url.raw_host.decode().lower()
        if not 0 < (url.port or 80) <= LARGEST_PORT:
            raise NotFetched(f"leads to port {url.port}, which no host can have")
        if host not in self._allowed.names:
            raise NotFetched(f"leads to {host}, which is not in the list: --allow-host {host} allows it")

    @staticmethod
    def _target(url: httpx.URL, location: str) -> httpx.URL:
        target = url.join(location).copy_with(fragment=None)
        if target.userinfo:
            raise NotFetched("leads to a URL with a user name or password")
        if url.scheme == "https" and target.scheme == "http":
            raise NotFetched(f"leads from https to http://{target.host}")
        return target

    # -- robots.txt ----------------------------------------------------------------------------------------------------

    async def _ask_robots(self, url: httpx.URL) -> None:
        self._check(url)
        origin = _origin(url)
        robots = self._robots.get(origin)
        if robots is None or robots.until <= self._clock():
            robots = _Robots(await self._read_robots(url), self._clock() + ROBOTS_SECONDS)
            self._robots[origin] = robots
        if not robots.parser.can_fetch(AGENT, str(url)):
            raise NotFetched("robots.txt of the host does not allow it")

    async def _read_robots(self, url: httpx.URL) -> RobotFileParser:
        """Reads the rules of a host. RFC 9309: without a file everything is allowed, after an error nothing is."""
        parser = RobotFileParser()
        place = url.copy_with(raw_path=b"/robots.txt", fragment=None)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                found = await self._get(place, None, ROBOTS_BYTES)
                if not isinstance(found, httpx.URL):
                    break
                place = found
        except httpx.HTTPError as error:
            raise NotFetched(f"robots.txt of the host cannot be read: {error or type(error).__name__}") from None
        except NotFetched as error:
            if not 400 <= error.status < 500 or error.status == 429:
                raise NotFetched(f"robots.txt of the host cannot be read: {error}") from None
            found = None
        text = found.content.decode("utf-8", "replace") if isinstance(found, Download) else ""
        parser.parse(filter(_is_rule, text.lstrip("\ufeff").splitlines()))
        return parser


def _is_rule(line: str) -> bool:
    """Returns whether Python's parser can read a line of a robots.txt: it raises `ValueError` for some."""
    name, _, value = line.partition("#")[0].partition(":")
    name, value = name.strip().lower(), value.strip()
    if name == "crawl-delay":
        return value.isascii() and value.isdecimal() and len(value) < 10
    try:
        urlsplit(unquote(value))
    except ValueError:
        return False
    return name != "request-rate"  # not used


async def _content(response: httpx.Response, max_bytes: int) -> bytes:
    """Reads the body, and stops at the limit. Some servers send gzip unasked.

    httpx would unpack a whole part at once, and as many layers as the server names: a few bytes to gigabytes.
    """
    too_large = NotFetched(f"has more than {max_bytes:,} bytes")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    coding = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if coding not in {"identity", "gzip", "x-gzip"}:
        raise NotFetched(f"is sent as {coding[:40]}, though it was asked for as it is")
    unpacking = None if coding == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)
    content = bytearray()
    async for part in response.aiter_raw():
        try:
            content += part if unpacking is None else unpacking.decompress(part, max_bytes + 1 - len(content))
        except zlib.error:
            raise NotFetched("is said to be gzip, and is not") from None
        if len(content) > max_bytes:
            raise too_large
    if unpacking is not None and not unpacking.eof:
        raise NotFetched("is not whole: its gzip has no end")
    return bytes(content)


def _sendable(value: str | None) -> str | None:
    """Returns a validator, or None for one that no header can carry."""
    return value if value is not None and value.isascii() and value.isprintable() else None


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode().lower()}"


def file_name(url: httpx.URL, declared: str) -> str:
    """Returns the last part of the path, with a suffix for the declared type if it has none that is known."""
    name = PurePosixPath(url.path).name or "index"
    if PurePosixPath(name).suffix.lower() in BY_SUFFIX:
        return name
    return name + SUFFIX_BY_KIND.get(declared.partition(";")[0].strip().lower(), "")


def validators_of(download: Download, fields: str) -> Validators:
    """Returns what to remember of a download that is stored."""
    return Validators(download.url, fields, download.etag, download.modified)
