"""What POST /documents takes: JSON with the text, or a form with a file."""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import Field, StringConstraints
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from api.endpoints.access import DEFAULT_TENANT
from api.endpoints.json_body import json_of
from api.endpoints.query import Name
from api.endpoints.validation import VISIBLE, IsText, IsVisible, StrictBody, refused, validated
from api.errors import PayloadTooLarge, ServiceUnavailable
from api.knowledge.library import Given
from api.knowledge.media_types import TEXT, media_type
from api.ports.documents import DocumentFacts

HEAD: Final = 4096
"""Bytes that say what kind of file it is."""
FORM: Final = "multipart/form-data"

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), IsText, IsVisible]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), IsText, IsVisible]
Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000), IsText, IsVisible]


class _Facts(StrictBody):
    tags: Annotated[list[Tag], Field(max_length=50, fail_fast=True)] = Field(default_factory=list)
    source: Source | None = None
    version: Name | None = None
    tenant: Name | None = None

    def facts(self, title: str) -> DocumentFacts:
        tags = tuple(dict.fromkeys(self.tags))
        return DocumentFacts(self.tenant or DEFAULT_TENANT, title, tags, self.source, self.version)


class DocumentIn(_Facts):
    """A document as JSON."""

    title: Title
    text: Annotated[str, Field(min_length=1), IsText, IsVisible]


class FormIn(_Facts):
    """What a form says beside its file."""

    title: Title | None = None


def _field(most: int) -> dict[str, Any]:
    """Of a form, where an empty field is as good as none."""
    return {"type": "string", "maxLength": most, "pattern": f"^$|{VISIBLE}"}


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
    },
}


async def given_document(request: Request, most_bytes: int) -> Given:
    """Raises `InvalidRequest`, `UnsupportedDocument`, `PayloadTooLarge`, `ServiceUnavailable`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        form = await _form(request)
        try:
            return await _from_form(form, most_bytes)
        finally:
            await form.close()
    body = validated(DocumentIn, json_of(await request.body()))
    return Given(body.facts(body.title), body.text.encode(), TEXT)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=60)
    except HTTPException as error:
        if error.status_code != HTTPStatus.BAD_REQUEST:
            raise
        raise refused("", str(error.detail)) from None
    except OSError as error:  # a file beyond 1 MiB lies in the temporary directory until it is read
        if error.errno != errno.ENOSPC:
            raise
        raise ServiceUnavailable("Other files have all the room there is for uploads.", retry_after=1) from None


async def _from_form(form: FormData, most_bytes: int) -> Given:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise refused("file", "is missing")
    fields: dict[str, Any] = {name: form[name] for name in form if name not in {"file", "tags"} and form[name] != ""}
    tags = [tag for tag in form.getlist("tags") if tag != ""]
    about = validated(FormIn, {**fields, "tags": tags})
    content = await file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise PayloadTooLarge(f"The file is larger than {most_bytes} bytes.")
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    kind = media_type(name, file.content_type, content[:HEAD])
    return Given(about.facts(about.title or ""), content, kind, name.encode("utf-8", "replace").decode())
