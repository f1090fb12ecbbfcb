"""The audit log: every endpoint that changes something for an admin records it first; admins read the chain."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Query, Request

from api.endpoints.health import worker_state
from api.endpoints.middleware import CheckedRoute, needs
from api.endpoints.validation import rfc3339
from api.errors import StoreUnavailable
from api.ports.audit import AuditEntry, AuditRecord
from api.values import owner_of

PATH: Final = "/api/audit"
NAME: Final = re.compile(r"[A-Za-z0-9._:{}/@+-]{1,200}")

router = APIRouter(route_class=CheckedRoute, tags=["operations"])


async def audited(
    request: Request, action: str, *, tenant: str | None = None, **details: str | int | bool | None
) -> None:
    """Records an action of an admin, before it is done: a worker that dies in the middle leaves a trace.

    Call it after the request was found valid. `details` are names and IDs, never texts; a `tenant` is recorded by its
    digest. While Redis is down, the action goes on, and only the log has it.
    """
    state = worker_state(request)
    by, role = state.access.actor(request)
    owner = {} if tenant is None else {"tenant_hash": owner_of(tenant)}
    said = {name: _text(value) for name, value in details.items() if value is not None}
    record = AuditRecord(action, by, role, request.state.request_id, state.worker, {**owner, **said})
    log = structlog.get_logger("ragherd.audit")
    facts = {"action": action, "by": by, "role": role, **record.details}
    try:
        entry = await state.audit.append(record)
    except StoreUnavailable:
        log.error("admin_action_not_audited", **facts)
    else:
        log.info("admin_action", number=entry.number, hash=entry.hash, **facts)


def _text(value: str | int | bool) -> str:
    """A value as text. What cannot be a name or an ID, such as a sentence, is left out."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if NAME.fullmatch(text) else "(not a name)"


@router.get(PATH, summary="List the actions of admins, newest first")
@needs("admin")
async def audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[str | None, Query(pattern=r"^\d{1,16}-\d{1,16}$")] = None,
) -> dict[str, Any]:
    """At least the last 10,000. `before` is the `id` of an entry. `ragherd audit --verify` checks the hashes."""
    found = await worker_state(request).audit.page(limit, before)
    return {"entries": [_shown(entry) for entry in found]}


def _shown(entry: AuditEntry) -> dict[str, Any]:
    record = entry.record
    return {
        "id": entry.id,
        "number": entry.number,
        "time": rfc3339(entry.at_ms),
        "at_ms": entry.at_ms,
        "action": record.action,
        "by": record.by,
        "role": record.role,
        "request_id": record.request,
        "worker": record.worker,
        "details": dict(record.details),
        "previous": entry.previous,
        "hash": entry.hash,
    }
