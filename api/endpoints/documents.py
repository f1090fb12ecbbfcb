"""The knowledge base: documents in, a list of them, one with its passages, and out again."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.endpoints.checked_route import CheckedRoute, needs
from api.endpoints.description import body_of
from api.endpoints.document_body import FORM, FORM_SCHEMA, DocumentIn, given_document
from api.endpoints.query import Name
from api.endpoints.times import rfc3339
from api.endpoints.worker_state import WorkerState, worker_state
from api.knowledge.media_types import KINDS
from api.ports.documents import Chunk, Document, DocumentStatus, Listing

PATH: Final = "/documents"
router = APIRouter(route_class=CheckedRoute, prefix=PATH, tags=["documents"])

_EXAMPLE: Final = {
    "title": "Holiday policy",
    "text": "Holiday is approved by the team lead.",
    "tags": ["hr"],
    "source": "https://example.com/holiday",
}
_BODY: Final = body_of(DocumentIn, _EXAMPLE)
_BODY["requestBody"]["content"][FORM] = {
    "schema": FORM_SCHEMA,
    "encoding": {"file": {"contentType": ", ".join(sorted(KINDS))}},
}


class ListingIn(BaseModel):
    """Which documents a list wants."""

    model_config = ConfigDict(extra="forbid")

    tenant: Name | None = None
    tag: Name | None = None
    status: DocumentStatus | None = None
    source: Annotated[str, Field(max_length=2000)] | None = None
    cursor: Annotated[str, Field(max_length=100, pattern=r"^\d+-[0-9a-f]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class ReadIn(BaseModel):
    """Which of a document's passages are shown."""

    model_config = ConfigDict(extra="forbid")

    tenant: Name | None = None
    offset: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0, le=1000)] = 200


@router.post(
    "",
    status_code=201,
    summary="Store a document",
    responses={202: {"model": dict[str, Any], "description": "Worked on"}},
    openapi_extra=_BODY,
)
@needs("admin")
async def post_document(request: Request, response: Response) -> dict[str, Any]:
    """201 once it serves, else 202: `status` says how far it is. The same `source` again replaces what it had."""
    state = worker_state(request)
    added = await state.library.add(await given_document(request, state.library.limits.bytes))
    response.status_code = 201 if added.document.status == "ready" else 202
    response.headers["Location"] = f"{PATH}/{added.document.id}"
    return {**document_out(added.document), "outcome": added.outcome}


@router.get("", summary="List documents")
@needs("user")
async def get_documents(request: Request, wanted: Annotated[ListingIn, Query()]) -> dict[str, Any]:
    """A tenant's, the newest first; `cursor` of one page asks for the next."""
    state = worker_state(request)
    tenant = state.access.tenant(request, wanted.tenant)
    listing = Listing(wanted.tag, wanted.status, wanted.source, wanted.cursor, wanted.limit)
    page = await state.library.page(tenant, listing)
    return {"documents": [document_out(document) for document in page.documents], "cursor": page.cursor}


@router.get("/{document}", summary="One document with its passages")
@needs("user")
async def get_document(request: Request, document: str, wanted: Annotated[ReadIn, Query()]) -> dict[str, Any]:
    """Also how far it is, while it is worked on."""
    state = worker_state(request)
    found = await state.library.find(document, _tenant(request, state, wanted.tenant))
    chunks = await state.library.chunks(document, wanted.offset, wanted.limit)
    return {**document_out(found), "passages": [_passage(chunk) for chunk in chunks]}


@router.delete("/{document}", status_code=204, summary="Delete a document")
@needs("admin")
async def delete_document(request: Request, document: str, tenant: Name | None = None) -> Response:
    """No answer that used it is served by any worker once the response is there."""
    state = worker_state(request)
    await state.library.delete(document, tenant)
    return Response(status_code=204)


def _tenant(request: Request, state: WorkerState, asked: str | None) -> str | None:
    """A user sees his tenant's. An admin who names none, and anybody where there are no keys, sees it by its id."""
    if asked is None and state.access.is_open_to_all_tenants(request):
        return None
    return state.access.tenant(request, asked)


def document_out(document: Document) -> dict[str, Any]:
    """As everybody sees it."""
    facts = document.facts
    return {
        "id": document.id,
        "status": document.status,
        "title": facts.title,
        "tenant": facts.tenant,
        "tags": facts.tags,
        "source": facts.source,
        "version": facts.version,
        "chunks": document.chunks,
        "characters": document.characters,
        "revision": document.revision,
        "digest": document.digest,
        "created": rfc3339(document.created_ms),
        "updated": rfc3339(document.updated_ms),
        "error": document.error,
        "delayed_by": document.delayed_by if document.status == "processing" else None,
        "not_embedded": document.not_embedded,
        "failed_chunks": [{"chunk": one.number, "reason": one.reason} for one in document.failed_chunks],
        "progress": {"done": document.done, "total": document.total} if document.status == "processing" else None,
    }


def _passage(chunk: Chunk) -> dict[str, Any]:
    return {
        "chunk": chunk.number,
        "heading": chunk.heading,
        "text": chunk.text,
        "start": chunk.start,
        "end": chunk.end,
    }
