"""Endpoints of the knowledge base: store, list, show and delete documents.

POST /documents takes JSON with the text, or a form with a file. Responses with a long list are encoded a few items at a
time, so that the event loop stays responsive.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from api.endpoints.access import DEFAULT_TENANT
from api.endpoints.description import body_of
from api.endpoints.health import AppState, charge_request, worker_state
from api.endpoints.query import Name
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import (
    VISIBLE,
    IsText,
    IsVisible,
    StrictBody,
    body_in_turn,
    json_of,
    refused,
    rfc3339,
    validated,
)
from api.errors import PayloadTooLarge, ServiceUnavailable
from api.knowledge.document_service import OnConflict, Upload
from api.knowledge.kinds import KINDS, TEXT, media_type
from api.knowledge.markdown import LONGEST_TITLE
from api.languages.documents import LONGEST_TAG, TAG, canonical
from api.ports.document_store import Chunk, Document, DocumentFacts, DocumentStatus, Listing
from api.unicode_text import one_line

SNIFFED_BYTES: Final = 4096
"""Leading bytes of a file that indicate its type."""
MULTIPART: Final = "multipart/form-data"

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), IsText, IsVisible]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), IsText, IsVisible]
Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000), IsText, IsVisible]

Language = Annotated[str, Field(max_length=LONGEST_TAG, pattern=f"^{TAG.pattern}$", examples=["de"])]
"""In BCP 47."""


class _Facts(StrictBody):
    tags: Annotated[list[Tag], Field(max_length=50, fail_fast=True)] = Field(default_factory=list)
    source: Source | None = None
    version: Name | None = None
    tenant: Name | None = None
    language: Language | None = None

    def facts(self, title: str) -> DocumentFacts:
        tags = tuple(dict.fromkeys(self.tags))
        tenant, language = self.tenant or DEFAULT_TENANT, canonical(self.language)
        return DocumentFacts(tenant, title, tags, self.source, self.version, language=language)


class DocumentIn(_Facts):
    """A document as JSON."""

    title: Title
    text: Annotated[str, Field(min_length=1), IsText, IsVisible]


class FormIn(_Facts):
    """The fields of a form besides its file."""

    title: Title | None = None


def _field(max_length: int) -> dict[str, Any]:
    """The schema of a form field. An empty field counts as absent."""
    return {"type": "string", "maxLength": max_length, "pattern": f"^$|{VISIBLE}"}


FORM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "title": _field(500),
        "tags": {"type": "array", "items": _field(100), "maxItems": 50},
        "source": _field(2000),
        "version": _field(200),
        "tenant": _field(200),
        "language": {"type": "string", "maxLength": LONGEST_TAG, "pattern": f"^$|^{TAG.pattern}$"},
    },
}


async def read_document(request: Request, max_bytes: int) -> Upload:
    """Reads a document from a request.

    Raises `InvalidRequest`, `UnsupportedDocument`, `PayloadTooLarge` or `ServiceUnavailable`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == MULTIPART:
        form = await _form(request)
        try:
            return await _from_form(form, max_bytes)
        finally:
            await form.close()
    body = validated(DocumentIn, json_of(await body_in_turn(request)))
    return Upload(body.facts(body.title), body.text.encode(), TEXT)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=60)
    except HTTPException as error:
        if error.status_code != HTTPStatus.BAD_REQUEST:
            raise
        raise refused("", str(error.detail)) from None
    except OSError as error:  # a file above 1 MiB is kept in the temporary directory until it is read
        if error.errno != errno.ENOSPC:
            raise
        raise ServiceUnavailable("No disk space for this upload. Try again.", retry_after=1) from None


async def _from_form(form: FormData, max_bytes: int) -> Upload:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise refused("file", "is required")
    fields: dict[str, Any] = {name: form[name] for name in form if name not in {"file", "tags"} and form[name] != ""}
    tags = [tag for tag in form.getlist("tags") if tag != ""]
    about = validated(FormIn, {**fields, "tags": tags})
    content = await file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise PayloadTooLarge(f"The file is larger than {max_bytes} bytes.")
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    kind = media_type(name, file.content_type, content[:SNIFFED_BYTES])
    name = one_line(name, LONGEST_TITLE)
    facts = about.facts(about.title or "")
    return Upload(replace(facts, source=facts.source or name or None), content, kind, name)


PATH: Final = "/documents"
router = APIRouter(route_class=CheckedRoute, prefix=PATH, tags=["documents"])

_EXAMPLE: Final = {
    "title": "Holiday policy",
    "text": "Holiday is approved by the team lead.",
    "tags": ["hr"],
    "source": "https://example.com/holiday",
}
_BODY: Final = body_of(DocumentIn, _EXAMPLE)
_BODY["requestBody"]["content"][MULTIPART] = {
    "schema": FORM_SCHEMA,
    "encoding": {"file": {"contentType": ", ".join(sorted(KINDS))}},
}


class ListingIn(BaseModel):
    """Query parameters that select documents."""

    model_config = ConfigDict(extra="forbid")

    tenant: Name | None = None
    tag: Name | None = None
    status: DocumentStatus | None = None
    source: Annotated[str, Field(max_length=2000)] | None = None
    cursor: Annotated[str, Field(max_length=100, pattern=r"^\d+-[0-9a-f]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class ReadIn(BaseModel):
    """Query parameters that select a document's passages."""

    model_config = ConfigDict(extra="forbid")

    tenant: Name | None = None
    offset: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0, le=1000)] = 200


