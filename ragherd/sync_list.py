"""The list that `ragherd sync` follows, and what a run leaves to the next one.

A line has a folder or the URL of a file, and options after it:

    # Handbook
    /srv/handbook tag=hr collection=handbook
    https://files.example.com/travel.pdf tag=hr tag=travel
    http://wiki.internal/rules.html allow-private
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import httpx

from ragherd.uploads import WINDOW_SECONDS

COLLECTION: Final = re.compile(r"[^/\x00-\x1f\x7f]{1,200}")
OPTIONS: Final = "tag=NAME, collection=NAME, allow-private"


class InvalidList(Exception):
    """The list cannot be used. The message is one line with the number of the wrong line."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One line. `where` is an absolute path or a URL without fragment. `private`: its host may have a private address.

    `collection` is only for folders.
    """

    where: str
    is_url: bool = False
    tags: tuple[str, ...] = ()
    collection: str | None = None
    private: bool = False

    @property
    def host(self) -> str:
        """The host of a URL as it is sent, in lower case."""
        return httpx.URL(self.where).raw_host.decode().lower()


def parse(text: str, base: Path) -> list[Listed]:
    """Reads a list. Relative folders are below `base`. Raises `InvalidList`."""
    lines = [(number, words) for number, line in enumerate(text.splitlines(), 1) if (words := _words(number, line))]
    listed = [_listed(number, words, base) for number, words in lines]
    seen: set[str] = set()
    for (number, _), one in zip(lines, listed, strict=True):
        for name in (one.where, one.collection and f"collection={one.collection}"):
            if name in seen:
                raise InvalidList(f"line {number}: {name} is listed twice")
            if name:
                seen.add(name)
    return listed


def _words(number: int, line: str) -> list[str]:
    if line.lstrip().startswith("#"):
        return []
    try:
        words = shlex.split(line)
    except ValueError:
        raise InvalidList(f"line {number}: a quote is not closed") from None
    end = next((index for index, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:end]


def _listed(number: int, words: list[str], base: Path) -> Listed:
    place, *options = words
    given: dict[str, list[str]] = {}
    for option in options:
        name, sign, value = option.partition("=")
        known = name in {"tag", "collection"} and value if sign else name == "allow-private"
        if not known:
            raise InvalidList(f"line {number}: '{option}': options are {OPTIONS}; quote a path with spaces")
        given.setdefault(name, []).append(value)
    is_url = "://" in place
    where = _url(number, place) if is_url else str((base / place).absolute())
    collection = given.get("collection", [None])[-1]
    if is_url and collection is not None:
        raise InvalidList(f"line {number}: collection= is for folders")
    if not is_url and "allow-private" in given:
        raise InvalidList(f"line {number}: allow-private is for URLs")
    if collection is not None and not COLLECTION.fullmatch(collection):
        raise InvalidList(f"line {number}: collection= has 1 to 200 characters, without '/' and control characters")
    return Listed(where, is_url, tuple(given.get("tag", ())), collection, "allow-private" in given)


def _url(number: int, text: str) -> str:
    try:
        url = httpx.URL(text).copy_with(fragment=None)
    except httpx.InvalidURL:
        raise InvalidList(f"line {number}: not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidList(f"line {number}: a URL begins with http://HOST or https://HOST")
    if not 0 < (url.port or 80) <= 65_535:
        raise InvalidList(f"line {number}: a port is a number from 1 to 65535")
    if url.userinfo:
        raise InvalidList(f"line {number}: a URL with a user name or password is not used")
    if len(str(url)) > 2000:
        raise InvalidList(f"line {number}: a URL has at most 2,000 characters")
    return str(url)


# -- State -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server said about the file that is stored. `url` is its address after redirects.

    `fields` identifies the service and the fields of the document: other ones need the file again.
    """

    url: str
    fields: str
    etag: str | None = None
    modified: str | None = None

    def headers(self) -> dict[str, str]:
        """Returns the headers that make a request conditional."""
        given = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in given.items() if value is not None}


def _are_texts(values: Collection[object]) -> bool:
    return all(value is None or (isinstance(value, str) and value.isascii()) for value in values)


def _times(found: Iterable[tuple[float, int]]) -> deque[tuple[float, int]]:
    """Reads deletions, without those that no limit counts. After the clock was set back, later times count as now."""
    now = time.time()
    return deque((min(float(at), now), int(number)) for at, number in found if at > now - WINDOW_SECONDS)


class SyncState(Mapping[str, Validators]):
    """What a run leaves to the next one, in a file: the validators of each URL, and the latest deletions.

    If the file is lost, each URL is downloaded once more, and earlier deletions no longer count.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file. What is not a state file counts as empty."""
        self._path = path
        self._urls: dict[str, Validators] = {}
        self._deleted: dict[str, deque[tuple[float, int]]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads(path.read_text("utf-8"))
            self._urls = {url: Validators(**one) for url, one in found["urls"].items() if _are_texts(one.values())}
            self._deleted = {name: _times(one) for name, one in found.get("deleted", {}).items()}
        self._written = self._text()

    def __getitem__(self, url: str) -> Validators:
        return self._urls[url]

    def __iter__(self) -> Iterator[str]:
        return iter(self._urls)

    def __len__(self) -> int:
        return len(self._urls)

    def put(self, url: str, validators: Validators) -> None:
        """Remembers the validators of a stored file."""
        self._urls[url] = validators

    def keep_only(self, urls: Collection[str]) -> None:
        """Forgets the URLs that are listed no more."""
        self._urls = {url: one for url, one in self._urls.items() if url in urls}

    def deletions(self, name: str) -> deque[tuple[float, int]]:
        """Returns the times and numbers of documents that were deleted from a folder. Add to it what is deleted."""
        return self._deleted.setdefault(name, deque())

    def _text(self) -> str:
        urls = {url: asdict(one) for url, one in self._urls.items()}
        deleted = {name: list(one) for name, one in self._deleted.items() if one}
        return json.dumps({"urls": urls, "deleted": deleted}, indent=1)

    def write(self) -> None:
        """Replaces the file if something has changed. Raises `OSError`."""
        text = self._text()
        if text == self._written:
            return
        number, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        self._written = text
