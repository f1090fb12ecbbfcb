"""Uploads documents to a running service over HTTP, and finds the files to upload.

Temporary failures are retried, so a restart of the service does not interrupt an upload.

A file's source begins with the ID of its folder: the folder's name and a digest of its host and path. Two projects that
both have a folder `docs` therefore do not share documents. A collection's name replaces that ID if a folder moves or is
read on several hosts.
"""

from __future__ import annotations

import hashlib
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
    stop_before_delay,
    wait_random_exponential,
)

from api.knowledge import markdown
from api.knowledge.kinds import BY_SUFFIX, CODE
from ragherd.service_client import detail_of, parsed, without_user

MAX_OUTAGE_SECONDS: Final = 120.0
"""Time to wait for a service that does not answer."""


class Refused(Exception):
    """The service does not accept a document. The message is one line with the reason."""


class ServiceGone(Refused):
    """The service did not answer within the time limit."""


class Unusable(Refused):
    """The address or the key cannot be used."""


class _Busy(Exception):
    """The service may accept the document later. `wait`: the seconds until a rate limit allows it."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


_TEMPORARY: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, _Busy)
"""Retried. Invalid addresses and keys that cannot be sent are not."""


class DocumentClient:
    """Use `connected` to create one."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        max_outage: float,
        timeout: float,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._client = client
        self._max_outage = max_outage
        self._timeout = timeout
        self._on_wait = on_wait
        self._reported = False

    async def upload(
        self, name: str, content: bytes, fields: Mapping[str, str | list[str]]
    ) -> tuple[str, dict[str, Any]]:
        """Returns the outcome and the document once it is ready. Raises `Refused`."""
        document = await self._request("POST", "/documents", files={"file": (name, content)}, data=dict(fields))
        outcome = str(document.get("outcome"))
        if document["status"] == "processing":
            document = await self._settled(document["id"])
        if document["status"] == "failed":
            raise Refused(str(document["error"]))
        return outcome, document

    async def all_of(self, tenant: str | None, tag: str | None = None) -> list[dict[str, Any]]:
        """Returns every document of a tenant."""
        found: list[dict[str, Any]] = []
        params = {name: value for name, value in (("tenant", tenant), ("tag", tag)) if value is not None}
        cursor: str | None = ""
        while cursor is not None:
            page = await self._request("GET", "/documents", params={**params, "limit": 500, **_after(cursor)})
            found += page["documents"]
            cursor = page["cursor"]
        return found

    async def has(self, source: str, tenant: str | None) -> bool:
        """Returns whether a tenant has a document with this source."""
        return bool(await self.with_source(source, tenant, limit=1))

    async def with_source(self, source: str, tenant: str | None, limit: int = 100) -> list[dict[str, Any]]:
        """Returns a tenant's documents with this source."""
        params = {"source": source, "limit": limit, **({} if tenant is None else {"tenant": tenant})}
        found: list[dict[str, Any]] = (await self._request("GET", "/documents", params=params))["documents"]
        return found

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
            retry=retry_if_exception_type(_TEMPORARY),
            wait=_wait_before_retry,
            stop=stop_before_delay(self._max_outage),
            before_sleep=self._report_wait,
            reraise=True,
        )
        try:
            return await trying(self._once, method, path, **sent)
        except (httpx.TransportError, _Busy) as error:
            if isinstance(error, _Busy) and error.wait:
                raise ServiceGone(f"{error} Try again in {error.wait:g} s.") from None
            raise ServiceGone(f"the service does not answer: {str(error) or type(error).__name__}") from None

    def _report_wait(self, trial: RetryCallState) -> None:
        """Reports only the first wait."""
        if not self._reported and trial.outcome is not None:
            self._reported = True
            self._on_wait(str(trial.outcome.exception()))

    async def _once(self, method: str, path: str, **sent: Any) -> Any:
        try:
            response = await self._client.request(method, path, **sent)
        except httpx.DecodingError:
            raise Refused(f"{path} is not an answer of Ragherd") from None
        if response.status_code in {429, 502, 503, 504}:
            wait = response.headers.get("Retry-After", "") if response.status_code == 429 else ""
            raise _Busy(f"{response.status_code}: {detail_of(response)}", float(wait) if wait.isdecimal() else 0.0)
        if method == "DELETE" and response.status_code == 404:
            return None  # deleted already
        if not response.is_success:
            raise Refused(f"{response.status_code}: {detail_of(response)}")
        foreign = Refused(f"{path} is not an answer of Ragherd")
        found = parsed(response.content, foreign) if response.content else None
        if not isinstance(found, dict) and method != "DELETE":
            raise foreign
        return found


