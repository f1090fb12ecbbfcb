"""API keys: create, list, rotate and revoke them while the service runs."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.endpoints.audit import audited
from api.endpoints.health import Moment, worker_state
from api.endpoints.query import Name
from api.endpoints.routes import CheckedRoute, JsonRoute, needs
from api.endpoints.validation import IsInteger, StrictBody, refused, rfc3339
from api.errors import KeyLimitReached, NotFound
from api.ports.access import KEY_ID, KeyRecord, KeyRole, KeySpec, digest_of, new_id, new_secret, prefix_of
from api.ports.limits import MOST_REQUESTS, MOST_STREAMS, MOST_TOKENS, Limits

PATH: Final = "/api/keys"
MOST_OVERLAP: Final = 30 * 24 * 3600
"""Seconds."""

router = APIRouter(tags=["keys"], route_class=CheckedRoute)
create_router = APIRouter(tags=["keys"], route_class=JsonRoute)
RequestLimit = Annotated[int, Field(ge=1, le=MOST_REQUESTS), IsInteger] | None
TokenLimit = Annotated[int, Field(ge=1, le=MOST_TOKENS), IsInteger] | None
StreamLimit = Annotated[int, Field(ge=1, le=MOST_STREAMS), IsInteger] | None
KeyId = Annotated[str, Path(pattern=KEY_ID)]


class KeyIn(StrictBody):
    """A new key."""

    model_config = ConfigDict(json_schema_extra={"example": {"tenant": "acme", "role": "user"}})

    tenant: Name
    role: KeyRole = "user"
    name: Name | None = Field(None, description="For people: who uses the key, and for what.")
    expires_at: Moment | None = Field(None, description="A time in the future. Default: never.")
    models: Annotated[list[Name], Field(min_length=1, max_length=50, fail_fast=True)] | None = Field(
        None, description="The models that the key may use. Default: all."
    )
    requests_per_minute: RequestLimit = None
    tokens_per_minute: TokenLimit = None
    tokens_per_day: TokenLimit = Field(None, description="Generated tokens of a day, in UTC.")
    tokens_per_month: TokenLimit = Field(None, description="Generated tokens of a calendar month, in UTC.")
    concurrent_streams: StreamLimit = Field(None, description="Streams at the same time.")

    def spec(self) -> KeySpec:
        """Raises `InvalidRequest` for a time that is over."""
        if self.expires_at is not None and self.expires_at <= time.time() * 1000:
            raise refused("expires_at", "is not in the future")
        limits = Limits(**{one.name: getattr(self, one.name) or 0 for one in fields(Limits)})
        models = tuple(self.models or ())
        return KeySpec(self.tenant, self.role, self.name or "", self.expires_at or 0, models, limits)


class KeyOut(BaseModel):
    """A key, without its secret."""

    id: str
    prefix: str = Field(description="How the key begins.")
    tenant: str
    role: KeyRole
    name: str
    models: list[str] = Field(description="Empty: all.")
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_day: int | None
    tokens_per_month: int | None
    concurrent_streams: int | None
    created_at: str
    expires_at: str | None
    rotated_at: str | None
    last_used_at: str | None = Field(description="At most about a minute late.")
    former_valid_until: str | None = Field(description="Until when the key before the last rotation works.")


class KeyWithSecret(KeyOut):
    """A key and its secret, which is shown this once."""

    secret: str


class KeysOut(BaseModel):
    """All keys."""

    keys: list[KeyOut]


@create_router.post(PATH, status_code=201, response_model=KeyWithSecret, summary="Create an API key")
@needs("admin")
async def create(body: KeyIn, request: Request, response: Response) -> dict[str, Any]:
    """The secret is shown this once. Redis stores only its digest."""
    spec, key_id = body.spec(), new_id()
    secret = new_secret(key_id)
    await audited(request, "key.create", tenant=spec.tenant, key=key_id, key_role=spec.role)
    record = await worker_state(request).key_store.create(key_id, digest_of(secret), spec)
    if record is None:
        raise KeyLimitReached("There are 10,000 keys. Revoke some first.")
    response.headers["Location"] = PATH
    return _with_secret(record, secret, response)


@router.get(PATH, response_model=KeysOut, summary="List the API keys")
@needs("admin")
async def keys(request: Request, tenant: Annotated[Name | None, Query()] = None) -> dict[str, Any]:
    """All keys, or those of a tenant, oldest first. Expired ones stay until they are revoked."""
    found = await worker_state(request).key_store.all()
    return {"keys": [_shown(record) for record in found if tenant in (None, record.spec.tenant)]}


@router.post(f"{PATH}/{{key_id}}/rotate", response_model=KeyWithSecret, summary="Rotate an API key")
@needs("admin")
async def rotate(
    request: Request,
    response: Response,
    key_id: KeyId,
    overlap_seconds: Annotated[int, Query(ge=0, le=MOST_OVERLAP)] = 0,
) -> dict[str, Any]:
    """Replaces the secret. The former one works for `overlap_seconds` more."""
    secret = new_secret(key_id)
    await audited(request, "key.rotate", key=key_id, overlap_seconds=overlap_seconds)
    record = await worker_state(request).key_store.rotate(key_id, digest_of(secret), overlap_seconds * 1000)
    if record is None:
        raise _no_such(key_id)
    return _with_secret(record, secret, response)


@router.delete(f"{PATH}/{{key_id}}", response_model=KeyOut, summary="Revoke an API key")
@needs("admin")
async def revoke(request: Request, key_id: KeyId) -> dict[str, Any]:
    """Every worker refuses it within a second. Answers that are being streamed end normally."""
    await audited(request, "key.revoke", key=key_id)
    record = await worker_state(request).key_store.revoke(key_id)
    if record is None:
        raise _no_such(key_id)
    return _shown(record)


def _no_such(key_id: str) -> NotFound:
    return NotFound(f"There is no key {key_id}.")


def _with_secret(record: KeyRecord, secret: str, response: Response) -> dict[str, Any]:
    response.headers["Cache-Control"] = "no-store"
    return {**_shown(record), "secret": secret}


def _shown(record: KeyRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "id": record.id,
        "prefix": prefix_of(record.id),
        "tenant": spec.tenant,
        "role": spec.role,
        "name": spec.name,
        "models": list(spec.models),
        **{name: limit or None for name, limit in asdict(spec.limits).items()},
        "created_at": rfc3339(record.created_ms),
        "expires_at": _moment(spec.expires_ms),
        "rotated_at": _moment(record.rotated_ms),
        "last_used_at": _moment(record.last_used_ms),
        "former_valid_until": _moment(record.old_until_ms) if record.old_until_ms > record.rotated_ms else None,
    }


def _moment(ms: int) -> str | None:
    return rfc3339(ms) if ms else None
