"""Records what an admin changes. Every endpoint that changes something for an admin calls `audited` first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import structlog
from starlette.requests import Request

from api.errors import StoreUnavailable
from api.ports.audit import AuditRecord
from api.values import owner_of

if TYPE_CHECKING:
    from api.endpoints.health import AppState

NAME: Final = re.compile(r"[A-Za-z0-9._:{}/@+-]{1,200}")


async def audited(
    request: Request, action: str, *, tenant: str | None = None, **details: str | int | bool | None
) -> None:
    """Records an action of an admin, before it is done: a worker that dies in the middle leaves a trace.

    Call it after the request was found valid. `details` are names and IDs, never texts; a `tenant` is recorded by its
    digest. While Redis is down, the action goes on, and only the log has it.
    """
    state: AppState = request.state.worker
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