_GROWING: Final = wait_random_exponential(multiplier=0.2, max=5)


def _wait_before_retry(trial: RetryCallState) -> float:
    error = trial.outcome.exception() if trial.outcome is not None else None
    return _GROWING(trial) + (error.wait if isinstance(error, _Busy) else 0.0)


@asynccontextmanager
async def connected(
    url: str,
    key: str | None,
    *,
    max_outage: float = MAX_OUTAGE_SECONDS,
    timeout: float = 600.0,  # noqa: ASYNC109 - for a document
    on_wait: Callable[[str], None] = lambda why: None,
) -> AsyncIterator[DocumentClient]:
    """Connects to the service at `url`. `timeout` is the time in seconds for a document to become ready.

    Calls `on_wait` once with the reason if the service has to be waited for. Raises `Refused` for an invalid address.
    """
    headers = {b"Authorization": f"Bearer {key.strip()}".encode()} if key else {}
    async with httpx.AsyncClient(base_url=_address(url), headers=headers, timeout=60.0, trust_env=False) as client:
        yield DocumentClient(client, max_outage, timeout, on_wait)


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:  # it may repeat a part of a password
        raise Unusable(f"{without_user(url)}: {'not a URL' if '@' in url else error}") from None
    if (address.port or 0) > 65_535:
        raise Unusable(f"{without_user(url)}: Invalid port: {address.port}")
    return address


def _after(cursor: str) -> dict[str, str]:
    return {"cursor": cursor} if cursor else {}


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """`source` is the folder's ID or the collection, followed by the relative path in POSIX form."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """Files of a supported type, and the number of skipped ones, including links.

    `folders` has the prefix of the sources of each given folder, without the slash.
    """

    files: tuple[DocumentFile, ...]
    skipped: int
    folders: tuple[str, ...] = ()


class SameSource(Exception):
    """Two files would have the same source, so each would replace the other."""


def find(paths: Sequence[Path], collection: str | None = None, *, code: bool = False) -> FoundFiles:
    """Finds files, sorted by name. Skips hidden files and does not follow links. `code`: source code in folders too.

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
            if _is_read(path, code=code or path == named) and path.is_file() and not path.is_symlink():
                file = files.setdefault(path, DocumentFile(path, f"{prefix}/{path.relative_to(folder).as_posix()}"))
                if (other := known.setdefault(file.source, path)) != path:
                    raise SameSource(
                        f"{other} and {path} would both have the source '{file.source}': ingest a common folder"
                    )
            else:
                skipped += 1
    return FoundFiles(tuple(files.values()), skipped, tuple(folders))


def _is_read(path: Path, *, code: bool) -> bool:
    kind = BY_SUFFIX.get(path.suffix.lower())
    return kind is not None and (code or kind != CODE)


def folder_id(folder: Path) -> str:
    """Returns an ID that is unique per folder and host, such as `docs@3fa9c1d204`."""
    place = f"{socket.gethostname()}\n{folder}".encode("utf-8", "surrogateescape")
    return f"{folder.name}@{hashlib.sha256(place).hexdigest()[:10]}"


def legacy_source(source: str) -> str:
    """Returns a file's source in releases up to 0.1, which identified a folder by its name only."""
    folder, _, below = source.partition("/")
    return f"{folder.rpartition('@')[0]}/{below}"


def title_of(file: DocumentFile, content: bytes) -> str | None:
    """Returns the first heading of Markdown, or the file's name, or None for types with their own title."""
    if file.path.suffix.lower() in {".md", ".markdown"}:
        text = content[:65_536].decode("utf-8", "replace").replace("\r\n", "\n")
        return markdown.read(text).title or markdown.any_heading(text) or file.path.stem
    return file.path.stem if file.path.suffix.lower() in {".txt", ".text"} else None


def _files(path: Path) -> Iterator[Path]:
    """Yields the files of a folder and everything below it. Links, pipes and files are yielded as they are."""
    waiting = [path]
    while waiting:  # no recursion: folders may be nested more deeply than Python's calls
        place = waiting.pop()
        if place.is_symlink() or not place.is_dir():
            yield place
        else:
            waiting += sorted((child for child in place.iterdir() if not child.name.startswith(".")), reverse=True)