@router.post(
    "",
    status_code=201,
    summary="Store a document",
    responses={202: {"model": dict[str, Any], "description": "In progress"}},
    openapi_extra=_BODY,
)
@needs("admin")
async def post_document(request: Request, response: Response, on_conflict: OnConflict = "replace") -> dict[str, Any]:
    """201: the document is in use. 202: `status` shows the progress. The same `source` replaces a document."""
    state = worker_state(request)
    upload = await read_document(request, state.documents.limits.bytes)
    request.state.tenant = upload.facts.tenant
    await charge_request(request)
    added = await state.documents.add(replace(upload, on_conflict=on_conflict))
    response.status_code = 201 if added.document.status == "ready" else 202
    response.headers["Location"] = f"{PATH}/{added.document.id}"
    return {**document_out(added.document), "outcome": added.outcome}


@router.get("", summary="List documents")
@needs("user")
async def get_documents(request: Request, wanted: Annotated[ListingIn, Query()]) -> dict[str, Any]:
    """A tenant's documents, newest first. Pass `cursor` to get the next page."""
    state = worker_state(request)
    tenant = state.access.tenant(request, wanted.tenant)
    listing = Listing(wanted.tag, wanted.status, wanted.source, wanted.cursor, wanted.limit)
    page = await state.documents.page(tenant, listing)
    return {"documents": [document_out(document) for document in page.documents], "cursor": page.cursor}


@router.get("/{document}", summary="Show a document with its passages")
@needs("user")
async def get_document(request: Request, document: str, wanted: Annotated[ReadIn, Query()]) -> dict[str, Any]:
    """Includes `progress` while the document is being processed."""
    state = worker_state(request)
    found = await state.documents.find(document, _tenant(request, state, wanted.tenant))
    chunks = await state.documents.chunks(document, wanted.offset, wanted.limit)
    return {**document_out(found), "passages": [_passage(chunk) for chunk in chunks]}


@router.delete("/{document}", status_code=204, summary="Delete a document")
@needs("admin")
async def delete_document(request: Request, document: str, tenant: Name | None = None) -> Response:
    """After the response no worker serves an answer that used the document."""
    state = worker_state(request)
    await state.documents.delete(document, tenant)
    return Response(status_code=204)


def _tenant(request: Request, state: AppState, requested: str | None) -> str | None:
    """Returns None if the caller may read any tenant's document by its ID: an admin who names no tenant, or any caller
    if no keys are configured.
    """
    if requested is None and state.access.sees_all_tenants(request):
        return None
    return state.access.tenant(request, requested)


def document_out(document: Document) -> dict[str, Any]:
    """Returns the JSON of a document."""
    facts = document.facts
    return {
        "id": document.id,
        "status": document.status,
        "title": facts.title,
        "tenant": facts.tenant,
        "tags": facts.tags,
        "source": facts.source,
        "version": facts.version,
        "language": facts.language,
        "chunks": document.chunks,
        "characters": document.characters,
        "revision": document.revision,
        "digest": document.digest,
        "created": rfc3339(document.created_ms),
        "updated": rfc3339(document.updated_ms),
        "error": document.error,
        "delayed_by": document.delayed_by if document.status == "processing" else None,
        "warnings": facts.warnings,
        "not_embedded": document.not_embedded,
        "failed_chunks": [{"chunk": one.number, "reason": one.reason} for one in document.failed_chunks],
        "progress": {"done": document.done, "total": document.total} if document.status == "processing" else None,
    }


def _passage(chunk: Chunk) -> dict[str, Any]:
    return {
        "chunk": chunk.number,
        "page": chunk.page,
        "heading": chunk.heading,
        "text": chunk.text,
        "start": chunk.start,
        "end": chunk.end,
    }


T = TypeVar("T")
ITEMS_PER_CHUNK: Final = 16
"""Encoded at once. For vectors that is about 16,000 numbers, or a millisecond."""
JSON: Final = "application/json"


def list_response(
    fields: Mapping[str, Any], name: str, items: Sequence[T], encode: Callable[[int, T], Any]
) -> Response:
    """Returns a JSON response of `fields` plus the list `name` with `encode(number, item)` for each item.

    `encode` may return numpy arrays.
    """
    if len(items) <= ITEMS_PER_CHUNK:
        listed = [encode(number, item) for number, item in enumerate(items)]
        return Response(_dumped({**fields, name: listed}), media_type=JSON)
    return StreamingResponse(_pieces(fields, name, items, encode), media_type=JSON)


async def _pieces(
    fields: Mapping[str, Any], name: str, items: Sequence[T], encode: Callable[[int, T], Any]
) -> AsyncIterator[bytes]:
    before = _dumped({**fields, name: []})[: -len(b"]}")]
    for start in range(0, len(items), ITEMS_PER_CHUNK):
        part = [encode(number, item) for number, item in enumerate(items[start : start + ITEMS_PER_CHUNK], start)]
        yield before + _dumped(part)[1:-1]
        before = b","
        await asyncio.sleep(0)
    yield b"]}"


def _dumped(document: Any) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
