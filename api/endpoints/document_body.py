"""What POST /documents takes: JSON with the text, or a form with a file."""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from api.endpoints.access import DEFAULT_TENANT
from api.endpoints.query import IsText, IsVisible, Name
from api.errors import InvalidRequest, PayloadTooLarge, ServiceUnavailable
from api.knowledge.library import Given
from api.knowledge.media_types import TEXT, media_type
from api.ports.documents import DocumentFacts

HEAD: Final = 4096
"""Bytes that say what kind of file it is."""
FORM: Final = "multipart/form-data"

Body = TypeVar("Body", bound=BaseModel)
Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), IsText, IsVisible]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), IsText, IsVisible]
Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000), IsText, IsVisible]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tags: Annotated[list[Tag], Field(max_length=50)] = Field(default_factory=list)
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


async def given_document(request: Request, most_bytes: int) -> Given:
    """Raises `InvalidRequest`, `UnsupportedDocument`, `PayloadTooLarge`, `ServiceUnavailable`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        form = await _form(request)
        try:
            return await _from_form(form, most_bytes)
        finally:
            await form.close()
    body = _validated(DocumentIn, _json(await request.body()))
    return Given(body.facts(body.title), body.text.encode(), TEXT)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=60)
    except HTTPException as error:
        if error.status_code != HTTPStatus.BAD_REQUEST:
            raise
        fault = {"field": "", "message": str(error.detail)}
        raise InvalidRequest(str(error.detail), errors=[fault]) from None
    except OSError as error:  # a file beyond 1 MiB lies in the temporary directory until it is read
        if error.errno != errno.ENOSPC:
            raise
        raise ServiceUnavailable("Other files have all the room there is for uploads.", retry_after=1) from None


async def _from_form(form: FormData, most_bytes: int) -> Given:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file: is missing", errors=[{"field": "file", "message": "is missing"}])
    fields: dict[str, Any] = {name: form[name] for name in form if name not in {"file", "tags"} and form[name] != ""}
    tags = [tag for tag in form.getlist("tags") if tag != ""]
    about = _validated(FormIn, {**fields, "tags": tags})
    content = await file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise PayloadTooLarge(f"The file is larger than {most_bytes} bytes.")
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    kind = media_type(name, file.content_type, content[:HEAD])
    return Given(about.facts(about.title or ""), content, kind, name.encode("utf-8", "replace").decode())


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        fault = {"field": "", "message": "The body is not valid JSON."}
        raise InvalidRequest("The body is not valid JSON.", errors=[fault]) from None


def _validated(kind: type[Body], fields: Any) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_url=False):
            field = ".".join(map(str, fault["loc"]))
            known = fault["type"] != "extra_forbidden"
            message = str(fault["msg"]).removeprefix("Value error, ") if known else "is not known"
            faults.append({"field": field, "message": message})
        detail = "; ".join(": ".join(filter(None, fault.values())) for fault in faults)
        raise InvalidRequest(detail, errors=faults) from None
