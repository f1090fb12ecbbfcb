"""The documents of a running service, over HTTP. What passes by itself is tried again: a restart costs nothing.

Which files a folder has for the knowledge base, and what each is known by.

A file's source begins with the id of its folder: the folder's name, and a digest of its host and path. So two projects
that both have a folder `docs` do not share documents. A collection's name takes the place of that id where a folder
moves, or is read on several hosts.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_random_exponential,
)

from api.knowledge.plain_text import BY_SUFFIX, FENCED, heading_words

PATIENCE: Final = 120.0
"""Seconds that a service may be away."""


class Refused(Exception):
    """The service does not take a document: one line that says why."""


class ServiceGone(Refused):
    """The service takes none, for as long as one may wait for it."""


class _Busy(Exception):
    """It may, later."""


_PASSING: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, _Busy)
"""What passes by itself; not an address or a key that can not be sent."""


class DocumentClient:
    """Made by `connected`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        patience: float,
        timeout: float,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._client = client
        self._patience = patience
        self._timeout = timeout
        self._on_wait = on_wait
        self._told = False

    async def upload(
        self, name: str, content: bytes, fields: Mapping[str, str | list[str]]
    ) -> tuple[str, dict[str, Any]]:
        """What became of it, and the document once it serves. Raises `Refused`."""
        document = await self._request("POST", "/documents", files={"file": (name, content)}, data=dict(fields))
        outcome = str(document.get("outcome"))
        if document["status"] == "processing":
            document = await self._settled(document["id"])
        if document["status"] == "failed":
            raise Refused(str(document["error"]))
        return outcome, document

    async def all_of(self, tenant: str | None, tag: str | None = None) -> list[dict[str, Any]]:
        """Every document of a tenant."""
        found: list[dict[str, Any]] = []
        params = {name: value for name, value in (("tenant", tenant), ("tag", tag)) if value is not None}
        cursor: str | None = ""
        while cursor is not None:
            page = await self._request("GET", "/documents", params={**params, "limit": 500, **_after(cursor)})
            found += page["documents"]
            cursor = page["cursor"]
        return found

    async def has(self, source: str, tenant: str | None) -> bool:
        """Whether a tenant has a document of this source."""
        params = {"source": source, "limit": 1, **({} if tenant is None else {"tenant": tenant})}
        return bool((await self._request("GET", "/documents", params=params))["documents"])

    async def delete(self, document: str) -> None:
        """Raises `Refused`."""
        await self._request("DELETE", f"/documents/{document}")

    async def _settled(self, document: str) -> dict[str, Any]:
        asking = AsyncRetrying(
            retry=retry_if_result(lambda found: found["status"] == "processing"),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            stop=stop_after_delay(self._timeout),
            retry_error_callback=lambda _: {"status": "failed", "error": f"not ready after {self._timeout:g} s"},
        )
        found: dict[str, Any] = await asking(self._request, "GET", f"/documents/{document}", params={"limit": 0})
        return found

    async def _request(self, method: str, path: str, **sent: Any) -> Any:
        trying = AsyncRetrying(
            retry=retry_if_exception_type(_PASSING),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(self._patience),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return await trying(self._once, method, path, **sent)
        except (httpx.TransportError, _Busy) as error:
            raise ServiceGone(f"the service does not answer: {str(error) or type(error).__name__}") from None

    def _tell(self, trial: RetryCallState) -> None:
        """The first time that it is waited for."""
        if not self._told and trial.outcome is not None:
            self._told = True
            self._on_wait(str(trial.outcome.exception()))

    async def _once(self, method: str, path: str, **sent: Any) -> Any:
        response = await self._client.request(method, path, **sent)
        if response.status_code in {429, 502, 503, 504}:
            raise _Busy(_detail(response))
        if method == "DELETE" and response.status_code == 404:
            return None  # gone already
        if not response.is_success:
            raise Refused(_detail(response))
        return response.json() if response.content else None


@asynccontextmanager
async def connected(
    url: str,
    key: str | None,
    *,
    patience: float = PATIENCE,
    timeout: float = 600.0,  # noqa: ASYNC109 - of a document
    on_wait: Callable[[str], None] = lambda why: None,
) -> AsyncIterator[DocumentClient]:
    """A client of the service at `url`. `timeout`: seconds until a document has to serve.

    `on_wait` is told why the service is waited for, once. Raises `Refused` for what is no address.
    """
    headers = {b"Authorization": f"Bearer {key.strip()}".encode()} if key else {}
    async with httpx.AsyncClient(base_url=_address(url), headers=headers, timeout=60.0, trust_env=False) as client:
        yield DocumentClient(client, patience, timeout, on_wait)


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Refused(f"{url}: {error}") from None
    if (address.port or 0) > 65_535:
        raise Refused(f"{url}: Invalid port: {address.port}")
    return address


def _after(cursor: str) -> dict[str, str]:
    return {"cursor": cursor} if cursor else {}


def _detail(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}: {response.text[:200]}"


_HEADING: Final = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """`source`: the id of its folder, or the collection, and the path below it in POSIX form."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a kind that is read, and how many others there are, links among them.

    `folders`: what the sources of the files of each named folder begin with, without the slash.
    """

    files: tuple[DocumentFile, ...]
    skipped: int
    folders: tuple[str, ...] = ()


class SameSource(Exception):
    """Two files would be known by the same: the later would replace the earlier, each time."""


def find(paths: Sequence[Path], collection: str | None = None) -> Found:
    """In the order of their names. What is hidden is left out, and no link is followed.

    Raises `SameSource`, and `OSError` for a folder that cannot be read.
    """
    files: dict[Path, DocumentFile] = {}
    known: dict[str, Path] = {}
    folders: dict[str, None] = {}
    skipped = 0
    for named in (path.resolve() for path in paths):
        folder = named if named.is_dir() else named.parent
        prefix = collection or folder_id(folder)
        if named.is_dir():
            folders[prefix] = None
        for path in _files(named):
            if path.suffix.lower() in BY_SUFFIX and path.is_file() and not path.is_symlink():
                file = files.setdefault(path, DocumentFile(path, f"{prefix}/{path.relative_to(folder).as_posix()}"))
                if (other := known.setdefault(file.source, path)) != path:
                    raise SameSource(f"{other} and {path} would both be '{file.source}': ingest a folder above both")
            else:
                skipped += 1
    return Found(tuple(files.values()), skipped, tuple(folders))


def folder_id(folder: Path) -> str:
    """`docs@3fa9c1d204`: the same for one folder of one host, and for no other."""
    place = f"{socket.gethostname()}\n{folder}".encode("utf-8", "surrogateescape")
    return f"{folder.name}@{hashlib.sha256(place).hexdigest()[:10]}"


def former_source(source: str) -> str:
    """What releases up to 0.1 knew a file by: the folder's name alone stood for the folder."""
    folder, _, below = source.partition("/")
    return f"{folder.rpartition('@')[0]}/{below}"


def title_of(file: DocumentFile, content: bytes) -> str | None:
    """The first heading of Markdown; else the file's name, but for kinds that have a title of their own (None)."""
    if file.path.suffix.lower() in {".md", ".markdown"}:
        found = _HEADING.search(FENCED.sub("", content[:65_536].decode("utf-8", "replace")))
        return heading_words(found[1])[:500] if found else file.path.stem
    return file.path.stem if file.path.suffix.lower() in {".txt", ".text"} else None


def _files(path: Path) -> Iterator[Path]:
    """A folder's, and all below; a link, a pipe and the like are what they are."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        if not child.name.startswith("."):
            yield from _files(child)
