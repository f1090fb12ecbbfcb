"""Requests for every backend: Ollama's paths that change its models, and requests to unload one.

The paths are pull, push, create, copy, delete, and the blobs of a new model.

They change what every caller gets, so they need an admin key and OLLAMA_ADMIN_PASSTHROUGH. Every backend gets the
request, because the fleet takes them for equal.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from api.cancellation import cancel_and_wait
from api.endpoints.audit import audited
from api.endpoints.description import errors_of
from api.endpoints.dropin_wire import NDJSON, read_fields
from api.endpoints.health import worker_state
from api.endpoints.ollama_wire import BLOBS, error_body, error_line
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.streaming import CancelOnDisconnect
from api.errors import NotAuthorized, UpstreamError, UpstreamFault
from api.ports.inference import ModelCatalog
from api.values import PassedOn

router = APIRouter(route_class=CheckedRoute, tags=["Ollama's API"], responses=errors_of("Ollama", error_body))

OFF: Final = "Changing models is off here. Set OLLAMA_ADMIN_PASSTHROUGH=true, or run the command where Ollama runs."
AHEAD: Final = 4
"""Parts of an upload that the fastest backend may be ahead of the slowest."""
STALLED: Final = 60.0
"""Seconds after which an upload to a backend that takes no data fails."""
ANSWER_BYTES: Final = 64 * 1024
"""Bytes of a response that is not streamed."""


@router.post("/api/pull", summary="Ollama: pull a model", response_model=None)
@needs("user")
async def pull(request: Request) -> Response:
    """On every backend, one after the other."""
    return await _streamed(request)


@router.post("/api/push", summary="Ollama: push a model", response_model=None)
@needs("user")
async def push(request: Request) -> Response:
    """From every backend, one after the other."""
    return await _streamed(request)


@router.post("/api/create", summary="Ollama: create a model", response_model=None)
@needs("user")
async def create(request: Request) -> Response:
    """On every backend, one after the other."""
    return await _streamed(request)


@router.post("/api/copy", summary="Ollama: copy a model", response_model=None)
@needs("user")
async def copy(request: Request) -> Response:
    """On every backend."""
    return await _together(request)


@router.delete("/api/delete", summary="Ollama: delete a model", response_model=None)
@needs("user")
async def delete(request: Request) -> Response:
    """On every backend."""
    return await _together(request)


@router.get(BLOBS + "{digest}", summary="Ollama: check a blob", response_model=None)
@needs("user")
async def has_blob(request: Request, digest: str) -> Response:
    """For HEAD requests: 404 unless every backend has it."""
    return await _together(request, method="HEAD")


@router.post(BLOBS + "{digest}", summary="Ollama: upload a blob", response_model=None)
@needs("user")
async def upload_blob(request: Request, digest: str) -> Response:
    """To every backend, at the pace of the slowest."""
    return await _together(request, upload=True)


def _allowed(request: Request) -> ModelCatalog:
    """Returns the backends. Raises `NotAuthorized`, and `NotAuthenticated` without an admin key."""
    state = worker_state(request)
    if not state.admin_passthrough:
        raise NotAuthorized(OFF)
    state.access.require_admin(request)
    return state.catalog


MODELS: Final = ("model", "name", "source", "destination")
"""The fields that name models."""


async def _recorded(request: Request, fields: Any) -> None:
    """Records a change in the audit log, with the models that it names."""
    action = request.url.path.removeprefix("/api/").partition("/")[0]
    given = fields if isinstance(fields, dict) else {}
    await audited(request, f"model.{action}", **{name: str(given[name]) for name in MODELS if name in given})


async def _streamed(request: Request) -> Response:
    catalog = _allowed(request)
    fields = await read_fields(request)
    await _recorded(request, fields)
    body = orjson.dumps(fields)
    if fields.get("stream") is False:
        with CancelOnDisconnect(request.receive):
            names = catalog.backends()
            return _worst([await _answer(catalog, name, request.method, request.url.path, body) for name in names])
    return StreamingResponse(_progress(catalog, request, body), media_type=NDJSON)


async def _progress(catalog: ModelCatalog, request: Request, body: bytes) -> AsyncIterator[bytes]:
    """Yields the progress of each backend, and then the errors: a client that reads one may leave.

    An error names its backend if there are others.
    """
    names = catalog.backends()
    failures: list[bytes] = []
    for name in names:
        if len(names) > 1:
            yield _line({"status": f"{name}:"})
        try:
            async with catalog.pass_on(name, request.method, request.url.path, body) as response:
                async for line in _lines(response.parts):
                    if (said := _error_in(line)) is None:
                        yield line + b"\n"
                    else:
                        failures.append(_line({"error": f"{name}: {said}" if len(names) > 1 else said}))
        except UpstreamError as error:
            failures.append(error_line(UpstreamError(error.fault, f"{name}: {error.detail}")))
    for failure in failures:
        yield failure


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the lines that are not blank. The last may lack its line feed."""
    rest = b""
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > ANSWER_BYTES:
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"a line has more than {ANSWER_BYTES} bytes.")
    if rest.strip():
        yield rest


def _error_in(line: bytes) -> Any:
    """Returns the error in a line of progress; None without one."""
    with suppress(orjson.JSONDecodeError):
        fields = orjson.loads(line)
        return fields.get("error") if isinstance(fields, dict) else None
    return None


def _line(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


async def _together(request: Request, *, method: str = "", upload: bool = False) -> Response:
    """Returns the response of the backend that fared worst. `method` replaces the request's."""
    catalog = _allowed(request)
    names = catalog.backends()
    if not upload:
        body = await request.body()
        if request.method != "GET":
            await _recorded(request, _fields(body))
        with CancelOnDisconnect(request.receive):
            answers = await asyncio.gather(
                *(_answer(catalog, name, method or request.method, request.url.path, body) for name in names)
            )
    else:
        await _recorded(request, {"name": request.path_params["digest"]})
        answers = await _uploaded(catalog, names, request)
    return _worst(answers)


def _fields(body: bytes) -> Any:
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    return None


Answer = tuple[int, str, bytes]


def _worst(answers: Sequence[Answer]) -> Response:
    status, kind, said = max(answers, key=lambda answer: answer[0])
    return Response(said, status, media_type=kind)


async def _answer(
    catalog: ModelCatalog, name: str, method: str, path: str, content: bytes | AsyncIterator[bytes]
) -> Answer:
    async with catalog.pass_on(name, method, path, content) as response:
        return response.status, response.media_type, await _beginning(response)


async def _beginning(response: PassedOn) -> bytes:
    found = bytearray()
    async for part in response.parts:
        found += part
        if len(found) > ANSWER_BYTES:
            break
    return bytes(found[:ANSWER_BYTES])


UNLOADING: Final = 10.0
"""Seconds that a backend has to unload a model."""
_ZERO: Final = re.compile(r"[+-]?0+(\.0*)?([nuµm]?s|[mh])?")


def is_zero(keep_alive: Any) -> bool:
    """Returns whether a model is to be unloaded at once: a number of seconds, or a duration of Go's."""
    if isinstance(keep_alive, str):
        return _ZERO.fullmatch(keep_alive) is not None
    return isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool) and keep_alive == 0


async def unloaded(request: Request, path: str, body: bytes) -> Response:
    """Unloads a model on every backend. Returns the best response: other backends may lack the model, or be down.

    Raises `UpstreamError` if none answers.
    """
    catalog = worker_state(request).catalog

    async def unload(name: str) -> Answer:
        try:
            async with asyncio.timeout(UNLOADING):
                return await _answer(catalog, name, "POST", path, body)
        except TimeoutError as error:
            detail = f"{name} did not unload the model within {UNLOADING:g} s."
            raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, detail) from error

    with CancelOnDisconnect(request.receive):
        tried = await asyncio.gather(*map(unload, catalog.backends()), return_exceptions=True)
    answers = [answer for answer in tried if not isinstance(answer, BaseException)]
    failed = [
        one for one in tried if isinstance(one, BaseException) and not (answers and isinstance(one, UpstreamError))
    ]
    try:
        if failed:
            raise failed[0]
    finally:
        del failed, tried
    status, kind, said = min(answers, key=lambda answer: answer[0])
    headers = {"Cache-Status": "ragherd; fwd=bypass; detail=load"}
    return Response(said, status, headers, media_type=kind)


class _Copy:
    """The body on its way to one backend."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        self.is_refused = False

    async def add(self, part: bytes) -> None:
        """Waits while the backend lags behind, unless it wants no more. An empty part is the end.

        Raises `UpstreamError` if the backend takes nothing for too long.
        """
        if self.is_refused:
            return
        try:
            async with asyncio.timeout(STALLED):
                await self._queue.put(part)
        except TimeoutError as error:
            detail = f"{self._name}: took no data for {STALLED:g} s."
            raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, detail) from error

    async def parts(self) -> AsyncIterator[bytes]:
        """Yields what was added."""
        while part := await self._queue.get():
            yield part

    def refuse(self) -> None:
        """Drops the rest: the backend has answered."""
        self.is_refused = True
        while not self._queue.empty():
            self._queue.get_nowait()


async def _uploaded(catalog: ModelCatalog, names: Sequence[str], request: Request) -> list[Answer]:
    """Sends each part of the body to every backend as it arrives. Raises a failure once the others have their copy.

    If the client leaves, or a backend hangs, the upload ends everywhere.
    """
    copies = [_Copy(name) for name in names]

    async def feed() -> None:
        async for part in request.stream():
            if all(copy.is_refused for copy in copies):
                break
            for copy in copies if part else ():
                await copy.add(part)
        for copy in copies:
            await copy.add(b"")
        with CancelOnDisconnect(request.receive):
            await asyncio.wait(sending)

    async def send(name: str, copy: _Copy) -> Answer:
        try:
            return await _answer(catalog, name, request.method, request.url.path, copy.parts())
        finally:
            copy.refuse()

    sending = [asyncio.create_task(send(name, copy)) for name, copy in zip(names, copies, strict=True)]
    feeding = asyncio.create_task(feed())
    try:
        await feeding
        # No name holds a task whose error is raised here: the error refers to this frame.
        return [sending.pop(0).result() for _ in names]
    finally:
        await cancel_and_wait([feeding, *sending])
        del feeding
